"""The teacher's numbers on disk, by the tokens that it saw."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq

from pad_fast.pipeline.files import shard_path, write_rows


class ScoreCache:
    """The teacher's numbers by the tokens that it saw, one Parquet part for every shard that asked something new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[bytes, list[float]] = {}
        self._new: dict[bytes, list[float]] = {}
        self._parts = sorted(folder.glob("part-*.parquet"))
        for part in self._parts:
            columns = pq.read_table(part).to_pydict()
            self.known.update(zip(columns["key"], columns["values"], strict=True))

    @staticmethod
    def key(*parts: object) -> bytes:
        return hashlib.sha256(json.dumps(parts).encode()).digest()

    def add(self, key: bytes, values: list[float]) -> None:
        self.known[key] = self._new[key] = values

    def save(self) -> None:
        """Write what is new; nothing is lost after this."""
        if self._new:
            path = shard_path(self.folder, len(self._parts))
            write_rows(path, [{"key": key, "values": values} for key, values in self._new.items()])
            self._parts.append(path)
            self._new = {}
