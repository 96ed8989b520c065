"""The folder of a run: its paths, manifest, lock and metrics."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_fast.pipeline.files import Row, replacing, write_json


class Metrics:
    """metrics.jsonl: one object a line, and no line twice when a killed phase is done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # the process was killed within the line
            os.truncate(path, sum(map(len, lines[:-1])))
            lines.pop()
        self.records: list[Row] = [json.loads(line) for line in lines]
        self._known = {self._key(record) for record in self.records}

    def add(self, round: int, step: int, phase: str, values: Row) -> None:
        """Append a line, unless the one about the same values of the same step is there."""
        record = {"round": round, "step": step, "phase": phase, **values}
        if self._key(record) in self._known:
            return
        self._known.add(self._key(record))
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget(self, phase: str) -> None:
        """Drop the lines of a phase that is done anew, as nothing of it was kept."""
        self.records = [record for record in self.records if record["phase"] != phase]
        self._known = {self._key(record) for record in self.records}
        with replacing(self.path) as temporary:
            temporary.write_text(
                "".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8"
            )

    def last_step(self, round: int, phase: str) -> int:
        """The last step that a phase told of, 0 if none."""
        return max(
            (
                record["step"]
                for record in self.records
                if (record["round"], record["phase"]) == (round, phase)
            ),
            default=0,
        )

    def means(self, round: int, phase: str) -> dict[str, float]:
        """The mean over the steps of each number that a phase told."""
        found: dict[str, list[float]] = {}
        for record in self.records:
            if (record["round"], record["phase"]) == (round, phase):
                for name in record.keys() - {"round", "step", "phase"}:
                    found.setdefault(name, []).append(record[name])
        return {name: sum(values) / len(values) for name, values in sorted(found.items())}

    @staticmethod
    def _key(record: Row) -> tuple[Any, ...]:
        return record["round"], record["step"], record["phase"], record.get("name"), *sorted(record)


class RunFolder:
    """Paths of one run, its manifest and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest_path = root / "run.json"

    def round(self, index: int) -> Path:
        return self.root / f"round-{index:02d}"

    def student(self, index: int) -> Path:
        return self.round(index) / "student"

    def evaluation(self, name: str) -> Path:
        return self.root / "evaluation" / f"{name}.json"

    def manifest(self) -> Row:
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def begun(self) -> set[str]:
        """The phases of which something is kept, in any round."""
        kept = {
            "prepare": ["run.json"],
            "sample": ["round-*/samples/part-*.parquet", "heldout/samples/part-*.parquet"],
            "score": ["round-*/scores/part-*.parquet", "heldout/groups/part-*.parquet"],
            "train": [
                "*/student",
                "*/trainer/checkpoint-*/trainer_state.json",
            ],  # of a round, or seqkd
        }
        return {
            phase
            for phase, patterns in kept.items()
            if any(any(self.root.glob(pattern)) for pattern in patterns)
        }

    def finished(self, phase: str) -> None:
        """Note a finished phase in the manifest, for readers: what is done is decided by the files."""
        manifest = self.manifest()
        if manifest["phases"].get(phase) != "finished":
            manifest["phases"][phase] = "finished"
            write_json(self.manifest_path, manifest)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; ValueError where another process holds it. The lock ends with the process, however it ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"output_dir: another pad-fast works in {self.root} at this moment"
                ) from None
            yield
