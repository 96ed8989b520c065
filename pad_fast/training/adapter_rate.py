"""Learning rates where none is given: of full training, and of a low-rank adapter."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

logger = logging.getLogger("pad_fast")

FULL_RATE = 8e-7  # the paper's
ADAPTER_RATE = 8e-6  # ten times it; TRL's dpo.py has 5e-7 for all weights, and 5e-6 for an adapter
LEAST = 5e-6  # below it, an adapter hardly moves
TAKE = "take about ten times the rate of full training, such as 8e-6, the default with use_peft"


def is_small(rate: float) -> bool:
    """Whether a rate is one for all weights, at which an adapter hardly moves."""
    return rate < LEAST


def warn_of_small_rate(model: Any, rate: float) -> None:
    """Warn once if a model's adapter would be trained at a rate for all weights."""
    if hasattr(model, "peft_config") and is_small(rate):
        _warn(rate)


@cache
def _warn(rate: float) -> None:
    logger.warning("learning_rate: at %g an adapter hardly moves: %s", rate, TAKE)
