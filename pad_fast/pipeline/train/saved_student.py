"""The student that a training leaves: its weights, its tokenizer, its state and its card."""

from __future__ import annotations

import contextlib
import gc
import shutil
from pathlib import Path

from transformers import Trainer

from pad_fast.device import release_cached_memory
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train.adapter import merged
from pad_fast.pipeline.train.checkpoints import STATE, step_folders
from pad_fast.pipeline.whole_files import replacing

ADAPTER = "adapter"  # next to the student's folder
# By which names a trainer, and what calls its callbacks, hold what takes memory.
HELD = {"model", "model_wrapped", "deepspeed", "optimizer", "lr_scheduler"}


def save_student(
    trainer: Trainer, run: RunContext, before: Checkpoint, target: Path, card: str | None
) -> None:
    """Save a trained model with its tokenizer, on all ranks together.

    Args:
        trainer: holds the model, or the parts of it that this rank has.
        run: the run.
        before: the student that the training began with.
        target: the folder to save to. It exists only once it is complete.
        card: text of the model card.
    """
    if run.config.use_peft:
        _save_whole(trainer, run, target.parent / ADAPTER)
        run.ranks.wait()  # nobody gathers any more
        _release(trainer)
        if run.ranks.is_main:
            with replacing(target) as temporary:
                merged(run.config, before, target.parent / ADAPTER).save_pretrained(temporary)
                before.tokenizer.save_pretrained(temporary)
                _add_texts(trainer, temporary, card)
            before.free()
    else:
        _save_whole(trainer, run, target, card)
    run.ranks.wait()


def _save_whole(trainer: Trainer, run: RunContext, target: Path, card: str | None = None) -> None:
    """Save what the trainer trains. Ranks that hold a part of it give it to the main one."""
    if not run.ranks.is_main:
        trainer.save_model(str(target))  # takes part, and writes nothing
        return
    with replacing(target) as temporary:
        trainer.save_model(str(temporary))
        _add_texts(trainer, temporary, card)


def _release(trainer: Trainer) -> None:
    """Drop a trainer's model with its wrappers, gradients and optimizer, on all ranks."""
    for holder in (trainer, trainer.callback_handler):
        for name in HELD & vars(holder).keys():
            setattr(holder, name, None)
    trainer.accelerator.free_memory()
    gc.collect()  # wrappers and hooks refer to one another
    release_cached_memory()


def _add_texts(trainer: Trainer, folder: Path, card: str | None) -> None:
    trainer.state.save_to_json(str(folder / STATE))
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def drop_checkpoints(folder: Path) -> None:
    """Remove a trainer's checkpoints after its student was saved, but not a tracker's logs."""
    for checkpoint in step_folders(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not there, or holds logs
        folder.rmdir()
