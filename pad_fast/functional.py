"""Log-probabilities and rewards as functions of tensors.

Logits z are those that the model defines, softcap * tanh(logit_scale * logits / softcap): Gemma-2
has a softcap, Cohere a scale. A label's log-probability is log softmax(z / temperature)[label]. A
reward is the mean of a response's token log-probabilities in nats per token (PAD, arXiv 2502.14272,
section 3.1).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pad_fast import argument_checks
from pad_fast.dispatch import resolve_impl
from pad_fast.linear_logprob import inputs as linear_inputs
from pad_fast.linear_logprob.inputs import LinearInputs
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.linear_logprob.output_head import OutputHead, weight_and_options
from pad_fast.logprob import inputs as logit_inputs
from pad_fast.logprob.inputs import LogitInputs
from pad_fast.logprob.responses import Responses
from pad_fast.logprob.softmax import TokenOptions


def token_logprobs(
    logits: Tensor,  # (..., V)
    labels: Tensor,  # (...)
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    impl: str = "auto",
) -> Tensor:  # (...)
    """Log-probability of each label, in nats, without a softmax of the logits in memory.

    log softmax(softcap * tanh(logit_scale * logits / softcap) / temperature)[label]

    Args:
        logits: (..., V), float16, bfloat16, float32 or float64, any strides.
        labels: (...), int32 or int64, each at the logits that predict it: nothing is shifted.
        temperature: divides the logits.
        softcap: bounds the logits; None for no bound.
        logit_scale: multiplies the logits first.
        ignore_index: label of rows that are not read.
        inplace_backward: write the gradient over the logits, which saves their size in memory.
        impl: "auto", "torch" or "triton", see :mod:`pad_fast.dispatch`.

    Returns:
        (...), 0 where ignored; float32, or float64 for float64 logits.

    Raises:
        ValueError: a shape, dtype or option that does not fit; on a CPU a label outside 0..V-1.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
        >>> token_logprobs(logits, torch.tensor([2, -100]))
        tensor([-0.4076,  0.0000])

    Notes:
        On a GPU a label that is no column gives NaN, in the gradient too, or with
        ``PAD_FAST_CHECK_LABELS=1`` in the environment a failed assertion.

        After ``inplace_backward`` the logits hold their gradient. Any other backward that needs
        them raises an error.

        To torch.compile the options are constants.
    """
    options = TokenOptions.checked(temperature, softcap, logit_scale, ignore_index)
    inputs = LogitInputs.checked(logits, labels, options, impl, inplace_backward)
    return logit_inputs.token_logprobs(inputs)


def linear_token_logprobs(
    hidden: Tensor,  # (..., D)
    weight: Tensor | OutputHead,  # (V, D)
    labels: Tensor,  # (...)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    live_rows: Tensor | None = None,  # (L,) int64
    memory_budget: MemoryBudget = "auto",
    impl: str = "auto",
) -> Tensor:  # (...)
    """:func:`token_logprobs` of ``hidden @ weight.T + bias``, without all logits in memory.

    Args:
        hidden: (..., D) hidden states.
        weight, bias: (V, D) and (V,), cast to the dtype of ``hidden``; or as ``weight`` what
            :func:`pad_fast.output_head` gives.
        labels: (...), each at the hidden state that predicts it.
        temperature, softcap, logit_scale, ignore_index, impl: as in :func:`token_logprobs`.
        live_rows: (L,) places of the labels that are not ignored, among labels flattened;
            finding them waits for the device.
        memory_budget: bytes for forward and backward, without arguments and gradients; "auto": a
            16th of a GPU's memory, or 512 MiB on a CPU.

    Returns:
        (...), 0 where ignored; float32, or float64 for float64 inputs.

    Raises:
        ValueError: as :func:`token_logprobs`; an empty or sharded weight; on a CPU wrong
            ``live_rows``.

    Example:
        >>> import torch
        >>> hidden, weight = torch.ones(2, 4), torch.zeros(8, 4)
        >>> linear_token_logprobs(hidden, weight, torch.tensor([3, -100]))
        tensor([-2.0794,  0.0000])

    Notes:
        Rows without room in the budget are computed again in the backward: 4 matrix products in
        place of 3 (a frozen head takes 2), rounded differently. A budget of 0 takes up to 1 GiB on
        a GPU. Autocast casts as for ``F.linear``.

        Call this within the module that owns the weight, where FSDP2 or ZeRO-3 has gathered it.
    """
    weight, bias, numbers = weight_and_options(
        weight, bias, {"softcap": softcap, "logit_scale": logit_scale}
    )
    options = TokenOptions.checked(temperature, **numbers, ignore_index=ignore_index)
    inputs = LinearInputs.checked(
        hidden, weight, labels, bias, live_rows, options, memory_budget, impl
    )
    return linear_inputs.token_logprobs(inputs).view(labels.shape)


def response_rewards(
    logits: Tensor,  # (R, T, V) or (M, V)
    labels: Tensor,  # (R, T) or (M,)
    *,
    normalize: str = "mean",
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
    impl: str = "auto",
    **token_options: Any,
) -> Tensor:  # (R,)
    """Reward of each response, r(y|x) = 1/|y| * sum_t log pi(y_t | x, y_<t), in nats per token.

    Args:
        logits: padded (R, T, V), one response a row, or packed (M, V), all in one dimension.
        labels: (R, T) or (M,), each at the logits that predict it; |y| counts those that are not
            ``ignore_index``.
        normalize: "mean", or "sum" for rewards in nats that are not divided by |y|.
        response_ids: (M,), the response of each packed row, -1 for a row of none.
        num_responses: R; without it the largest id + 1, which waits for the device.
        ignore_index, impl, token_options: as in :func:`token_logprobs`.

    Returns:
        (R,), in the dtype of the log-probabilities; 0 for a response without tokens.

    Raises:
        ValueError: as :func:`token_logprobs`; labels and ids that do not fit each other.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[3, 1, 2], [0, -100, -100]])
        >>> response_rewards(torch.zeros(2, 3, 4), labels, normalize="sum")
        tensor([-4.1589, -1.3863])

    Notes:
        0 is the largest reward there is, so mask a response without tokens in a loss.

        The same tokens give the same bits in any order, padded or packed; only float64 is summed
        unrounded. On a GPU an id of R or more makes every reward NaN.
    """
    responses = Responses.checked(labels, response_ids, num_responses, ignore_index, normalize)
    argument_checks.check_tensor("logits", logits)
    impl = resolve_impl(impl, logits)
    logps = token_logprobs(
        logits, responses.labels, ignore_index=ignore_index, impl=impl, **token_options
    )
    return responses.rewards(logps, impl)[0]


def linear_response_rewards(
    hidden: Tensor,  # (R, T, D) or (M, D)
    weight: Tensor | OutputHead,  # (V, D)
    labels: Tensor,  # (R, T) or (M,)
    *,
    normalize: str = "mean",
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
    impl: str = "auto",
    **token_options: Any,
) -> Tensor:  # (R,)
    """:func:`response_rewards` from hidden states and the output head.

    Args:
        hidden: padded (R, T, D) or packed (M, D) hidden states.
        weight: (V, D) of the output head, or that of :func:`pad_fast.output_head`.
        labels, normalize, response_ids, num_responses: as in :func:`response_rewards`.
        ignore_index, impl, token_options: as in :func:`linear_token_logprobs`; ``live_rows``
            leaves rows of no response out too.

    Returns:
        (R,), in the dtype of the log-probabilities; 0 for a response without tokens.

    Raises:
        ValueError: as :func:`response_rewards` and :func:`linear_token_logprobs`.

    Example:
        >>> import torch
        >>> labels = torch.tensor([3, 1, 2, 0])
        >>> ids = torch.tensor([0, 0, 0, 1])
        >>> linear_response_rewards(torch.ones(4, 8), torch.zeros(4, 8), labels, response_ids=ids)
        tensor([-1.3863, -1.3863])
    """
    responses = Responses.checked(labels, response_ids, num_responses, ignore_index, normalize)
    argument_checks.check_tensor("hidden", hidden)
    impl = resolve_impl(impl, hidden)
    logps = linear_token_logprobs(
        hidden, weight, responses.labels, ignore_index=ignore_index, impl=impl, **token_options
    )
    return responses.rewards(logps, impl)[0]


def response_lengths(
    labels: Tensor,  # (R, T) or (M,)
    *,
    response_ids: Tensor | None = None,  # (M,)
    num_responses: int | None = None,
    ignore_index: int = -100,
) -> Tensor:  # (R,) int64
    """Number of live tokens |y| of each response, padded or packed as in :func:`response_rewards`.

    Example:
        >>> import torch
        >>> response_lengths(torch.tensor([[3, 1, 2], [0, -100, -100]]))
        tensor([3, 1])
    """
    return Responses.checked(labels, response_ids, num_responses, ignore_index, "mean").lengths()
