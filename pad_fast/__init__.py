"""pad-fast: preference-aligned distillation of language models (PAD, arXiv 2502.14272).

Importing this package loads torch alone. The names that need transformers are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pad_fast.functional import (
    linear_response_rewards,
    linear_token_logprobs,
    response_lengths,
    response_rewards,
    token_logprobs,
)
from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.modules import LinearPADLoss, PADLoss, linear_preference_loss

if TYPE_CHECKING:
    from pad_fast.models.scoring import score_responses
    from pad_fast.training.config import PADConfig
    from pad_fast.training.trainer import PADTrainer

__version__ = "0.1.0"

_LAZY = {
    "PADConfig": "pad_fast.training.config",
    "PADTrainer": "pad_fast.training.trainer",
    "score_responses": "pad_fast.models.scoring",
}

__all__ = [
    "LinearPADLoss",
    "PADConfig",
    "PADLoss",
    "PADTrainer",
    "linear_preference_loss",
    "linear_response_rewards",
    "linear_token_logprobs",
    "probabilistic_preference_loss",
    "response_lengths",
    "response_rewards",
    "score_responses",
    "token_logprobs",
    "vanilla_preference_loss",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
