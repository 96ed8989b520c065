"""The losses and the divergences that there are: one table, over which everything else iterates.

A :class:`Loss` is what a user names as ``loss``; its :class:`Kind` is what is computed for a group.
To add a loss, write its function of rewards and an entry of :data:`LOSSES`. An option that no loss
has yet is also a field of :class:`pad_fast.losses.LossOptions` and of ``PADConfig``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.preference import exact_jsd, exact_kl, list_mle, sampled_rankings
from pad_fast.preference.plackett_luce import LN2, RankingOptions, Result

COMMON_OPTIONS = ("beta", "group_size", "group_reduction", "reduction", "check_finite")
SATURATION_SHARE = 0.95  # the share of a loss's upper bound above which its gradient is negligible

Exact = Callable[[Tensor, Tensor, RankingOptions], Result]
Sampled = Callable[[Tensor, Tensor, RankingOptions, torch.Generator], Result]


@dataclass(frozen=True)
class Kind:
    """What a loss computes for a group of responses.

    Args:
        name: the name of the kind. A divergence is named so by the user.
        exact: student and teacher rewards (G, n) -> losses (G,) and their gradient (G, n) in the
            student's rewards. :func:`by_autograd` makes one of a differentiable function.
        sampled: the same, estimated from sampled rankings; None if that is not needed.
        auto_exact: the largest n for which method="auto" takes ``exact``; None for any n.
        max_exact: the largest n for which method="exact" does; None for any n.
        upper_bound: the largest value of the loss, in nats; None if there is none.
    """

    name: str
    exact: Exact
    sampled: Sampled | None = None
    auto_exact: int | None = None
    max_exact: int | None = None
    upper_bound: float | None = None

    def is_exact(self, method: str, n: int) -> bool:
        """Whether ``method`` computes groups of ``n`` responses exactly."""
        if self.sampled is None or method == "exact":
            return True
        return method == "auto" and (self.auto_exact is None or n <= self.auto_exact)

    def check_exact(self, method: str, n: int) -> None:
        """Raise ValueError if ``method`` is "exact" and ``n`` responses have too many rankings."""
        if method == "exact" and self.max_exact is not None and n > self.max_exact:
            raise ValueError(
                f"method='exact' takes at most {self.max_exact} responses a group for "
                f"divergence={self.name!r}, got {n}; set group_size, or take method='sampled'"
            )

    @property
    def saturation(self) -> float | None:
        """The loss above which its gradient is negligible; None if the loss has no upper bound."""
        return None if self.upper_bound is None else SATURATION_SHARE * self.upper_bound


@dataclass(frozen=True)
class Loss:
    """A loss under the name that a user gives it.

    Args:
        name: the value of ``loss``.
        title: its name in prose.
        help: what it does, for the command line.
        kinds: the divergences to choose from, the default first; one kind for a loss without
            divergences.
        own_options: the options that it has in addition to :data:`COMMON_OPTIONS`.
    """

    name: str
    title: str
    help: str
    kinds: tuple[Kind, ...]
    own_options: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The names of all options."""
        return (*COMMON_OPTIONS, *self.own_options)

    @property
    def divergences(self) -> tuple[str, ...]:
        """The values of ``divergence``, the default first; empty for a loss without that option."""
        has_choice = "divergence" in self.own_options
        return tuple(kind.name for kind in self.kinds) if has_choice else ()

    def kind(self, divergence: str | None = None) -> Kind:
        """The kind of a divergence, None for the default. A loss without divergences has one kind.

        Raises ValueError for a divergence that the loss does not have.
        """
        if divergence is None or not self.divergences:
            return self.kinds[0]
        for kind in self.kinds:
            if kind.name == divergence:
                return kind
        choices = ", ".join(self.divergences)
        raise ValueError(f"divergence must be one of {choices}, got {divergence!r}")


JSD = Kind(
    "jsd",
    exact_jsd.exact_jsd,
    sampled_rankings.sampled_jsd,
    auto_exact=8,
    max_exact=10,  # 3.6 million rankings a group
    upper_bound=LN2,
)
KL = Kind(
    "kl",
    exact_kl.exact_kl,
    sampled_rankings.sampled_kl,
    auto_exact=16,
    max_exact=16,
)
REVERSE_KL = Kind(
    "reverse_kl",
    exact_kl.exact_reverse_kl,
    sampled_rankings.sampled_reverse_kl,
    auto_exact=16,
    max_exact=16,
)

LOSSES: dict[str, Loss] = {
    "ppd": Loss(
        "ppd",
        title="probabilistic (PPD)",
        help="match the teacher's distribution over rankings",
        kinds=(JSD, KL, REVERSE_KL),
        own_options=("teacher_beta", "divergence", "method", "num_samples", "seed"),
    ),
    "vpd": Loss(
        "vpd",
        title="vanilla (VPD)",
        help="maximise the likelihood of the teacher's ranking",
        kinds=(Kind("vpd", list_mle.list_mle),),
    ),
}


def all_kinds() -> dict[str, Kind]:
    """The kinds of all losses by name, as :data:`LOSSES` is at the moment."""
    return {kind.name: kind for loss in LOSSES.values() for kind in loss.kinds}


def by_autograd(function: Callable[[Tensor, Tensor, RankingOptions], Tensor]) -> Exact:
    """A :attr:`Kind.exact` from a differentiable function of rewards, (G, n), (G, n) -> (G,)."""

    def exact(student: Tensor, teacher: Tensor, options: RankingOptions) -> Result:
        def total(rewards: Tensor) -> tuple[Tensor, Tensor]:
            losses = function(rewards, teacher, options)
            return losses.sum(), losses

        # The op runs below autograd, where torch.func still differentiates.
        gradient, losses = torch.func.grad(total, has_aux=True)(student)
        return losses.clone(), gradient.contiguous()

    return exact
