"""The listwise jobs: every kind of loss in pad_fast/preference/loss_kinds.py, exact and sampled.

A kind that is added to that table is a job here, a case of the suites and a part of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pad_fast.preference.loss_kinds import LOSSES, Kind, Loss

BETA = 10.0
SAMPLED = "_sampled"  # ends the names of jobs that estimate a loss from drawn rankings
# Numbers of responses at which exact losses are measured, and those for all other kinds.
SIZES = {"vpd": (4, 8, 12), "kl": (4, 6, 8, 12), "jsd": (4, 6, 8, 10)}
OTHER_SIZES = (8,)


@dataclass(frozen=True)
class ListwiseJob:
    """A loss of given rewards, by one method."""

    loss: Loss
    kind: Kind
    method: str  # "exact" or "sampled"

    @property
    def name(self) -> str:
        return self.kind.name + (SAMPLED if self.method == "sampled" else "")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of responses of its cases.

        An estimate is measured at the most responses for which the library would compute the loss
        exactly by itself, so that there is an exact value to compare with.
        """
        if self.method == "sampled":
            return (self.kind.auto_exact or OTHER_SIZES[0],)
        most = self.kind.max_exact
        sizes = SIZES.get(self.kind.name, OTHER_SIZES)
        return tuple(sorted({n if most is None else min(n, most) for n in sizes}))

    @property
    def options(self) -> dict[str, Any]:
        """The options that select the kind among those of its loss."""
        chosen = {"divergence": self.kind.name} if self.loss.divergences else {}
        # The ranking alone, without the likelihood that a loss may add.
        return {
            **({"beta": BETA} if self.loss.has_beta else {}),
            "likelihood_weight": 0.0,
            **chosen,
        }


def jobs() -> dict[str, ListwiseJob]:
    """The jobs by name, as the table of losses is now: the exact ones, then the sampled ones."""
    # A kind of several losses is measured once, and needs no anchor by itself.
    losses = [loss for loss in LOSSES.values() if not loss.needs_anchor]
    kinds = [(loss, kind) for loss in losses for kind in loss.kinds]
    found = [ListwiseJob(loss, kind, "exact") for loss, kind in kinds]
    found += [ListwiseJob(loss, kind, "sampled") for loss, kind in kinds if kind.sampled]
    return {job.name: job for job in found}


def library_loss(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The library's loss of each prompt: (P, N), (P, N) -> (P,)."""
    from pad_fast.losses import preference_loss

    job = jobs()[name]
    options = job.options
    if "method" in job.loss.options:
        options["method"] = job.method
    return preference_loss(job.loss.name, student, teacher, reduction="none", **options)
