"""Rows that the main rank writes to disk, and all ranks read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from datasets import Dataset

from pad_fast.files.stored_rows import FIRST, RowFiles, Rows
from pad_fast.pipeline.run import RunContext


@contextlib.contextmanager
def common_rows(run: RunContext, name: str, keep: Callable[[RowFiles], Rows]) -> Iterator[Dataset]:
    """Rows as a memory-mapped dataset that the main rank writes, and removes after the block.

    What a trainer prepares lies in the same folder, since datasets keeps it beside what it is made
    from, and goes with it.

    Args:
        run: the run.
        name: of the folder that they are in until then.
        keep: writes the rows to the files that it is given.
    """
    folder = run.folder.rows / name
    files = RowFiles(folder) if run.ranks.is_main else None
    if files is not None:
        keep(files)
    run.ranks.wait()
    yield Dataset.from_file(str(folder / FIRST))
    run.ranks.wait()
    if files is not None:
        files.remove()
