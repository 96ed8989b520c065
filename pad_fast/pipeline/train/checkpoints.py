"""Which of a trainer's checkpoints a training can go on from without a change in its result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from pad_fast.pipeline.whole_files import read_json

logger = logging.getLogger("pad_fast")

STATE = "trainer_state.json"  # Trainer writes it last
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def last_checkpoint(folder: Path, args: TrainingArguments) -> Path | None:
    """The last checkpoint in a trainer's folder that a training can go on from exactly.

    The others are removed, each with a warning that names what is missing: without its optimizer's
    state, for one, Trainer would go on with a new optimizer and say nothing.

    Args:
        folder: of the trainer.
        args: of the training.

    Returns:
        The checkpoint; None if there is none, and the training has to start over.
    """
    complete, broken = {}, {}
    for checkpoint in folder.glob("checkpoint-*"):
        lacking = list(missing_files(checkpoint, args))
        if lacking:
            broken[checkpoint] = lacking
        else:
            complete[int(read_json(checkpoint / STATE)["global_step"])] = checkpoint
    last = complete[max(complete)] if complete else None
    for checkpoint, lacking in sorted(broken.items()):
        logger.warning(
            "%s cannot be resumed from exactly, without %s; the training %s",
            checkpoint,
            " and ".join(lacking),
            "starts over" if last is None else f"goes on from {last.name}",
        )
        shutil.rmtree(checkpoint)
    return last


def missing_files(checkpoint: Path, args: TrainingArguments) -> Iterator[str]:
    """The names of the files that an exact resume needs, and that are missing or empty."""
    needed = [STATE]
    if not args.deepspeed and not args.fsdp:  # these have files of their own
        needed += [*_weights(checkpoint), "optimizer.pt", "scheduler.pt", "rng_state.pth"]
        needed += ["scaler.pt"] if args.fp16 else []
    for name in needed:
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size == 0 or (name == STATE and _broken(path)):
            yield name


def _weights(checkpoint: Path) -> list[str]:
    """The files that hold the weights, or should."""
    for name in WEIGHTS:
        index = checkpoint / f"{name}.index.json"
        if (checkpoint / name).exists():
            return [name]
        if index.exists() and not _broken(index):
            return sorted(set(read_json(index)["weight_map"].values()))
    return [WEIGHTS[0]]


def _broken(path: Path) -> bool:
    try:
        read_json(path)
    except ValueError:
        return True
    return False
