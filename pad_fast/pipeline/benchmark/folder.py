"""The folder of one benchmark of one model: what its answers were made with, and by whom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pad_fast.evaluation.benchmarks.records import Question
from pad_fast.files.own_files import read_json, write_json
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.folder_lock import locked

MANIFEST, RESULT, SHARDS = "benchmark.json", "result.json", "shards"


class BenchmarkFolder:
    """A folder with ``benchmark.json``, the shards, the answer file and the result."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def shards(self) -> Path:
        """The folder of the shards."""
        return self.root / SHARDS

    @property
    def result_path(self) -> Path:
        """The file with the numbers, which is written last."""
        return self.root / RESULT

    def result(self) -> Row | None:
        """The numbers, None if they are not there yet."""
        return read_json(self.result_path) if self.result_path.exists() else None

    def write_result(self, result: Row) -> None:
        """Write the numbers."""
        write_json(self.result_path, result)

    def begin(self, made_with: Row) -> None:
        """Record what the answers are made with, or see that it is what it was.

        Raises:
            ValueError: the folder holds answers that were made with something else.
        """
        path = self.root / MANIFEST
        if not path.exists():
            write_json(path, made_with)
            return
        before = read_json(path)
        now = json.loads(json.dumps(made_with))
        for name in sorted((before.keys() | now.keys()) - {"started"}):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"{name}: {self.root} holds answers that were made with "
                    f"{_short(before.get(name))}, got {_short(now.get(name))}; "
                    "give another output_dir, or remove the folder"
                )

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder's lock inside the block.

        Raises:
            ValueError: another process holds it.
        """
        return locked(self.root)


def questions_hash(questions: Sequence[Question]) -> str:
    """A hash of questions, the same in every process."""
    rows = [[q.id, q.category, q.turns, q.solution] for q in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
