"""Which kinds of cases there are, and how one is run from its seed."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from tests.interpreter import mend

from .draw import Draw, describe
from .inplace import inplace_case
from .linear import linear_response_rewards_case, linear_token_logprobs_case
from .listwise import listwise_case, sampled_case
from .tokens import response_rewards_case, token_logprobs_case
from .whole_loss import linear_preference_loss_case, micro_batched_backward_case

mend()  # the oracles round to nearest even, as a GPU does

# The name of a kind, how often it is drawn, and what runs one case.
KINDS: dict[str, tuple[float, Callable[[Draw], None]]] = {
    "token_logprobs": (22, token_logprobs_case),
    "response_rewards": (20, response_rewards_case),
    "linear_token_logprobs": (12, linear_token_logprobs_case),
    "linear_response_rewards": (12, linear_response_rewards_case),
    "losses": (20, listwise_case),
    "sampled_losses": (1, sampled_case),
    "linear_preference_loss": (8, linear_preference_loss_case),
    "micro_batched_backward": (3, micro_batched_backward_case),
    "change_in_place": (2, inplace_case),
}


def kind_of(seed: int) -> str:
    """The kind of a seed's case: the same in every run, whatever kinds are asked for."""
    weights = [weight for weight, _ in KINDS.values()]
    return random.Random(~seed).choices(list(KINDS), weights)[0]


@dataclass(frozen=True)
class Failure:
    """What went wrong in one case."""

    seed: int
    kind: str
    reason: str
    case: str
    trace: str

    def __str__(self) -> str:
        repeat = f"repeat: python -m tests.fuzz --case {self.seed}"
        return f"FAILED {self.kind}: {self.reason}\n{self.case}\n{self.trace}{repeat}"


def run_case(seed: int, whole: bool = False) -> Failure | None:
    """Run the case of ``seed``; with ``whole`` a failure prints its tensors in full."""
    kind, draw = kind_of(seed), Draw(seed)
    try:
        KINDS[kind][1](draw)
    except Exception as problem:  # an error in the package is a failure as well
        reason = f"{type(problem).__name__}: {problem}"
        trace = "".join(traceback.format_exc().splitlines(keepends=True)[-7:])
        return Failure(seed, kind, reason[:2000], describe(draw, whole), trace)
    return None
