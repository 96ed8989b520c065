"""Doing the cells that have no record yet."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks import records
from benchmarks.evidence.cells import TEST, TUNE, Cell, cells, key_of, tuning
from benchmarks.evidence.measures import means, score
from benchmarks.evidence.methods import BASE, METHODS
from benchmarks.evidence.places import Place, place_folder
from benchmarks.evidence.pools import is_scored
from benchmarks.evidence.settings import SETTINGS, Size
from benchmarks.evidence.training import Reading, reading
from benchmarks.machine import describe
from benchmarks.records import Record

SAMPLES_SEED = 1000  # all students are sampled with the same seed
WAIT = 2.0  # seconds until the next look at what other processes did
DIGITS = 4  # numbers in records are rounded to this many


@dataclass
class Study:
    """The cells of one size, their files, and their records.

    Args:
        size: which cells there are.
        folder: students, pools and trained students are kept here.
        results: folder of the file ``evidence.jsonl``, which is only added to.
        only: names of settings whose cells are done, and what tunes them; None for all.
    """

    size: Size
    folder: Path
    results: Path
    only: Sequence[str] | None = None
    known: dict[tuple, Record] = field(init=False)
    _places: dict[tuple, Place] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._read_records()

    @property
    def todo(self) -> list[Cell]:
        """The cells without a record, in the order of worth."""
        return [
            cell
            for cell in cells(self.size)
            if cell.key not in self.known and self._is_wanted(cell)
        ]

    def _is_wanted(self, cell: Cell) -> bool:
        if self.only is None or cell.setting in self.only:
            return True
        tuned_in = (SETTINGS[name].tuned_in for name in self.only)
        return cell.purpose == TUNE and cell.setting in tuned_in

    def run(self, hours: float | None = None) -> Iterator[Record]:
        """Do cells until none is left, or none may begin any more; yields each new record.

        Several processes may do this at a time with the same folders: each does the next cell
        that no other one is doing.

        Args:
            hours: after which no further cell begins; None for no limit.
        """
        end = None if hours is None else time.monotonic() + 3600 * hours
        about = {"run": records.now(), **describe(torch.device("cpu"))}
        while todo := self.todo:
            for cell in todo:
                if end is not None and time.monotonic() >= end:
                    return
                with contextlib.suppress(Timeout), self._claim(cell):
                    self._read_records()
                    if cell.key in self.known or not self._is_tuned(cell):
                        continue
                    record = {**about, "cell": dataclasses.asdict(cell), **self._do(cell)}
                    self._add(cell, record)
                    yield record
                    break  # what comes first may have become possible
            else:
                time.sleep(WAIT)  # others do all that is left, or what it waits for
                self._read_records()

    def recount(self) -> int:
        """Count again what trainings read, where the groups are there; the number of records.

        For records of code that counted otherwise; ``recounted`` names the commit whose code did
        it. Of several rounds only the first one's groups are kept: their records stay as they are.
        """
        found, commit = 0, describe(torch.device("cpu"))["commit"]
        every = records.load(self.results, "evidence")
        known: dict[tuple, Reading] = {}  # the same at every point of the grid
        for record in every:
            cell = Cell(**record["cell"])
            if cell.size != self.size.name or cell.method == BASE:
                continue
            place = place_folder(self.folder, cell.size, cell.setting, cell.student, cell.seed)
            if SETTINGS[cell.setting].rounds > 1 or not is_scored(place / "pool"):
                continue
            key = (cell.setting, cell.student, cell.seed, cell.method)
            if key not in known:
                at, method = self._place(cell), METHODS[cell.method]
                known[key] = reading(method, at.rows_of(method, at.pool))
            tokens = round(record["steps"] * self.size.batch * known[key].tokens)
            counted = {"tokens": tokens, **_read(known[key])}
            if not counted.items() <= record.items():
                record |= counted | {"recounted": commit}
                found += 1
        records.rewrite(self.results, "evidence", every)
        return found

    def _read_records(self) -> None:
        self.known = {key_of(record): record for record in records.load(self.results, "evidence")}

    def _claim(self, cell: Cell) -> FileLock:
        """What the process that does a cell holds; it is free when that process ends."""
        name = hashlib.sha256(repr(cell.key).encode()).hexdigest()[:16]
        (self.folder / "claims").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "claims" / f"{name}.lock", timeout=0)

    def _is_tuned(self, cell: Cell) -> bool:
        """Whether all that chooses a cell's learning rate and beta has a record."""
        if cell.method == BASE or cell.purpose == TUNE:
            return True
        return all(other.key in self.known for other in tuning(cell, self.size))

    def _add(self, cell: Cell, record: Record) -> None:
        with FileLock(self.folder / "claims" / "records.lock"):
            records.append(records.path(self.results, "evidence"), record)
        self.known[cell.key] = record

    def _do(self, cell: Cell) -> Record:
        """What a record says of a cell, beside when and where it was made."""
        place, began = self._place(cell), time.perf_counter()
        if cell.method == BASE:
            found: dict[str, Any] = {}
            student = place.start
        else:
            rate, beta = self._point(cell)
            trained = place.train(cell, rate, beta)
            student = trained[-1].folder
            found = {
                "learning_rate": rate,
                "beta": beta,
                "steps": sum(part.steps for part in trained),
                "tokens": sum(part.tokens for part in trained),
                **_read(trained[-1].reading),
                "train_seconds": round(sum(part.seconds for part in trained), 2),
                "loss": trained[-1].loss,
            }
        examination = place.validation if cell.purpose == TUNE else place.heldout
        values = examination.measure(student, SAMPLES_SEED, cell.temperature)
        tuned = score(values, place.world.tuned_by)
        found |= {"means": _rounded(means(values)), "score": round(tuned, DIGITS)}
        if cell.purpose == TEST:
            found["prompts"] = {name: _shortened(series) for name, series in values.items()}
            if place.world.examples:
                found["examples"] = examination.examples(student, place.world.examples)
        if cell.method != BASE:
            shutil.rmtree(place.folder_of(cell), ignore_errors=True)
        return {**found, "seconds": round(time.perf_counter() - began, 2)}

    def _point(self, cell: Cell) -> tuple[float, float | None]:
        """Learning rate and beta: the cell's own, or the best on the validation prompts."""
        if cell.learning_rate is not None:
            return cell.learning_rate, cell.beta
        tried = tuning(cell, self.size)
        best = max(tried, key=lambda other: self.known[other.key]["score"])
        assert best.learning_rate is not None
        return best.learning_rate, best.beta

    def _place(self, cell: Cell) -> Place:
        key = (cell.setting, cell.student, cell.seed)
        if key not in self._places:
            self._places.clear()  # the groups of one place at a time are held in memory
            self._places[key] = Place(self.folder, self.size, *key)
        return self._places[key]


def _read(read: Reading) -> Record:
    """What a record says of a training's reading, beside its tokens."""
    return {
        "prompts_read": round(read.prompts, DIGITS),
        "answer_weight": read.answer_weight and round(read.answer_weight, DIGITS),
    }


def _shortened(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is None else round(value, DIGITS) for value in values]


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return dict(zip(values, _shortened(list(values.values())), strict=True))
