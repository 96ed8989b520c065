"""The rows with which accelerate fills the last batch of an epoch up on several ranks."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


def rows_of_its_own(trainer: Trainer, size: int) -> int:
    """The number of rows of this rank's newest batch that are no repeats; those come first.

    accelerate takes the repeats from the epoch's start, and puts them behind all other rows in the
    order of the ranks. They would count twice.

    Args:
        trainer: has just taken the batch.
        size: the number of rows in the batch.
    """
    last, ranks = (
        trainer.accelerator.gradient_state.end_of_dataloader,
        trainer.accelerator.num_processes,
    )
    if ranks == 1 or not last or trainer.args.dataloader_drop_last:
        return size
    rows: Any = trainer.train_dataset
    left = len(rows) % (ranks * size)
    if not left:
        return size
    return min(size, max(0, left - trainer.accelerator.process_index * size))
