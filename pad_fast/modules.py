"""The losses as modules, from logits or from hidden states."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pad_fast import argument_checks
from pad_fast.linear_logprob.memory_budget import MemoryBudget
from pad_fast.linear_logprob.output_head import OutputHead
from pad_fast.linear_loss import linear_preference_loss
from pad_fast.logprob.inputs import LogitInputs, token_logprobs
from pad_fast.loss_inputs import LossSettings, Preferences, PromptColumns
from pad_fast.losses import check_loss


class PADLoss(nn.Module):
    """The listwise loss from a student's logits, as a module without parameters.

    Args:
        loss: a name in ``pad_fast.preference.loss_kinds.LOSSES``, such as "ppd", see
            :func:`probabilistic_preference_loss`.
        normalize: "mean" or "sum" over a response's tokens, see :func:`response_rewards`.
        shift: labels are at their own tokens, as Hugging Face models take them, and are moved one
            place. The first token of each packed sequence must then be ignored.
        temperature, softcap, logit_scale, ignore_index: see :func:`token_logprobs`.
        impl: "auto", "torch" or "triton", see :mod:`pad_fast.dispatch`.
        loss_options: keyword options of :func:`pad_fast.losses.preference_loss`: beta,
            likelihood_weight, reduction, ...

    Raises:
        ValueError: a loss or an option that does not exist.

    Example:
        >>> import torch
        >>> labels, teacher = torch.tensor([[3, 1], [2, -100]]), torch.tensor([[-0.5, -1.0]])
        >>> PADLoss("vpd", beta=2.0)(torch.zeros(2, 2, 5), labels, teacher)
        tensor(0.6931)
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
        self.options = {
            "loss": loss,
            "normalize": normalize,
            "shift": shift,
            "impl": impl,
            "temperature": temperature,
            "softcap": softcap,
            "logit_scale": logit_scale,
            "ignore_index": ignore_index,
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
        anchor_rewards: Tensor | None = None,  # (P, N)
        from_teacher: Tensor | None = None,  # (P, N) bool
        read_as: Tensor | None = None,  # (P, N) int64
        **options: Any,
    ) -> Tensor:  # () or, with reduction="none", (P,)
        """The loss, in nats.

        Args:
            logits, labels, response_ids: as in :func:`response_rewards`, with R = P * N responses
                prompt by prompt.
            teacher_rewards: (P, N), in nats per token.
            mask: (P, N), True for live responses; one without tokens is never live.
            anchor_rewards, from_teacher: (P, N), as in :func:`pad_fast.losses.preference_loss`.
            read_as: (P, N), the number in ``labels`` of each response. Equal responses then stand
                once in logits and labels, which may have fewer than P * N, and their gradients add
                up as if each had been read.
            options: replace the module's for this call. ``seed=step`` gives every step of a sampled
                loss its own draws.
        """
        argument_checks.check_tensor("logits", logits)
        settings = LossSettings.checked(**{**self.options, **options})
        columns = PromptColumns(teacher_rewards, mask, anchor_rewards, from_teacher, read_as)
        preferences = Preferences.checked(settings, labels, columns, response_ids)
        labels = preferences.responses.labels
        inputs = LogitInputs.checked(settings.align(logits), labels, settings.tokens, settings.impl)
        return preferences.loss(token_logprobs(inputs), inputs.impl)[0]


class LinearPADLoss(PADLoss):
    """:class:`PADLoss` from hidden states and the output head, without all logits in memory.

    Args:
        loss, options: as in :class:`PADLoss`.
        memory_budget: bytes, as in :func:`linear_preference_loss`.

    Example:
        >>> import torch
        >>> labels, teacher = torch.tensor([[3, 1], [2, -100]]), torch.tensor([[-0.5, -1.0]])
        >>> LinearPADLoss("vpd")(torch.ones(2, 2, 4), torch.zeros(8, 4), labels, teacher)
        tensor(0.6931)
    """

    def __init__(
        self, loss: str = "ppd", *, memory_budget: MemoryBudget = "auto", **options: Any
    ) -> None:
        super().__init__(loss, **options)
        argument_checks.check_budget(memory_budget)
        self.options["memory_budget"] = memory_budget

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,  # (R, T, D) or (M, D)
        weight: Tensor | OutputHead,  # (V, D)
        labels: Tensor,  # (R, T) or (M,)
        teacher_rewards: Tensor,  # (P, N)
        *,
        bias: Tensor | None = None,  # (V,)
        response_ids: Tensor | None = None,  # (M,)
        mask: Tensor | None = None,  # (P, N) bool
        live_rows: Tensor | None = None,  # (L,) int64
        anchor_rewards: Tensor | None = None,  # (P, N)
        from_teacher: Tensor | None = None,  # (P, N) bool
        read_as: Tensor | None = None,  # (P, N) int64
        **options: Any,
    ) -> Tensor:  # () or, with reduction="none", (P,)
        """The loss, in nats, of the arguments of :func:`linear_preference_loss`.

        ``weight`` may be the whole head, :func:`pad_fast.output_head` of the student. ``options``
        replace the module's for this call.
        """
        loss, _ = linear_preference_loss(
            hidden,
            weight,
            labels,
            teacher_rewards,
            bias=bias,
            response_ids=response_ids,
            mask=mask,
            live_rows=live_rows,
            anchor_rewards=anchor_rewards,
            from_teacher=from_teacher,
            read_as=read_as,
            **{**self.options, **options},
        )
        return loss
