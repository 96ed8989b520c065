"""The checked arguments of log-probabilities from given logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pad_fast import argument_checks
from pad_fast.dispatch import resolve_impl
from pad_fast.logprob import op
from pad_fast.logprob.softmax import TokenOptions


@dataclass(frozen=True)
class LogitInputs:
    """Logits and labels, checked once, and how they become log-probabilities."""

    logits: Tensor  # (..., V)
    labels: Tensor  # (...)
    options: TokenOptions
    inplace_backward: bool
    impl: str  # "torch" or "triton"

    @classmethod
    def checked(
        cls,
        logits: Tensor,
        labels: Tensor,
        options: TokenOptions,
        impl: str,
        inplace_backward: bool = False,
    ) -> LogitInputs:
        """The arguments of a user's call; raises ValueError for what does not fit."""
        argument_checks.check_logits(logits, labels)
        if inplace_backward:
            argument_checks.check_inplace(logits)
        return cls(logits, labels, options, inplace_backward, resolve_impl(impl, logits))


def token_logprobs(inputs: LogitInputs) -> Tensor:  # (...)
    """Log-probability of each label, and 0 where it is ignored."""
    logits, labels = inputs.logits, inputs.labels
    tokens = labels.shape[-1] if labels.ndim else 1
    # Three dimensions, since a slice along T, such as logits[:, :-1], has no view in two and would
    # be copied.
    responses = labels.shape[:-1].numel()
    logps, _, _ = op.token_logprobs(
        logits.reshape(responses, tokens, logits.shape[-1]),
        labels.reshape(responses, tokens),
        *inputs.options.numbers,
        inputs.impl,
        inputs.inplace_backward,
    )
    return logps.view(labels.shape)
