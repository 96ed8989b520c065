"""Doing the cells that have no record yet."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks import records
from benchmarks.evidence.cells import STEPS, TEST, TOKENS, TUNE, Cell, cells, key_of, tuning
from benchmarks.evidence.measures import Examination, means, score
from benchmarks.evidence.methods import BASE, METHODS, REFERENCE, Method, training_rows
from benchmarks.evidence.pools import Pool, is_scored
from benchmarks.evidence.settings import SETTINGS, Setting, Size
from benchmarks.evidence.training import Plan, Reading, Trained, reading, train
from benchmarks.evidence.worlds import World
from benchmarks.machine import describe
from benchmarks.records import Record
from pad_fast.files.stored_rows import Row

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
            pool = folder_of(self.folder, cell.size, cell.setting, cell.student, cell.seed) / "pool"
            if SETTINGS[cell.setting].rounds > 1 or not is_scored(pool):
                continue
            key = (cell.setting, cell.student, cell.seed, cell.method)
            if key not in known:
                place, method = self._place(cell), METHODS[cell.method]
                known[key] = reading(method, place.rows_of(method, place.pool))
            read = known[key]
            tokens = round(record["steps"] * self.size.batch * read.tokens)
            if {**record, "tokens": tokens, **_read(read)} != record:
                record |= {"tokens": tokens, **_read(read), "recounted": commit}
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


@dataclass
class Place:
    """One setting with one base student and seed: where its methods start, and what they read.

    Args:
        root: folder of the study.
        size: of the study.
        setting_name: of :data:`SETTINGS`.
        student, seed: of the run.
    """

    root: Path
    size: Size
    setting_name: str
    student: int
    seed: int
    setting: Setting = field(init=False)
    start: Path = field(init=False)
    world: World = field(init=False)
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        self.setting = SETTINGS[self.setting_name]
        self.world = self.setting.world
        base = self.world.student(self.root, self.student, self.setting.width)
        self.start = self._saturated(base) if self.setting.saturated else base
        changes = dict(self.setting.pool)
        if self.setting.rounds > 1:
            changes["num_generations"] = self.size.generations // self.setting.rounds
        # What the saturated student was trained on it answers as the teacher does, each time: such
        # groups have no two responses to compare.
        self.pool = self._pool(self.start, "pool", changes, unseen=self.setting.saturated)
        # The fixed groups, where the setting has samples of its own kind, are those of its pool.
        self.validation = Examination(self.pool, "validation")
        self.heldout = Examination(self.pool, "heldout")

    @property
    def folder(self) -> Path:
        """The folder of this setting, student and seed."""
        return folder_of(self.root, self.size.name, self.setting_name, self.student, self.seed)

    @property
    def teacher(self) -> Path:
        """The teacher's folder."""
        return self.world.teacher(self.root)

    def folder_of(self, cell: Cell) -> Path:
        """The folder of a cell's trained students."""
        point = f"{cell.purpose}-{cell.budget}-{cell.learning_rate}-{cell.beta}"
        return self.folder / f"{cell.method}-{point}"

    def rows_of(self, method: Method, pool: Pool) -> list[Row]:
        """What a method reads of a pool of this place."""
        return training_rows(method, pool.rows, self.setting.noise, self.seed)

    def train(self, cell: Cell, rate: float, beta: float | None) -> list[Trained]:
        """The student of each round; the pool of a later one is sampled from the one before."""
        method, rounds = METHODS[cell.method], self.setting.rounds
        folder, start, pool, done = self.folder_of(cell), self.start, self.pool, []
        shutil.rmtree(folder, ignore_errors=True)  # left by a study that was stopped
        for round in range(1, rounds + 1):
            rows = self.rows_of(method, pool)
            steps = self._steps(cell, method, rows) // rounds
            size, seed = self.size, self.seed + round - 1
            plan = Plan(max(1, steps), size.batch, rate, beta, seed, size.bf16)
            done.append(train(method, start, self.teacher, rows, plan, folder / f"round-{round}"))
            start = done[-1].folder
            if round < rounds:
                name = f"{folder.name}/pool-{round + 1}"
                pool = self._pool(start, name, self.pool.changes, self.pool.unseen)
        return done

    def _steps(self, cell: Cell, method: Method, rows: Sequence[dict]) -> int:
        """The optimizer steps of a cell; at equal tokens as many as read the whole groups' tokens.

        The tokens that others read are those of PPD over the student's own samples.
        """
        if cell.purpose == TUNE:
            return max(1, self.size.steps // 2)
        if cell.budget == STEPS:
            return self.size.steps
        assert cell.budget == TOKENS
        return round(self.size.steps * self._group_tokens / reading(method, rows).tokens)

    @cached_property
    def _group_tokens(self) -> float:
        """The tokens of a prompt that PPD reads, which are the same for all cells."""
        groups = METHODS["ppd_kl"]
        return reading(groups, training_rows(groups, self.pool.rows)).tokens

    def _pool(
        self, student: Path, name: str, changes: dict[str, Any], unseen: bool = False
    ) -> Pool:
        folder, size, seed = self.folder / name, self.size, self.seed
        return Pool(folder, self.world, self.root, student, size, seed, changes, unseen)

    def _saturated(self, base: Path) -> Path:
        """The base student after SeqKD for as many steps as the size says."""
        folder = self.folder / "saturated"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / "saturated.lock"):
            if not (folder / "done").exists():
                pool = self._pool(base, "start", {})
                method = METHODS[REFERENCE]
                plan = Plan(self.size.saturated_steps, self.size.batch, 1e-3, None, self.seed)
                rows = training_rows(method, pool.rows)
                train(method, base, self.teacher, rows, plan, folder)
                (folder / "done").touch()
        return folder


def folder_of(root: Path, size: str, setting: str, student: int, seed: int) -> Path:
    """The folder of a setting, student and seed within the study's."""
    return root / size / setting / f"{student}-{seed}"


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
