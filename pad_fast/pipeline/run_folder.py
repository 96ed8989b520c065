"""The folder of a run: its paths and manifest, and the metrics in it."""

from __future__ import annotations

import datetime
import json
import logging
import math
from functools import cached_property
from pathlib import Path
from typing import Any

from pad_fast.files.checksums import ends_hash, file_digest
from pad_fast.files.own_files import (
    drop_half_line,
    read_json,
    read_json_lines,
    set_aside,
    write_json,
)
from pad_fast.files.stored_rows import SCRATCH, Row
from pad_fast.files.weights import UNREAD
from pad_fast.files.writing import replacing
from pad_fast.pipeline.phases import PHASES, PREPARE

logger = logging.getLogger("pad_fast")

# What shows that lines were added to metrics.jsonl.
MEASURED = (
    "round-*/samples/part-*.parquet",
    "round-*/scores/part-*.parquet",
    "heldout/groups/part-*.parquet",
    "*/student",
    "evaluation/*.json",
)
# What a run leaves after its manifest was written.
OWN = (
    *(pattern for phase in PHASES for pattern in phase.kept),
    *("*/trainer", "seqkd/answers/part-*.parquet"),
    *("metrics.jsonl", "teacher_cache/part-*", "report/index.html"),
)
WEIGHTS = (".safetensors", ".bin")
STATE = "trainer_state.json"  # holds times


class Metrics:
    """The lines of metrics.jsonl, one JSON object each.

    A line about the same values of the same step is written once, also where a killed phase is
    done again. Nothing is read or written before it is used, since another process may hold the
    folder's lock.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @cached_property
    def records(self) -> list[Row]:
        """The lines. The first use removes a last line that a kill left half written.

        Raises:
            ValueError: another line is damaged.
        """
        drop_half_line(self.path)
        return read_json_lines(self.path)

    @cached_property
    def _known(self) -> set[tuple[Any, ...]]:
        return {self._key(record) for record in self.records}

    def add(self, round: int, step: int, phase: str, values: Row) -> None:
        """Append a line, unless there is one about the same values of the same step.

        A number that is not finite becomes null, since JSON has no other word for it.
        """
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        record = {"round": round, "step": step, "phase": phase, **known}
        if not self.writes or self._key(record) in self._known:
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
    """The paths of one run and its manifest."""

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

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.root / "report" / "index.html"

    @property
    def rows(self) -> Path:
        """The folder of rows that a command works with, which it removes at its end."""
        return self.root / SCRATCH

    def evaluation(self, name: str) -> Path:
        """The summary of the evaluation of one model."""
        return self.root / "evaluation" / f"{name}.json"

    def manifest(self) -> Row:
        """The content of run.json.

        Raises:
            ValueError: it is damaged, which nothing can mend.
        """
        remedy = "put back a copy of it, or give another output_dir"
        return read_json(self.manifest_path, remedy)

    def has_metrics(self) -> bool:
        """Whether something shows that lines were added to metrics.jsonl."""
        return any(any(self.root.glob(pattern)) for pattern in MEASURED)

    def check_manifest_is_not_lost(self) -> None:
        """Raise ValueError if there are files of a run and no manifest that says what made them."""
        found = next((path for name in OWN for path in self.root.glob(name)), None)
        if found is not None and not self.manifest_path.exists():
            raise ValueError(
                f"output_dir: {self.root} holds {found.relative_to(self.root)} and no run.json, "
                "which says what made it; put run.json back or give another output_dir"
            )

    def check_students(self) -> None:
        """Raise ValueError unless every student is as it was when it was trained, or gone."""
        for name, known in self.manifest().get("students", {}).items():
            folder = self.root / name
            lost = [file for file in known["files"] if not (folder / file).is_file()]
            if not folder.exists():  # it is trained again
                continue
            if lost:
                raise ValueError(
                    f"{folder} has lost {', '.join(lost)}; put back what is missing, or "
                    f"{set_aside(folder)}"
                )
            if _student_record(folder)["sha256"] != known["sha256"]:
                raise ValueError(
                    f"{folder} has other weights than those that were trained in this run; put "
                    f"them back, or {set_aside(folder)}"
                )

    def check_whole(self, folder: Path, weights: bool) -> None:
        """Raise ValueError unless files of a student are as they were saved, to the last byte.

        Args:
            folder: of the student.
            weights: whether to compare those with weights, or all others.
        """
        known = self.manifest().get("students", {}).get(str(folder.relative_to(self.root)), {})
        for name, digest in known.get("digests", {}).items():
            if name.endswith(WEIGHTS) == weights and file_digest(folder / name) != digest:
                raise ValueError(
                    f"{folder / name} is damaged: it is not as it was saved; {set_aside(folder)}"
                )

    def record_student(self, folder: Path, used: bool) -> None:
        """Record in the manifest what a trained student's folder holds.

        Raises:
            ValueError: the student was lost and trained again, what was made from it before was
                ``used``, and its weights are others now.
        """
        manifest, name = self.manifest(), str(folder.relative_to(self.root))
        students, found = manifest.setdefault("students", {}), _student_record(folder)
        if used and name in students and students[name]["sha256"] != found["sha256"]:
            raise ValueError(
                f"{folder} was missing, and training it again gave other weights than those that "
                "later files of the run come from (on another machine, or with other versions or "
                "threads); give another output_dir"
            )
        if found.items() <= students.get(name, {}).items():  # its digests are of when it was saved
            return
        digests = {file: file_digest(folder / file) for file in found["files"] if file != STATE}
        students[name] = {**found, "digests": digests}
        write_json(self.manifest_path, manifest)

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

    def add_engine(self, role: str, identity: str) -> None:
        """Record in the manifest, once, that an engine has run a role's model in this run.

        Numbers of two engines differ by their rounding. They are never mixed within a prompt, and
        every row says which engine gave them.
        """
        if not self.manifest_path.exists():
            return
        manifest = self.manifest()
        engines = manifest.get("engines", {})
        known = engines.get(role, [])
        if identity not in known:
            if known:
                logger.warning(
                    "the %s was run by %s, and now it is by %s: the rows say which gave them",
                    role,
                    known[-1],
                    identity,
                )
            engines = {**engines, role: [*known, identity]}
            write_json(self.manifest_path, {**manifest, "engines": engines})

    def choose(self, name: str, value: float | None) -> None:
        """Record in the manifest what the run chose for a setting that was left open."""
        manifest = self.manifest()
        chosen = {**manifest.get("chosen", {}), name: value}
        if chosen != manifest.get("chosen"):
            write_json(self.manifest_path, {**manifest, "chosen": chosen})

    def finished(self, phase: str) -> None:
        """Record a finished phase in the manifest, which shows whether its files were lost."""
        manifest = self.manifest()
        if manifest["phases"].get(phase) != "finished":
            manifest["phases"][phase] = "finished"
            write_json(self.manifest_path, manifest)


def _student_record(folder: Path) -> Row:
    """The files of a student, and a hash of those with weights."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in UNREAD)
    weights = [folder / name for name in names if name.endswith(WEIGHTS)]
    return {"files": names, "sha256": ends_hash(weights)}
