"""The options of all losses, and the numbers that an operation on rewards takes of them."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast import argument_checks
from pad_fast.preference.likelihood import LIKELIHOODS
from pad_fast.preference.plackett_luce import RankingOptions

METHODS = ("auto", "exact", "sampled")
GROUP_REDUCTIONS = ("mean", "sum")
REDUCTIONS = ("mean", "sum", "none")
PAIRS = ("best_worst", "all")
MIN_SAMPLES = 4  # two draws from each side: the estimators compare a draw with the others


@dataclass(frozen=True)
class LossOptions:
    """The options of all losses, with their defaults; each loss names those that it has.

    Raises:
        ValueError: a value is out of its range.
    """

    beta: float = 10.0
    teacher_beta: float | None = None  # None: beta
    divergence: str | None = None  # None: the first of the loss
    method: str = "auto"
    num_samples: int = 256
    seed: int = 0
    gamma: float = 0.0
    pairs: str = "best_worst"
    group_size: int | None = None
    group_reduction: str = "mean"
    preference_weight: float = 1.0
    likelihood_weight: float | None = None  # None: that of the loss's source, mostly 0
    likelihood_on: str = "best"
    likelihood_beta: float = 10.0
    reduction: str = "mean"
    check_finite: bool | None = None  # None: where that does not wait for a device

    def __post_init__(self) -> None:
        for name, choices in (
            ("method", METHODS),
            ("pairs", PAIRS),
            ("group_reduction", GROUP_REDUCTIONS),
            ("likelihood_on", LIKELIHOODS),
            ("reduction", REDUCTIONS),
        ):
            argument_checks.check_choice(name, getattr(self, name), choices)
        for name, value in (
            ("beta", self.beta),
            ("teacher_beta", self.teacher_scale),
            ("likelihood_beta", self.likelihood_beta),
        ):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive finite number, got {value}")
        for name, value in (
            ("gamma", self.gamma),
            ("preference_weight", self.preference_weight),
            ("likelihood_weight", self.likelihood_weight or 0.0),
        ):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        if self.num_samples < MIN_SAMPLES:
            raise ValueError(f"num_samples must be at least {MIN_SAMPLES}, got {self.num_samples}")
        if not -(2**63) <= self.seed < 2**63:
            limits = "from -2**63 to 2**63 - 1"
            raise ValueError(f"seed must be an integer of 64 bits, {limits}, got {self.seed}")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size must be None or at least 2, got {self.group_size}")

    @property
    def teacher_scale(self) -> float:
        """The factor of the teacher's rewards."""
        return self.beta if self.teacher_beta is None else self.teacher_beta

    def of_rankings(self) -> RankingOptions:
        """The numbers that the op takes."""
        return RankingOptions(
            float(self.beta),
            float(self.teacher_scale),
            self.num_samples,
            int(self.seed),
            float(self.gamma),
            self.pairs,
        )
