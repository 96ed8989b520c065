"""The arguments of a training that say what its loss is, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pad_fast.argument_checks import check_choice
from pad_fast.logprob.responses import NORMALIZATIONS
from pad_fast.preference.likelihood import LIKELIHOODS
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.preference.options import LossOptions
from pad_fast.training.options.argument import argument

ANCHORS = ("none", "start")
REPEATS = ("once", "each")
# What a preset gives the arguments that are left open.
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": {"teacher_beta": 10.0}}


def _losses_with(option: str) -> list[str]:
    return [name for name, loss in LOSSES.items() if option in loss.own_options]


def _only(option: str) -> str:
    return f"{_list(_losses_with(option))} only"


def _list(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


_LOSS_HELP = "; ".join(f"{name}: {loss.help}" for name, loss in LOSSES.items())
_DIVERGENCE_HELP = "; ".join(
    f"{name}: {', '.join(loss.divergences)}" for name, loss in LOSSES.items() if loss.divergences
)
_LIKELIHOOD_HELP = "; ".join(f"{name}: {help}" for name, (help, _) in LIKELIHOODS.items())
_ANCHORED = _list([name for name, loss in LOSSES.items() if loss.needs_anchor])


@dataclass
class LossArguments:
    """The loss of a training, per prompt, with r the student's rewards and t the teacher's.

    preference_weight * loss(r - anchor, t) - likelihood_weight * sum_i w_i r_i

    A reward is the mean of a response's token log-probabilities (``normalize`` = mean), or their
    sum, in both terms.
    """

    loss: str = argument("ppd", f"The loss. {_LOSS_HELP}.")
    preset: str = argument(
        "default", "Values of what is left open. paper: teacher_beta 10, as the authors have it."
    )
    beta: float = argument(10.0, "Factor of the student's rewards.")
    teacher_beta: float | None = argument(
        None,
        f"Factor of the teacher's rewards, {_only('teacher_beta')}. If not given, it is chosen "
        "from the spread of the teacher's rewards: 5 / (median standard deviation within a "
        "prompt), but at most beta.",
    )
    divergence: str = argument("jsd", f"Divergence between the distributions. {_DIVERGENCE_HELP}.")
    method: str = argument(
        "auto",
        "How the divergence is computed: exact, sampled (from drawn rankings), or auto (exact for "
        f"groups that are small enough). {_only('method')}.",
    )
    num_samples: int = argument(256, "Rankings that method=sampled draws for each prompt.")
    gamma: float = argument(0.0, f"Margin between the rewards of a pair, {_only('gamma')}.")
    pairs: str = argument(
        "best_worst",
        "Pairs of a prompt: best_worst (the best response with the worst) or all, averaged. "
        f"{_only('pairs')}.",
    )
    group_size: int | None = argument(
        None, "Preference decomposing: rank responses in groups of this size."
    )
    group_reduction: str = argument(
        "mean", "How the losses of a prompt's groups are combined: mean or sum."
    )
    normalize: str = argument(
        "mean", "Reward of a response: mean or sum of its tokens' log-probabilities."
    )
    anchor: str = argument(
        "none",
        "start: the loss compares the student's rewards less those that the model has at the start "
        f"of the training, which are computed once; {_ANCHORED} need it. none: as they are.",
    )
    preference_weight: float = argument(1.0, "Weight of the loss; 0 leaves the likelihood alone.")
    likelihood_weight: float | None = argument(
        None,
        "Weight of the negative likelihood of responses, their rewards times -1, which keeps good "
        "responses likely where a ranking only compares. If not given, 0, but for rrhf 1 and for "
        "pro 0.05 (n - 1)^2, as published.",
    )
    likelihood_on: str = argument("best", f"Whose likelihood. {_LIKELIHOOD_HELP}.")
    likelihood_beta: float = argument(
        10.0, "Factor of the teacher's rewards in likelihood_on=weighted."
    )
    repeats: str = argument(
        "once",
        "Equal responses to a prompt: once (they are one response) or each (as many as there are).",
    )

    def check_loss(self) -> None:
        """Fill in the preset's values, and raise ValueError for options that do not fit."""
        for name, choices in (
            ("loss", LOSSES),
            ("preset", PRESETS),
            ("normalize", NORMALIZATIONS),
            ("anchor", ANCHORS),
            ("repeats", REPEATS),
        ):
            check_choice(name, getattr(self, name), choices)
        loss = LOSSES[self.loss]
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None and name in loss.options:
                setattr(self, name, value)
        self._check_foreign_options()
        known = LossOptions.__dataclass_fields__.keys() & self.__dataclass_fields__.keys()
        options = LossOptions(**{name: getattr(self, name) for name in known - {"seed"}})
        kind = loss.kind(options.divergence if loss.divergences else None)
        if self.group_size is not None:
            kind.check_exact(self.method, self.group_size)
        loss.check_weights(self.preference_weight, self.likelihood_weight)
        if loss.needs_anchor and self.anchor == "none":
            raise ValueError(
                f"anchor must be start for loss={self.loss!r}, which compares the student with the "
                "model that its training started from; got 'none'"
            )
        self._check_likelihood()

    def _check_foreign_options(self) -> None:
        """Refuse options of other losses, since they would do nothing."""
        loss = LOSSES[self.loss]
        foreign = {name for other in LOSSES.values() for name in other.own_options}
        # seed is an argument of every training, whatever the loss does with it
        for name in sorted(foreign - {*loss.own_options, "seed"}):
            value, usual = getattr(self, name), self.__dataclass_fields__[name].default
            if value != usual:
                owners = _list([f"loss={other!r}" for other in _losses_with(name)])
                raise ValueError(
                    f"{name} is an option of {owners}, and loss is {self.loss!r}; got {value!r}"
                )
        if not loss.has_beta and self.beta != self.__dataclass_fields__["beta"].default:
            raise ValueError(f"beta is no option of loss={self.loss!r}; got {self.beta}")

    def _check_likelihood(self) -> None:
        """Refuse options of a likelihood that is not a part of the loss."""
        adds = LOSSES[self.loss].adds_likelihood(self.likelihood_weight)
        needed = {
            "likelihood_on": ("likelihood_weight above 0", adds),
            "likelihood_beta": (
                "likelihood_weight above 0 and likelihood_on=weighted",
                adds and self.likelihood_on == "weighted",
            ),
        }
        for name, (rule, holds) in needed.items():
            value = getattr(self, name)
            if not holds and value != self.__dataclass_fields__[name].default:
                raise ValueError(f"{name} needs {rule}, without which it does nothing; got {value}")

    @property
    def least_live(self) -> int:
        """The fewest live responses of a prompt that is trained."""
        weight = self.likelihood_weight
        return LOSSES[self.loss].least_live(LossOptions(likelihood_weight=weight))

    @property
    def is_ranking_alone(self) -> bool:
        """Whether the loss is that of rankings, with the weight 1 and without a likelihood."""
        loss = LOSSES[self.loss]
        return loss.is_ranking_alone(self.preference_weight, self.likelihood_weight)

    @property
    def chooses_teacher_beta(self) -> bool:
        """Whether ``teacher_beta`` is to be chosen from the teacher's rewards."""
        return self.teacher_beta is None and "teacher_beta" in LOSSES[self.loss].own_options
