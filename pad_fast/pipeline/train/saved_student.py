"""The student that a training leaves: its weights, its tokenizer, its state and its card."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer

from pad_fast.device import release_unused_memory
from pad_fast.files.own_files import read_json
from pad_fast.files.writing import replacing
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.train.adapter import merged
from pad_fast.pipeline.train.checkpoints import STATE, step_folders

ADAPTER = "adapter"  # next to the student's folder
# By which names a trainer, and what calls its callbacks, hold what takes memory.
HELD = {"model", "model_wrapped", "deepspeed", "optimizer", "lr_scheduler"}


def save_student(
    trainer: Trainer, run: RunContext, before: Checkpoint, target: Path, card: str | None
) -> None:
    """Save a trained model with its tokenizer, on all ranks together.

    Args:
        trainer: holds the model, or the parts of it that this rank has. It is of no use afterwards.
        run: the run.
        before: the student that the training began with.
        target: the folder to save to. It exists only once it is complete.
        card: text of the model card.
    """
    adapter = target.parent / ADAPTER if run.config.use_peft else None
    _save_whole(trainer, run, adapter or target, None if adapter else card)
    run.ranks.wait()  # nobody gathers any more
    _release(trainer)
    if adapter and run.ranks.is_main:
        with replacing(target) as temporary:
            merged(run.config, before, adapter).save_pretrained(temporary)
            before.tokenizer.save_pretrained(temporary)
            _add_texts(trainer, temporary, card)
        before.free()
    run.ranks.wait()


def _save_whole(trainer: Trainer, run: RunContext, target: Path, card: str | None = None) -> None:
    """Save what the trainer trains. Ranks that hold a part of it give it to the main one."""
    rounded = trainer.is_deepspeed_enabled and run.config.train_dtype == "float32"
    weights = full_weights(trainer, run.config.use_peft) if rounded else None
    if not run.ranks.is_main:
        if weights is None:
            trainer.save_model(str(target))  # takes part, and writes nothing
        return
    with replacing(target) as temporary:
        if weights is None:
            trainer.save_model(str(temporary))
        else:
            trainer._save(str(temporary), state_dict=weights)
            _name_float32(temporary / "config.json")
        _add_texts(trainer, temporary, card)


def full_weights(trainer: Trainer, adapter: bool) -> dict[str, Tensor]:
    """What DeepSpeed trains, in the float32 in which its optimizer keeps it, of all ranks together.

    With bf16 or fp16 the model itself holds 16 bits of each weight, and Trainer would save these.

    Args:
        trainer: after its training.
        adapter: whether an adapter is trained; the weights below it are left out.

    Returns:
        The weights by their names on the CPU; none on other ranks than the main one.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    engine: Any = trainer.deepspeed
    is_main = trainer.is_world_process_zero()
    # Weights that are not trained, and buffers, are nowhere else.
    found = {} if adapter else trainer.accelerator.get_state_dict(engine)
    names: dict[Tensor, list[str]] = {}
    for name, weight in engine.module.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            names.setdefault(weight, []).append(name)
    for weight, shared in names.items():
        full = safe_get_full_fp32_param(weight)
        if is_main:
            kept = (weight if full is None else full).detach().cpu()
            found |= dict.fromkeys(shared, kept)
    return found if is_main else {}


def _name_float32(config: Path) -> None:
    """Say in a model's configuration that its weights are float32; an adapter has none."""
    if config.is_file():
        values = read_json(config)
        text = json.dumps({**values, "dtype": "float32"}, indent=2, sort_keys=True)
        config.write_text(text + "\n", encoding="utf-8")


def _release(trainer: Trainer) -> None:
    """Drop a trainer's model with its wrappers, gradients and optimizer, on all ranks.

    With ZeRO-2 they would stay when the trainer is gone. ZeRO-3 keeps its shards even so.
    """
    for holder in (trainer, trainer.callback_handler):
        for name in HELD & vars(holder).keys():
            setattr(holder, name, None)
    trainer.accelerator.free_memory()
    release_unused_memory()


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
