"""Which of a trainer's checkpoints a training can go on from without a change in its result.

PyTorch's files hold a checksum of each tensor, which is compared here and nowhere else. Those of
the others are written next to them when the checkpoint is complete.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from pad_fast.files.checksums import file_digest
from pad_fast.files.own_files import read_json, write_json
from pad_fast.files.weights import fault_of

logger = logging.getLogger("pad_fast")

STATE = "trainer_state.json"  # Trainer writes it last
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors")
# What accelerate's launcher sets where weights or the optimizer are split over ranks.
SPLIT = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
CHECKSUMS = "pad_fast_checksums.json"


class Checksums(TrainerCallback):
    """Writes the checksums of a checkpoint's files that hold none themselves."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and (checkpoint / STATE).is_file():
            paths = [checkpoint / name for name in (STATE, *_weights(checkpoint))]
            plain = [path for path in paths if path.suffix in (".json", ".safetensors")]
            # DeepSpeed and FSDP may keep the weights in folders of their own.
            found = {path.name: file_digest(path) for path in plain if path.is_file()}
            write_json(checkpoint / CHECKSUMS, found)


def last_checkpoint(folder: Path, args: TrainingArguments) -> Path | None:
    """The last checkpoint in a trainer's folder that a training can go on from exactly.

    Those after it are removed, each with a warning that names what is missing or damaged: without
    its optimizer's state, for one, Trainer would go on with a new optimizer and say nothing. What
    a kill left incomplete is removed too.

    Args:
        folder: of the trainer.
        args: of the training.

    Returns:
        The checkpoint; None if there is none, and the training has to start over.

    Raises:
        OSError: the system cannot read a file, which says nothing about the checkpoint.
    """
    last, broken = None, {}
    for checkpoint in reversed(step_folders(folder)):
        faults = list(missing_files(checkpoint, args))
        if not faults and last is None:  # the others are not read, which may be many gigabytes
            faults = list(damaged_files(checkpoint, args))
        if faults:
            broken[checkpoint] = faults
        else:
            last = last or checkpoint
    for checkpoint, faults in sorted(broken.items()):
        logger.warning(
            "%s cannot be resumed from exactly, without %s; the training %s",
            checkpoint,
            " and ".join(faults),
            "starts over" if last is None else f"goes on from {last.name}",
        )
        shutil.rmtree(checkpoint)
    return last


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints in a trainer's folder, by their step. Folders of other names are no such."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdecimal()]
    return sorted(found, key=lambda path: int(steps[path]))


def missing_files(checkpoint: Path, args: TrainingArguments) -> Iterator[str]:
    """The names of the files that an exact resume needs, and that are missing or empty."""
    for name in _needed(checkpoint, args):
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size == 0 or (name == STATE and _broken(path)):
            yield name


def damaged_files(checkpoint: Path, args: TrainingArguments) -> Iterator[str]:
    """The files that an exact resume needs and that are not as they were written, with the fault.

    Every byte is read. A kill right after a checkpoint was written may have left no checksums of
    its other files; these are then taken as they are, as far as they can be read.
    """
    known = checkpoint / CHECKSUMS
    digests = read_json(known) if known.is_file() and not _broken(known) else {}
    for name in _needed(checkpoint, args):
        path, fault = checkpoint / name, None
        if path.suffix != ".json":
            fault = fault_of(path, throughout=True)
        if fault is None and name in digests and file_digest(path) != digests[name]:
            fault = "it is not as it was written"
        if fault is not None:
            yield f"{name} ({fault})"


def _needed(checkpoint: Path, args: TrainingArguments) -> list[str]:
    """The names of the files that an exact resume needs."""
    if args.deepspeed or args.fsdp or any(map(os.environ.get, SPLIT)):  # have their own files
        return [STATE]
    names = [STATE, *_weights(checkpoint), "optimizer.pt", "scheduler.pt", *_random(checkpoint)]
    return [*names, "scaler.pt"] if args.fp16 else names


def _random(checkpoint: Path) -> list[str]:
    """The files of the random generators: one, or one of each rank that wrote the checkpoint.

    Another number of ranks may go on from it. It finds no state of some generators, from which only
    dropout draws: which rows come next depends on the seed and the step.
    """
    of_ranks = sorted(path.name for path in checkpoint.glob("rng_state_*.pth"))
    return of_ranks or ["rng_state.pth"]


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
