"""The losses as drop-in modules, from logits or from hidden states."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pad_fast import functional, validation
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.linear_loss import _preference_loss, linear_preference_loss
from pad_fast.losses import check_loss


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
        check_loss(loss, loss_options)
        token_options = {
            "temperature": temperature,
            "softcap": softcap,
            "logit_scale": logit_scale,
            "ignore_index": ignore_index,
        }
        self.options = {
            "loss": loss,
            "normalize": normalize,
            "shift": shift,
            "impl": impl,
            **token_options,
            **loss_options,
        }

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
        return _preference_loss(
            functional.response_rewards,
            logits,
            labels,
            teacher_rewards,
            response_ids,
            mask,
            **options,
        )[0]


class LinearPADLoss(PADLoss):
    """:class:`PADLoss` from hidden states (R, T, D) or packed (M, D) and the output head (V, D), whose logits never exist whole.

    ``memory_budget`` is that of :func:`linear_preference_loss`; all else is as in :class:`PADLoss`.
    """

    def __init__(
        self, loss: str = "ppd", *, memory_budget: MemoryBudget = "auto", **options: Any
    ) -> None:
        super().__init__(loss, **options)
        validation.check_budget(memory_budget)
        self.options["memory_budget"] = memory_budget

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
        live_rows: Tensor | None = None,  # (L,) int64
        **options: Any,
    ) -> Tensor:  # () or, with reduction="none", (P,)
        """The loss; ``options`` as in :meth:`PADLoss.forward`."""
        options = {**self.options, **options}
        return linear_preference_loss(
            hidden, weight, labels, teacher_rewards, bias=bias, response_ids=response_ids, mask=mask, live_rows=live_rows, **options
        )[0]  # fmt: skip
