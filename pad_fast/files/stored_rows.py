"""Rows that lie on disk and are read when they are asked for, in memory-mapped Arrow files.

Parquet keeps what a run made. It has no quick access to one row, which shuffled prompts need, so
commands work on copies in Arrow's own form, which they remove at their end.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Row = dict[str, Any]
Rows = Sequence[Row]
Tables = Iterable[pa.Table]

FIRST = "rows-001.arrow"  # the name of the first file that RowFiles writes
SCRATCH = ".rows"  # the folder of a run that holds such files
BATCH = 512  # rows that are Python objects at a time


class StoredRows(Sequence[Any]):
    """Rows of a datasets.Dataset. Each is made when it is read, and kept by nobody.

    A slice is of this kind too and reads nothing.

    Args:
        dataset: on disk.
        places: which of its rows, in which order; by default all.
        change: makes what is read from each row.

    Example:
        >>> from datasets import Dataset
        >>> rows = StoredRows(Dataset.from_dict({"n": [0, 1, 2, 3]}))
        >>> rows[2], [row["n"] for row in rows[1:]], list(rows.take([3, 0]).column("n"))
        ({'n': 2}, [1, 2, 3], [3, 0])
    """

    def __init__(
        self,
        dataset: Any,
        places: Sequence[int] | NDArray[np.int64] | None = None,
        change: Callable[[Row], Any] | None = None,
    ) -> None:
        self._dataset, self._change = dataset.with_format("arrow"), change
        every: Any = np.arange(len(dataset)) if places is None else places
        self._places: NDArray[np.int64] = np.asarray(every, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._like(self._places[index], self._change)
        return self._read(self._places[[index]])[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BATCH):
            yield from self._read(self._places[start : start + BATCH])

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> StoredRows:
        """The rows at some places, in their order."""
        return self._like(self._places[np.asarray(places, np.int64)], self._change)

    def map(self, change: Callable[[Any], Any]) -> StoredRows:
        """The rows as a function makes them anew whenever they are read."""
        before = self._change
        both = change if before is None else lambda row: change(before(row))
        return self._like(self._places, both)

    def column(self, name: str) -> Sequence[Any]:
        """The values of one column, of which alone is read; the rows must not be changed ones."""
        only = self._dataset.select_columns([name])
        return StoredRows(only, self._places, lambda row: row[name])

    def _like(self, places: NDArray[np.int64], change: Callable[[Row], Any] | None) -> StoredRows:
        found = copy.copy(self)  # with the same dataset, which takes milliseconds to copy
        found._places, found._change = places, change
        return found

    def _read(self, places: NDArray[np.int64]) -> list[Any]:
        first, stop = int(places[0]), int(places[-1]) + 1
        together = stop - first == len(places) and bool((np.diff(places) == 1).all())
        found = self._dataset[first:stop] if together else self._dataset[places.tolist()]
        rows = found.to_pylist()
        return rows if self._change is None else [self._change(row) for row in rows]


def take(rows: Rows, places: Sequence[int] | NDArray[np.int64]) -> Rows:
    """The rows at some places, in memory or on disk as they are."""
    if isinstance(rows, StoredRows):
        return rows.take(places)
    return [rows[place] for place in places]


def left_out(count: int, places: Sequence[int]) -> NDArray[np.int64]:
    """The places below ``count`` that are not among ``places``."""
    kept = np.ones(count, dtype=bool)
    kept[np.asarray(places, np.int64)] = False
    return np.flatnonzero(kept)


def column(rows: Rows, name: str) -> Sequence[Any]:
    """The values of one column of rows."""
    return rows.column(name) if isinstance(rows, StoredRows) else [row[name] for row in rows]


def changed(rows: Rows, change: Callable[[Row], Row]) -> Rows:
    """The rows as a function makes them: now of a list, and whenever they are read of a file."""
    return rows.map(change) if isinstance(rows, StoredRows) else [change(row) for row in rows]


class KeyedRows(Mapping[str, Row]):
    """Rows by the values of a column, which alone are in memory; of equal ones the last counts."""

    def __init__(self, rows: Rows, name: str) -> None:
        self._rows = rows
        self._places = {key: place for place, key in enumerate(column(rows, name))}

    def __getitem__(self, key: str) -> Row:
        return self._rows[self._places[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last of which may be shorter; none is kept for the next."""
    left = iter(items)
    while batch := list(itertools.islice(left, size)):
        yield batch
        del batch


class RowFiles:
    """A folder of stored rows that a command works with, which goes when the command ends.

    What a killed command left is removed by whoever holds the lock of the folder above. A folder
    belongs to the last that took it: an earlier command of the same process, whose objects live on
    in a traceback, no longer removes it.

    Args:
        folder: is made when something is kept.
    """

    _removals: ClassVar[dict[Path, weakref.finalize]] = {}

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self.remove = weakref.finalize(self, _remove, folder, os.getpid())
        if earlier := self._removals.pop(folder, None):
            earlier.detach()
        self._removals[folder] = self.remove

    def keep(self, tables: Tables) -> Rows:
        """The rows of tables with one schema, which are written to a file; none need no file."""
        from datasets import Dataset

        left = iter(tables)
        first = next(left, None)
        if first is None or not len(first):
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        path = self.folder / f"rows-{self._count:03d}.arrow"
        schema = first.schema.remove_metadata()
        with path.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for table in itertools.chain([first], left):
                writer.write_table(table.cast(schema), max_chunksize=BATCH)
        return StoredRows(Dataset.from_file(str(path)))


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked one leaves it to the first
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.name == SCRATCH:
            with contextlib.suppress(OSError):  # there are others
                folder.parent.rmdir()
