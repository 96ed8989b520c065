"""Whether the best responses become less likely over a training, which a ranking loss allows."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

logger = logging.getLogger("pad_fast")

STANDARD_ERRORS = 3.0  # how far apart two means must be to differ by more than chance
HINT = (
    "the log-probability of the responses that the teacher likes best fell from %.3f to %.3f nats "
    "per token over the training: the loss only compares responses, and poor ones are pushed down "
    "together with good ones. A likelihood_weight above 0 (about 10 times beta for "
    "likelihood_on=best), or a smaller learning rate, holds them up."
)


@dataclass(frozen=True)
class Mean:
    """A mean over prompts, with its squared standard error."""

    value: float
    variance: float

    @classmethod
    def of(cls, values: Tensor) -> Mean | None:
        """The mean of the values that are not NaN; None with fewer than two of them."""
        values = values[~values.isnan()].double()
        if len(values) < 2:
            return None
        return cls(values.mean().item(), values.var().item() / len(values))


class LikelihoodWatch:
    """Compares each window of a training's log with the first, and warns once.

    A fall counts if it is more than three standard errors of the difference of the two means.
    """

    def __init__(self) -> None:
        self.first: Mean | None = None
        self.warned = False

    def add(self, logps: Tensor) -> None:
        """Take the log-probabilities of the best responses of a window, one for each prompt."""
        now = Mean.of(logps)
        if now is None:
            return
        if self.first is None:
            self.first = now
            return
        error = math.sqrt(self.first.variance + now.variance)
        if not self.warned and self.first.value - now.value > STANDARD_ERRORS * error:
            self.warned = True
            logger.warning(HINT, self.first.value, now.value)

    def state(self) -> dict[str, Any]:
        """What a resumed training needs, as JSON holds it."""
        first = None if self.first is None else [self.first.value, self.first.variance]
        return {"first": first, "warned": self.warned}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.first = None if state["first"] is None else Mean(*state["first"])
        self.warned = state["warned"]
