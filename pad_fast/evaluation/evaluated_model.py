"""What one model is evaluated on: the record that every metric of the catalogue reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pad_fast.evaluation.agreement import ranking_agreement
from pad_fast.evaluation.answers import RULES
from pad_fast.files.stored_rows import Row

PROMPTS_AT_A_TIME = 4096  # whose pairs of responses are compared together
Rewards = Sequence[Sequence[float | None]]  # (P, N); None for a response that is not scored


@dataclass(frozen=True)
class RewardPair:
    """The student's and the teacher's rewards of the same responses, (P, N) each."""

    student: Rewards
    teacher: Rewards

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both as float64 (P, N), and the mask of the responses that the teacher could score."""
        teacher = _tensor(self.teacher)
        return _tensor(self.student), teacher, ~teacher.isnan()

    def parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """:attr:`tensors` of :data:`PROMPTS_AT_A_TIME` prompts at a time."""
        yield from zip(*(each.split(PROMPTS_AT_A_TIME) for each in self.tensors), strict=True)

    @cached_property
    def _by_prompt(self) -> dict[str, Tensor]:
        found = [ranking_agreement(*part, reduction="none") for part in self.parts()]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def agreement(self, name: str) -> float | None:
        """The mean of a number of :func:`ranking_agreement`; None if no prompt counts."""
        return mean(value for value in self.by_prompt(name) if not math.isnan(value))

    def by_prompt(self, name: str) -> list[float]:
        """A number of :func:`ranking_agreement` for each prompt; NaN for one that has none."""
        found: list[float] = self._by_prompt[name].tolist()
        return found

    def taus(self) -> list[float]:
        """Kendall's tau-b of each prompt that the teacher ranks."""
        return [tau for tau in self.by_prompt("kendall_tau") if not math.isnan(tau)]


@dataclass(frozen=True)
class Evaluated:
    """One model's responses to the held-out prompts, and the rewards of responses.

    Args:
        greedy: a row for each prompt with its one greedy response: ``completions``,
            ``completion_ids``, ``answer`` and ``skill``, the last two may be None.
        sampled: the same for the model's own samples, with several responses each.
        sampling: what the sampling of these logged, such as ``completions/clipped_ratio``.
        fixed: rewards of the fixed groups, which are the base student's samples; None for the
            teacher. Equal responses are ranked as often as the training counts them: with
            ``repeats: once`` the teacher's reward of all but the first is None.
        fresh: rewards of ``sampled``, likewise; None for the teacher.
        losses: the configured loss of each fixed group, None for a group that has none.
        judged: the teacher's rewards of ``sampled``, each draw's; empty where it gave none.
        rule: by which responses are right, a key of :data:`pad_fast.evaluation.answers.RULES`.
    """

    greedy: Sequence[Row]
    sampled: Sequence[Row]
    sampling: Mapping[str, float] = field(default_factory=dict)
    fixed: RewardPair | None = None
    fresh: RewardPair | None = None
    losses: Sequence[float | None] = ()
    judged: Rewards = ()
    rule: str = "exact"

    def skills(self) -> dict[str, list[int]]:
        """The places of each skill's prompts, of the skills of which a prompt has an answer."""
        places: dict[str, list[int]] = {}
        answered = set()
        for place, row in enumerate(self.greedy):
            if row["skill"] is not None:
                places.setdefault(row["skill"], []).append(place)
                answered |= {row["skill"]} if _has_answer(row) else set()
        return {skill: places[skill] for skill in sorted(answered)}

    def teacher_rewards(self) -> Iterator[float | None]:
        """The teacher's mean reward of each prompt's samples; None where it could read none."""
        for group in self.judged:
            yield mean(value for value in group if value is not None)


def accuracy_by_prompt(rows: Iterable[Row], rule: str = "exact") -> Iterator[float | None]:
    """The share of each prompt's responses that are right; None for one without an answer."""
    is_right = RULES[rule].is_right
    for row in rows:
        texts = row["completions"] if _has_answer(row) else []
        yield mean(float(is_right(text, row["answer"])) for text in texts)


def mean(values: Iterable[float]) -> float | None:
    """The mean; None if there are no values."""
    numbers = np.fromiter(values, np.float64)
    return math.fsum(numbers) / len(numbers) if len(numbers) else None


def _has_answer(row: Row) -> bool:
    return row["answer"] is not None


def _tensor(rewards: Rewards) -> Tensor:
    """(P, N), N being the most responses of a prompt; NaN where there is no reward."""
    found = np.full((len(rewards), max(map(len, rewards), default=0)), np.nan)
    for place, group in enumerate(rewards):
        found[place, : len(group)] = np.array(group, dtype=np.float64)  # None becomes NaN
    return torch.from_numpy(found)
