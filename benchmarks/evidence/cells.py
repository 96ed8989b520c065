"""The cells of the study: each is one training, or one look at an untrained student.

Their order is the order of worth, so that what is there when the time ends is the most useful part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.evidence.methods import BASE, METHODS, WHOLE_GROUP
from benchmarks.evidence.settings import MAIN, SETTINGS, Setting, Size
from benchmarks.records import Record

TUNE, TEST = "tune", "test"
STEPS, TOKENS = "steps", "tokens"
KEY = (
    "size", "setting", "student", "seed", "method", "purpose", "budget",
    "learning_rate", "beta", "temperature",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One entry of the study.

    Args:
        size, setting: names.
        student, seed: which base student, and the seed of its run.
        method: a name of METHODS, or "base" for the untrained student.
        purpose: "tune" measures a point of the grid on the validation prompts; "test" measures the
            best point on the held-out ones.
        budget: "steps": all methods take as many optimizer steps. "tokens": all read as many
            tokens, so that one that reads less of a group takes more steps.
        learning_rate, beta: of a point of the grid; None elsewhere.
        temperature: of the samples that are measured.
    """

    size: str
    setting: str
    student: int
    seed: int
    method: str
    purpose: str = TEST
    budget: str = STEPS
    learning_rate: float | None = None
    beta: float | None = None
    temperature: float = 1.0

    @property
    def key(self) -> tuple:
        """What tells it from other cells; also of its record, see :func:`key_of`."""
        return tuple(getattr(self, name) for name in KEY)

    @property
    def label(self) -> str:
        """The cell in a line."""
        point = "" if self.learning_rate is None else f" lr {self.learning_rate:g}"
        point += "" if self.beta is None else f" beta {self.beta:g}"
        point += f" T {self.temperature:g}" if self.method == BASE else ""
        return (
            f"{self.setting} student {self.student} seed {self.seed} · {self.method} · "
            f"{self.purpose}, equal {self.budget}{point}"
        )


def key_of(record: Record) -> tuple:
    """The key of the cell that made a record."""
    return tuple(record["cell"][name] for name in KEY)


def cells(size: Size) -> list[Cell]:
    """All cells of a size, in the order of worth.

    The main methods come first: in each setting with the first student and seed, then with the
    other ones. The variations of the group follow, and then the other methods, in the same order.
    """
    settings = [SETTINGS[name] for name in size.settings if SETTINGS[name].shares is None]
    pairs = list(itertools.product(size.seeds, size.students))
    found: list[Cell] = []
    for index, (seed, student) in enumerate(pairs):
        for setting in settings:
            if index < setting.pairs:
                found += _of_pair(size, setting, student, seed, tunes=index == 0)

    def stage(cell: Cell) -> tuple[bool, bool, bool]:
        is_first = (cell.seed, cell.student) == pairs[0]
        return cell.method not in (BASE, *MAIN), cell.setting.startswith("g-"), not is_first

    return sorted(found, key=stage)


def grid(size: Size, method: str) -> list[tuple[float, float | None]]:
    """The points of learning rate and beta that are tried for a method."""
    betas: tuple[float | None, ...] = size.betas if METHODS[method].has_beta else (None,)
    return list(itertools.product(size.learning_rates, betas))


def tuning(cell: Cell, size: Size) -> list[Cell]:
    """The cells among which the learning rate and beta of a cell are chosen."""
    return [
        dataclasses.replace(
            cell,
            setting=SETTINGS[cell.setting].tuned_in,
            student=size.students[0],
            seed=size.seeds[0],
            purpose=TUNE,
            budget=STEPS,
            learning_rate=rate,
            beta=beta,
        )
        for rate, beta in grid(size, cell.method)
    ]


def _of_pair(size: Size, setting: Setting, student: int, seed: int, tunes: bool) -> Iterator[Cell]:
    start = Cell(size.name, setting.name, student, seed, BASE)
    yield start
    names = size.method_names(setting)
    tunes = tunes and setting.tuned_in == setting.name
    for name in names:
        cell = dataclasses.replace(start, method=name)
        if tunes:
            yield from tuning(cell, size)
        yield cell
        if METHODS[name].reads not in WHOLE_GROUP:  # the others read the budget already
            yield dataclasses.replace(cell, budget=TOKENS)
        if setting.controls and name == names[0]:
            for temperature in size.temperatures[1:]:
                yield dataclasses.replace(start, temperature=temperature)
