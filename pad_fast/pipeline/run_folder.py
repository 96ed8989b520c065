"""The folder of a run: its paths, manifest and lock, and the metrics in it."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pad_fast.pipeline.files import Row, replacing, write_json
from pad_fast.pipeline.phases import PHASES, PREPARE


class Metrics:
    """The lines of metrics.jsonl, one JSON object each.

    A line about the same values of the same step is written once, also where a killed phase is
    done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # the process was killed while writing it
            os.truncate(path, sum(map(len, lines[:-1])))
            lines.pop()
        self.records: list[Row] = [json.loads(line) for line in lines]
        self._known = {self._key(record) for record in self.records}

    def add(self, round: int, step: int, phase: str, values: Row) -> None:
        """Append a line, unless there is one about the same values of the same step.

        A number that is not finite becomes null, since JSON has no other word for it.
        """
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        record = {"round": round, "step": step, "phase": phase, **known}
        if self._key(record) in self._known:
            return
        self._known.add(self._key(record))
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget(self, phase: str) -> None:
        """Remove the lines of a phase that starts over because nothing of it was kept."""
        self.records = [record for record in self.records if record["phase"] != phase]
        self._known = {self._key(record) for record in self.records}
        with replacing(self.path) as temporary:
            temporary.write_text(
                "".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8"
            )

    def last_step(self, round: int, phase: str) -> int:
        """The last step for which a phase added a line, 0 if none."""
        return max(
            (
                record["step"]
                for record in self.records
                if (record["round"], record["phase"]) == (round, phase)
            ),
            default=0,
        )

    def means(self, round: int, phase: str) -> dict[str, float]:
        """The mean over the steps of each number that a phase added."""
        found: dict[str, list[float]] = {}
        for record in self.records:
            if (record["round"], record["phase"]) == (round, phase):
                for name in record.keys() - {"round", "step", "phase"}:
                    if record[name] is not None:
                        found.setdefault(name, []).append(record[name])
        return {name: sum(values) / len(values) for name, values in sorted(found.items())}

    @staticmethod
    def _key(record: Row) -> tuple[Any, ...]:
        return record["round"], record["step"], record["phase"], record.get("name"), *sorted(record)


class RunFolder:
    """The paths of one run, its manifest and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest_path = root / "run.json"

    def round(self, index: int) -> Path:
        """The folder of a round."""
        return self.root / f"round-{index:02d}"

    def student(self, index: int) -> Path:
        """The student after a round."""
        return self.round(index) / "student"

    @property
    def seqkd(self) -> Path:
        """The folder of the baseline."""
        return self.root / "seqkd"

    def evaluation(self, name: str) -> Path:
        """The summary of the evaluation of one model."""
        return self.root / "evaluation" / f"{name}.json"

    def manifest(self) -> Row:
        """The content of run.json."""
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def started(self) -> datetime.datetime | None:
        """When the run was started, None if it was not."""
        created = self.manifest().get("created") if self.manifest_path.exists() else None
        return None if created is None else datetime.datetime.fromisoformat(created)

    def begun(self) -> set[str]:
        """The names of the phases that have kept something, in any round."""
        return {
            phase.name
            for phase in (PREPARE, *PHASES)
            if any(any(self.root.glob(pattern)) for pattern in phase.kept)
        }

    def add_implementation(self, name: str) -> None:
        """Record in the manifest, once, that an implementation has scored in this run.

        A folder without a manifest, such as the doctor's, stays without one.
        """
        if not self.manifest_path.exists():
            return
        manifest = self.manifest()
        known = manifest.get("implementations", [])
        if name not in known:
            write_json(self.manifest_path, {**manifest, "implementations": [*known, name]})

    def finished(self, phase: str) -> None:
        """Record a finished phase in the manifest, for readers; the run itself looks at files."""
        manifest = self.manifest()
        if manifest["phases"].get(phase) != "finished":
            manifest["phases"][phase] = "finished"
            write_json(self.manifest_path, manifest)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock inside the block. It ends with the process, however that ends.

        Raises:
            ValueError: another process holds it.
        """
        try:
            import fcntl
        except ImportError:  # Windows has no fcntl
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"output_dir: another pad-fast works in {self.root} at the moment"
                ) from None
            yield
