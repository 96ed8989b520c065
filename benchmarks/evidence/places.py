"""Where the methods of one setting start for a base student and a seed, and what they read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.evidence.cells import STEPS, TOKENS, TUNE, Cell
from benchmarks.evidence.measures import Examination
from benchmarks.evidence.methods import METHODS, REFERENCE, Method, training_rows
from benchmarks.evidence.pools import Pool
from benchmarks.evidence.settings import SETTINGS, Setting, Size
from benchmarks.evidence.training import Plan, Trained, reading, train
from benchmarks.evidence.worlds import World
from pad_fast.files.stored_rows import Row


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
        return place_folder(self.root, self.size.name, self.setting_name, self.student, self.seed)

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


def place_folder(root: Path, size: str, setting: str, student: int, seed: int) -> Path:
    """The folder of a setting, student and seed within the study's."""
    return root / size / setting / f"{student}-{seed}"
