"""A cache on disk for the teacher's numbers."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from pad_fast.pipeline.whole_files import (
    read_rows,
    shard_index,
    shard_path,
    shard_paths,
    write_rows,
)


class ScoreCache:
    """The teacher's numbers, keyed by the exact tokens that it read.

    Each :meth:`save` adds one Parquet file. What was computed for another round, for an equal
    response or before a run was killed is found again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[bytes, list[float]] = {}
        self._new: dict[bytes, list[float]] = {}
        parts = shard_paths(folder)
        self._next = shard_index(parts[-1]) + 1 if parts else 0  # one before it may be gone
        for part in parts:
            for row in read_rows(part):
                if all(map(math.isfinite, row["values"])):  # else asked again
                    self.known[row["key"]] = row["values"]

    @staticmethod
    def key(*parts: object) -> bytes:
        """The key of what was asked, given as values that JSON can hold."""
        return hashlib.sha256(json.dumps(parts).encode()).digest()

    def add(self, key: bytes, values: list[float]) -> None:
        """Add numbers, which :meth:`save` writes.

        Raises:
            ValueError: one of them is not finite.
        """
        if not all(map(math.isfinite, values)):
            raise ValueError(f"values must be finite to be kept, got {values}")
        self.known[key] = self._new[key] = values

    def save(self) -> None:
        """Write what was added since the last call."""
        if self._new:
            path = shard_path(self.folder, self._next)
            write_rows(path, [{"key": key, "values": values} for key, values in self._new.items()])
            self._next += 1
            self._new = {}
