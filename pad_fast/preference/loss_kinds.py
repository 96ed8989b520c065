"""The losses and the divergences that there are: one table, over which everything else iterates.

A :class:`Loss` is what a user names as ``loss``; its :class:`Kind` is what is computed for a group.
To add a loss, write its function of rewards and an entry of :data:`LOSSES`. Where an option goes
that no loss has yet is in the table of CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast.preference import exact_jsd, exact_kl, list_mle, neighbours, sampled_rankings
from pad_fast.preference.options import LossOptions
from pad_fast.preference.plackett_luce import LN2, RankingOptions, Result

COMMON_OPTIONS = (
    "beta",
    "group_size",
    "group_reduction",
    "preference_weight",
    "likelihood_weight",
    "likelihood_on",
    "likelihood_beta",
    "reduction",
    "check_finite",
)
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
        least: the fewest live responses of a group for which there is a loss.
    """

    name: str
    exact: Exact
    sampled: Sampled | None = None
    auto_exact: int | None = None
    max_exact: int | None = None
    upper_bound: float | None = None
    least: int = 2

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
        has_beta: whether the student's rewards have a factor.
        needs_anchor: whether it compares log-ratios to the model that the training started from.
        likelihood: the weight of the best response's likelihood that the loss's source adds, a
            function of the number of live responses (P,); None for no such term.
    """

    name: str
    title: str
    help: str
    kinds: tuple[Kind, ...]
    own_options: tuple[str, ...] = ()
    has_beta: bool = True
    needs_anchor: bool = False
    likelihood: Callable[[Tensor], Tensor] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The names of all options."""
        common = (name for name in COMMON_OPTIONS if name != "beta" or self.has_beta)
        return (*common, *self.own_options)

    def adds_likelihood(self, weight: float | None) -> bool:
        """Whether the likelihood of responses is a part, at a ``likelihood_weight``."""
        return self.likelihood is not None if weight is None else weight > 0

    def is_ranking_alone(self, preference_weight: float, likelihood_weight: float | None) -> bool:
        """Whether nothing but the loss of rankings is computed, with the weight 1."""
        return preference_weight == 1 and not self.adds_likelihood(likelihood_weight)

    def weight_of_likelihood(
        self, weight: float | None, live: Tensor, dtype: torch.dtype
    ) -> float | Tensor:
        """``likelihood_weight``, or the source's (P,) for the live responses (P, N) if None."""
        if weight is not None:
            return weight
        return 0.0 if self.likelihood is None else self.likelihood(live.sum(1, dtype=dtype))

    def least_live(self, options: LossOptions) -> int:
        """The fewest live responses of a prompt that counts in a mean over prompts."""
        alone = self.adds_likelihood(options.likelihood_weight)
        return 1 if alone else self.kind(options.divergence).least

    def check_weights(self, preference_weight: float, likelihood_weight: float | None) -> None:
        """Raise ValueError if both parts of the loss have the weight 0."""
        if preference_weight == 0 and not self.adds_likelihood(likelihood_weight):
            raise ValueError(
                "preference_weight and likelihood_weight must not both be 0, which leaves nothing "
                f"to train; got {preference_weight} and {likelihood_weight}"
            )

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

VPD = Kind("vpd", list_mle.list_mle)
PAIR = Kind("pair", by_autograd(neighbours.pair_logistic))


def _one(live: Tensor) -> Tensor:
    return torch.ones_like(live)


def _of_pro(live: Tensor) -> Tensor:
    return 0.05 * (live - 1) ** 2  # arXiv 2306.17492, section 4


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
        kinds=(VPD,),
    ),
    "listnet": Loss(
        "listnet",
        title="ListNet",
        help="match the teacher's distribution over the best response",
        kinds=(Kind("listnet", by_autograd(neighbours.list_net)),),
        own_options=("teacher_beta",),
    ),
    "plackett_luce_dpo": Loss(
        "plackett_luce_dpo",
        title="Plackett-Luce DPO",
        help="vpd of log-ratios to the start (DPO for rankings)",
        kinds=(VPD,),
        needs_anchor=True,
    ),
    "dpo": Loss(
        "dpo",
        title="DPO",
        help="the better of a pair gets the larger log-ratio to the start; published with "
        "normalize=sum",
        kinds=(PAIR,),
        own_options=("pairs",),
        needs_anchor=True,
    ),
    "simpo": Loss(
        "simpo",
        title="SimPO",
        help="the better of a pair gets the larger reward, by a margin gamma",
        kinds=(PAIR,),
        own_options=("pairs", "gamma"),
    ),
    "rrhf": Loss(
        "rrhf",
        title="RRHF",
        help="a hinge on every pair in the wrong order, and the likelihood of the best response",
        kinds=(Kind("rrhf", by_autograd(neighbours.rrhf)),),
        has_beta=False,
        likelihood=_one,
    ),
    "pro": Loss(
        "pro",
        title="PRO",
        help="pick each response among the worse ones, scaled by how much worse they are, and the "
        "likelihood of the best response",
        kinds=(Kind("pro", by_autograd(neighbours.pro)),),
        own_options=("teacher_beta",),
        likelihood=_of_pro,
    ),
    "lambda_loss": Loss(
        "lambda_loss",
        title="LambdaLoss (LiPO)",
        help="pairs weighted by what they add to the DCG; LiPO's with anchor=start",
        kinds=(Kind("lambda_loss", by_autograd(neighbours.lambda_loss)),),
        own_options=("teacher_beta",),
    ),
    "rft": Loss(
        "rft",
        title="RFT (SFT on the best of n)",
        help="the likelihood of the best response alone",
        kinds=(Kind("rft", by_autograd(neighbours.rft), least=1),),
        has_beta=False,
    ),
}


def all_kinds() -> dict[str, Kind]:
    """The kinds of all losses by name, as :data:`LOSSES` is at the moment."""
    return {kind.name: kind for loss in LOSSES.values() for kind in loss.kinds}
