"""The losses from logits or hidden states: drop-in modules, and the function under them.

R = P * N responses stand prompt by prompt: response i of prompt p is row p * N + i of padded scores (R, T, ...), or has that number
in the ``response_ids`` (M,) of packed scores (M, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pad_fast import functional, shapes
from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss

LOSSES: dict[str, Callable[..., Tensor]] = {"ppd": probabilistic_preference_loss, "vpd": vanilla_preference_loss}
LOSS_OPTIONS = {  # mask and impl have their own names everywhere
    name: tuple(p.name for p in signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in ("mask", "impl"))
    for name, f in LOSSES.items()
}


def linear_preference_loss(
    hidden: Tensor,  # (R, T, D) or (M, D)
    weight: Tensor,  # (V, D)
    labels: Tensor,  # (R, T) or (M,)
    teacher_rewards: Tensor,  # (P, N)
    *,
    bias: Tensor | None = None,  # (V,)
    response_ids: Tensor | None = None,  # (M,)
    mask: Tensor | None = None,  # (P, N) bool
    **options: Any,
) -> tuple[Tensor, Tensor]:  # () or, with reduction="none", (P,); (P, N)
    """The listwise loss of a student's hidden states and output head, and the rewards (P, N) that it saw, detached.

    In two lines: ``rewards = linear_response_rewards(hidden, weight, labels, ...)``, then
    ``probabilistic_preference_loss(rewards.view(P, N), teacher_rewards, ...)``. ``mask`` is True for live responses; one without
    tokens is never live. ``options`` are those of :class:`LinearPADLoss`.

    Raises ValueError where R is not P * N, for an option that doesn't exist, and as those two functions do.
    """
    rewards = partial(functional.linear_response_rewards, weight=weight, bias=bias)
    return _preference_loss(rewards, hidden, labels, teacher_rewards, response_ids, mask, **options)


class PADLoss(nn.Module):
    """The listwise loss from a student's logits (R, T, V) or packed (M, V), as a module without parameters.

    ``loss`` is "ppd" or "vpd", and ``loss_options`` are those of :func:`probabilistic_preference_loss` ("ppd") or
    :func:`vanilla_preference_loss`: beta, divergence, reduction, ... ``normalize`` and the token options are those of
    :func:`response_rewards`. Labels stand beside the logits that predict them; ``shift=True`` takes them as Hugging Face models do,
    each beside its own token, and moves them one place. In packed sequences the first token of each must then be ignored.

    Raises ValueError for a loss or an option that doesn't exist.
    """

    def __init__(
        self,
        loss: str = "ppd",
        *,
        normalize: str = "mean",
        shift: bool = False,
        temperature: float = 1.0,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        ignore_index: int = -100,
        impl: str = "auto",
        **loss_options: Any,
    ) -> None:
        super().__init__()
        _check_loss(loss, loss_options)
        token_options = {"temperature": temperature, "softcap": softcap, "logit_scale": logit_scale, "ignore_index": ignore_index}
        self.options = {"loss": loss, "normalize": normalize, "shift": shift, "impl": impl, **token_options, **loss_options}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def forward(
        self,
        logits: Tensor,  # (R, T, V) or (M, V)
        labels: Tensor,  # (R, T) or (M,)
        teacher_rewards: Tensor,  # (P, N)
        *,
        response_ids: Tensor | None = None,  # (M,)
        mask: Tensor | None = None,  # (P, N) bool
        **options: Any,
    ) -> Tensor:  # () or, with reduction="none", (P,)
        """The loss. ``options`` replace the module's for this call: ``seed=step`` gives every step of a sampled loss its own draws."""
        options = {**self.options, **options}
        return _preference_loss(functional.response_rewards, logits, labels, teacher_rewards, response_ids, mask, **options)[0]


class LinearPADLoss(PADLoss):
    """:class:`PADLoss` from hidden states (R, T, D) or packed (M, D) and the output head (V, D), whose logits never exist whole."""

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,  # (R, T, D) or (M, D)
        weight: Tensor,  # (V, D)
        labels: Tensor,  # (R, T) or (M,)
        teacher_rewards: Tensor,  # (P, N)
        *,
        bias: Tensor | None = None,  # (V,)
        response_ids: Tensor | None = None,  # (M,)
        mask: Tensor | None = None,  # (P, N) bool
        **options: Any,
    ) -> Tensor:  # () or, with reduction="none", (P,)
        """The loss; ``options`` as in :meth:`PADLoss.forward`."""
        options = {**self.options, **options}
        return linear_preference_loss(
            hidden, weight, labels, teacher_rewards, bias=bias, response_ids=response_ids, mask=mask, **options
        )[0]  # fmt: skip


def _preference_loss(
    reward_function: Callable[..., Tensor],
    scores: Tensor,
    labels: Tensor,
    teacher_rewards: Tensor,
    response_ids: Tensor | None,
    mask: Tensor | None,
    *,
    loss: str = "ppd",
    normalize: str = "mean",
    shift: bool = False,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    impl: str = "auto",
    **loss_options: Any,
) -> tuple[Tensor, Tensor]:
    _check_loss(loss, loss_options)
    _check_prompts(labels, teacher_rewards, response_ids, mask)
    if shift:
        scores, labels = scores[..., :-1, :], labels[..., 1:]
        response_ids = None if response_ids is None else response_ids[1:]
    split: dict[str, Any] = {"response_ids": response_ids, "num_responses": teacher_rewards.numel(), "ignore_index": ignore_index}
    token_options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "logit_scale": logit_scale, "impl": impl}
    rewards = reward_function(scores, labels=labels, normalize=normalize, **split, **token_options).view(teacher_rewards.shape)
    # The reward of an empty response is 0, the best log-probability there is.
    live = (functional.response_lengths(labels, **split) > 0).view(teacher_rewards.shape)
    live = live if mask is None else live & mask
    return LOSSES[loss](rewards, teacher_rewards, mask=live, impl=impl, **loss_options), rewards.detach()


def _check_loss(loss: str, options: dict[str, Any]) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    for name in options:
        if name not in LOSS_OPTIONS[loss]:
            raise ValueError(f"loss={loss!r} has no option {name!r}; it has {', '.join(LOSS_OPTIONS[loss])}")


def _check_prompts(labels: Tensor, teacher_rewards: Tensor, response_ids: Tensor | None, mask: Tensor | None) -> None:
    if teacher_rewards.ndim != 2:
        raise ValueError(f"teacher_rewards must be (P, N), got {shapes.shape(teacher_rewards)}")
    if response_ids is None and len(labels) != teacher_rewards.numel():
        rows = f"P * N = {teacher_rewards.numel()} rows for teacher_rewards {shapes.shape(teacher_rewards)}"
        raise ValueError(f"labels must have {rows}, unless response_ids are given; got {shapes.shape(labels)}")
    if mask is not None and (mask.shape != teacher_rewards.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool of shape {shapes.shape(teacher_rewards)}, got {mask.dtype} {shapes.shape(mask)}")
