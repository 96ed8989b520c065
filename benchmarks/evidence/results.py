"""The records of a setting by method and run, and those that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.evidence.cells import STEPS, TEST, TOKENS
from benchmarks.evidence.methods import BASE, METHODS, REFERENCE, WHOLE_GROUP
from benchmarks.evidence.settings import Setting, Size
from benchmarks.evidence.statistics import Pair, Runs
from benchmarks.records import Record

SCORES = ("greedy_right", "sampled_right")
BY_TEACHER = ("greedy_teacher", "sampled_teacher")  # where no code says what is right
NO_ANSWERS_REFERENCE = "rft"  # what others are compared with where the teacher only scores


@dataclass(frozen=True)
class Results:
    """The records of one setting at one size.

    Args:
        size, setting: whose.
        records: all of the study.
    """

    size: Size
    setting: Setting
    records: Sequence[Record]

    def of(self, method: str, budget: str, temperature: float = 1.0) -> dict[Pair, Record]:
        """The test records of a method by student and seed.

        A method that reads whole groups reads the equal tokens in the equal steps, nearly: see
        :func:`share_of_tokens`. A bound does not compete there.
        """
        if method != BASE and METHODS[method].is_bound and budget == TOKENS:
            return {}
        if method == BASE or METHODS[method].reads in WHOLE_GROUP:
            budget = STEPS
        return self._tests.get((method, budget, temperature), {})

    @cached_property
    def _tests(self) -> dict[tuple[str, str, float], dict[Pair, Record]]:
        """The test records of the setting, by method, budget and temperature."""
        wanted = (self.size.name, self.setting.shares or self.setting.name, TEST)
        found: dict[tuple[str, str, float], dict[Pair, Record]] = {}
        for record in self.records:
            cell = record["cell"]
            if (cell["size"], cell["setting"], cell["purpose"]) == wanted:
                key = cell["method"], cell["budget"], cell["temperature"]
                found.setdefault(key, {})[cell["student"], cell["seed"]] = record
        return {key: dict(sorted(runs.items())) for key, runs in found.items()}

    @property
    def names(self) -> list[str]:
        """The methods that the setting has at this size, whether they have run or not."""
        return self.size.method_names(self.setting)

    def methods(self, budget: str) -> list[str]:
        """The untrained student and the methods that have records."""
        return [name for name in (BASE, *self.names) if self.of(name, budget)]

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return REFERENCE if REFERENCE in self.names else NO_ANSWERS_REFERENCE


def common(
    first: dict[Pair, Record], second: dict[Pair, Record]
) -> tuple[dict[Pair, Record], dict[Pair, Record]]:
    """The records of the runs that both have, in the same order."""
    pairs = [pair for pair in first if pair in second]
    return {pair: first[pair] for pair in pairs}, {pair: second[pair] for pair in pairs}


def matrix(records: dict[Pair, Record], name: str) -> Runs | None:
    """A measure of some runs; None if the records lack it."""
    series = [record["prompts"].get(name) for record in records.values()]
    if not series or any(values is None for values in series):
        return None
    values = np.array([[np.nan if v is None else v for v in prompts] for prompts in series])
    return Runs(values, tuple(records))


def comparable(results: Results, budget: str) -> dict[str, dict[Pair, Record]]:
    """The records of the runs that all methods have which have half of the most runs or more.

    A mean over fewer runs would be one of other students, some of which are easier than others.
    Bounds are not among them.
    """
    names = [name for name in results.methods(budget) if name == BASE or not METHODS[name].is_bound]
    found = {name: results.of(name, budget) for name in names}
    most = max(map(len, found.values()), default=0)
    kept = {name: runs for name, runs in found.items() if 2 * len(runs) >= most}
    shared = set.intersection(*(set(runs) for runs in kept.values())) if kept else set()
    if not shared:
        return {}
    return {
        name: {pair: record for pair, record in runs.items() if pair in shared}
        for name, runs in kept.items()
    }


def scores_of(setting: Setting) -> tuple[str, ...]:
    """The measures by which a setting's methods are judged."""
    return BY_TEACHER if setting.world.grade is None else SCORES


def share_of_tokens(results: Results, method: str) -> float | None:
    """The tokens that a method reads in its steps, as a share of those of equal tokens.

    Those are PPD's. A likelihood reads prompts too whose responses are all equal, which PPD leaves
    out for others with more to read, so that it reads fewer tokens in the same steps.
    """
    parts = common(results.of(method, TOKENS), results.of("ppd_kl", STEPS))
    read, budget = (sum(record.get("tokens", 0) for record in part.values()) for part in parts)
    return read / budget if read and budget else None
