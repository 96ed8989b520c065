"""pad-fast: preference-aligned distillation of language models (PAD, arXiv 2502.14272).

Every name is loaded when it is first used: importing the package loads nothing, and using the
losses loads torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pad_fast.functional import (
        linear_response_rewards,
        linear_token_logprobs,
        response_lengths,
        response_rewards,
        token_logprobs,
    )
    from pad_fast.linear_loss import linear_preference_loss
    from pad_fast.losses import (
        preference_loss,
        probabilistic_preference_loss,
        vanilla_preference_loss,
    )
    from pad_fast.models.encoded_batch import encode_responses
    from pad_fast.models.output_head import output_head
    from pad_fast.models.rewards import attach_rewards_forward
    from pad_fast.models.scoring import score_responses
    from pad_fast.modules import LinearPADLoss, PADLoss
    from pad_fast.training.config import PADConfig
    from pad_fast.training.micro_batches import micro_batched_backward
    from pad_fast.training.trainer import PADTrainer
    from pad_fast.warming import warm_up

__version__ = "0.1.0"

_HOMES = {
    "functional": (
        "linear_response_rewards",
        "linear_token_logprobs",
        "response_lengths",
        "response_rewards",
        "token_logprobs",
    ),
    "losses": ("preference_loss", "probabilistic_preference_loss", "vanilla_preference_loss"),
    "models.encoded_batch": ("encode_responses",),
    "models.output_head": ("output_head",),
    "models.rewards": ("attach_rewards_forward",),
    "models.scoring": ("score_responses",),
    "linear_loss": ("linear_preference_loss",),
    "modules": ("LinearPADLoss", "PADLoss"),
    "training.config": ("PADConfig",),
    "training.micro_batches": ("micro_batched_backward",),
    "training.trainer": ("PADTrainer",),
    "warming": ("warm_up",),
}
_HOME = {name: f"pad_fast.{module}" for module, names in _HOMES.items() for name in names}

__all__ = [
    "LinearPADLoss",
    "PADConfig",
    "PADLoss",
    "PADTrainer",
    "attach_rewards_forward",
    "encode_responses",
    "linear_preference_loss",
    "linear_response_rewards",
    "linear_token_logprobs",
    "micro_batched_backward",
    "output_head",
    "preference_loss",
    "probabilistic_preference_loss",
    "response_lengths",
    "response_rewards",
    "score_responses",
    "token_logprobs",
    "vanilla_preference_loss",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
