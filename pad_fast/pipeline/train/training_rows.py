"""The rows of a training, on disk for all ranks while it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from pad_fast.files.stored_rows import FIRST, RowFiles, Rows
from pad_fast.pipeline.run import RunContext

TOGETHER = 1024  # rows that are counted at a time


@contextlib.contextmanager
def training_rows(run: RunContext, keep: Callable[[RowFiles], Rows]) -> Iterator[Dataset]:
    """Rows as a memory-mapped dataset that the main rank writes, and removes after the block.

    What a trainer prepares lies in the same folder, since datasets keeps it beside what it is made
    from, and goes with it.

    Args:
        run: the run.
        keep: writes the rows to the files that it is given.
    """
    folder = run.folder.rows / "train"
    files = RowFiles(folder) if run.ranks.is_main else None
    if files is not None:
        keep(files)
    run.ranks.wait()
    yield Dataset.from_file(str(folder / FIRST))
    run.ranks.wait()
    if files is not None:
        files.remove()


def live_tokens(rows: Any) -> int:
    """The tokens of prepared rows that are trained on: prompts, and responses with a reward."""
    found = 0
    for batch in rows.with_format("arrow").iter(TOGETHER):
        column = {name: batch.column(name).combine_chunks() for name in batch.column_names}
        lengths = pc.list_value_length(column["completion_ids"].flatten())
        live = column["teacher_rewards"].flatten().is_valid()
        found += len(column["prompt_ids"].flatten())
        found += pc.sum(lengths.filter(live)).as_py() or 0
    return found


def count_tokens(rows: Dataset, *columns: str) -> int:
    """The tokens in columns of token ids, or of lists of them."""
    found = 0
    for chunk in (chunk for name in columns for chunk in rows.data.column(name).chunks):
        while pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            chunk = chunk.flatten()
        found += len(chunk)
    return found
