"""How long each kind of work takes, by the rates of a device; trials.py measures it instead.

Every operation of a step on fake tensors takes the longest of three times: its products at the rate
of a plain product, its bytes at the rate of a copy, and the time in which an operation is started.
"""

from __future__ import annotations

from typing import Any, Protocol

from pad_fast.footprint.meter import Footprint
from pad_fast.footprint.steps import GroupShape
from pad_fast.pipeline.batch_sizes import held_bytes
from pad_fast.pipeline.data_types import AUTO, stored_dtype
from pad_fast.plan.case import Case
from pad_fast.plan.peaks import Peaks
from pad_fast.plan.work import STUDENT

# Bytes that AdamW reads and writes for each byte of trained weights: gradient, weight and both
# moments are read, and all but the gradient are written.
ADAM_TRAFFIC = 7


class Speeds(Protocol):
    """Seconds of work on one device, for prompts and responses of typical length."""

    def sampling(self, role: str, n: int, prompts: int) -> tuple[float, float]:
        """Reading a batch of so many prompts for ``n`` responses each, and every further token."""

    def scoring(self, role: str, n: int, prompts: int) -> float:
        """The log-probabilities of ``n`` responses to each of a batch of prompts."""

    def trying(self, role: str, n: int, prompts: int) -> float:
        """The check of the output head and the trial of layouts before a model's first scores."""

    def asking(self, n: int, questions: int) -> float:
        """A batch of questions about ``n`` responses."""

    def micro_batch(self, settings: dict[str, Any]) -> float:
        """Forward and backward of a micro-batch."""

    def step(self, settings: dict[str, Any]) -> float:
        """What a step takes beside its micro-batches, such as the optimizer."""

    def answers(self, prompts: int) -> float:
        """A step on answers of the teacher, one to each of so many prompts."""

    def loading(self, role: str) -> float:
        """Reading a model's weights."""


class Roofline:
    """See :class:`Speeds`.

    Args:
        case: what is planned.
        peaks: whose footprints are timed.
        longest: take training steps of the longest prompts, whose peaks are counted in any case,
            where times are only compared with one another.
    """

    def __init__(self, case: Case, peaks: Peaks, *, longest: bool = False) -> None:
        self.case, self.peaks, self.machine, self.longest = case, peaks, case.machine, longest

    def sampling(self, role: str, n: int, prompts: int) -> tuple[float, float]:
        """See :class:`Speeds`. On average over the tokens the cache is half full."""
        rows, mean = prompts * max(1, n), self.case.lengths[role].mean
        first, _ = self.peaks.sampled(role, GroupShape(mean, 1, rows))
        # A cache of so many tokens is that of a response which is twice as long at its middle.
        half = max(1, self.case.config.max_new_tokens // 2)
        _, token = self.peaks.sampled(role, GroupShape(mean, half, rows))
        return self._seconds(first, role), self._seconds(token, role)

    def scoring(self, role: str, n: int, prompts: int) -> float:
        """See :class:`Speeds`."""
        shape = GroupShape(self.case.lengths[role].mean, self.case.response, n)
        reading = self.case.reading(role, self.case.shares)
        whole = prompts * n * (shape.prompt + shape.response)
        return self._seconds(self.peaks.scored(role, prompts, shape, whole, reading), role)

    def trying(self, role: str, n: int, prompts: int) -> float:
        """See :class:`Speeds`: two short groups are read in two layouts."""
        return 2 * self.scoring(role, n, 1)

    def asking(self, n: int, questions: int) -> float:
        """See :class:`Speeds`."""
        mean = self.case.lengths["teacher"].mean
        tokens, _ = self.case.question_tokens(n, mean, self.case.response)
        reading = self.case.reading("teacher", False)
        shape = GroupShape(tokens, 1, 1)
        found = self.peaks.scored("teacher", questions, shape, questions * (tokens + 1), reading)
        return self._seconds(found, "teacher")

    def micro_batch(self, settings: dict[str, Any]) -> float:
        """See :class:`Speeds`."""
        lengths = self.case.lengths[STUDENT]
        shape = self.case.shape(lengths.mean, self.case.response)
        if self.longest:
            shape = self.case.shape(lengths.longest)
        return self._seconds(self.peaks.trained(settings, shape), None)

    def step(self, settings: dict[str, Any]) -> float:
        """See :class:`Speeds`."""
        return ADAM_TRAFFIC * self.peaks.held.gradients / self.machine.bandwidth

    def answers(self, prompts: int) -> float:
        """See :class:`Speeds`: a step on pairs of a prompt and one response."""
        settings = self.case.train_settings
        n = self.case.config.responses_per_prompt
        share = prompts / (settings["per_device_train_batch_size"] * n)
        return share * self.micro_batch({**settings, "share_prefix": False}) + self.step(settings)

    def loading(self, role: str) -> float:
        """See :class:`Speeds`."""
        checkpoint = self.case.model(role)
        stored = held_bytes(checkpoint, stored_dtype(checkpoint, AUTO))
        return self.machine.loading(stored)

    def _seconds(self, found: Footprint, role: str | None) -> float:
        dtype = None if role is None else self.case.dtype(role)
        return self.machine.time_of(found.operations, dtype)
