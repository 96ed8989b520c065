"""What a loss from logits and a loss from hidden states share: its settings and its prompts.

R = P * N responses stand prompt by prompt. Response i of prompt p is row p * N + i of padded labels
(R, T), or has that number in the ``response_ids`` (M,) of packed labels (M,). With ``read_as``
(P, N) it is the response of the labels with the number that stands there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pad_fast import argument_checks
from pad_fast.logprob.responses import Responses
from pad_fast.logprob.softmax import TokenOptions
from pad_fast.losses import check_loss, preference_loss
from pad_fast.preference import loss_kinds
from pad_fast.preference.options import LossOptions
from pad_fast.preference.reward_inputs import check_columns, counted_prompts, with_tokens


@dataclass(frozen=True)
class LossSettings:
    """The options of :class:`pad_fast.PADLoss`, checked."""

    loss: str  # a name of preference/loss_kinds.py
    loss_options: Mapping[str, Any]
    normalize: str
    shift: bool
    tokens: TokenOptions
    impl: str  # as the user wrote it: a loss may lack the kernel that its rewards have

    @classmethod
    def checked(
        cls,
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
    ) -> LossSettings:
        """The settings as a user writes them; raises ValueError for what does not fit."""
        check_loss(loss, loss_options)
        tokens = TokenOptions.checked(temperature, softcap, logit_scale, ignore_index)
        return cls(loss, loss_options, normalize, shift, tokens, impl)

    @property
    def options(self) -> LossOptions:
        """The options of the loss, with their defaults."""
        return LossOptions(**self.loss_options)

    def align(self, states: Tensor) -> Tensor:
        """Logits or hidden states (..., T, V or D) without the last one, if labels are shifted."""
        return states[..., :-1, :] if self.shift else states

    def is_separable(self, responses_per_prompt: int) -> bool:
        """Whether prompts can be solved one after another, for one outer gradient.

        That is so for exact losses that are summed or averaged. Rankings are drawn for all prompts
        together, and with reduction="none" each prompt has an outer gradient of its own.
        """
        options = self.options
        size = options.group_size
        n = responses_per_prompt if size is None else min(responses_per_prompt, size)
        kind = loss_kinds.LOSSES[self.loss].kind(options.divergence)
        return kind.is_exact(options.method, n) and options.reduction in ("mean", "sum")


@dataclass(frozen=True)
class PromptColumns:
    """What is known of the responses of P prompts beside their tokens."""

    teacher_rewards: Tensor  # (P, N)
    mask: Tensor | None = None  # (P, N) bool, True for live responses
    anchor_rewards: Tensor | None = None  # (P, N), under the model that a training starts from
    from_teacher: Tensor | None = None  # (P, N) bool, True for the teacher's own responses
    read_as: Tensor | None = None  # (P, N), the response of the labels that each of these is
    lengths: Tensor | None = None  # (P, N), numbers of tokens

    def of(self, prompts: slice) -> PromptColumns:
        """The columns of some of the prompts."""
        columns = (self.mask, self.anchor_rewards, self.from_teacher, self.lengths)
        mask, anchor, own, lengths = (c if c is None else c[prompts] for c in columns)
        return PromptColumns(self.teacher_rewards[prompts], mask, anchor, own, lengths=lengths)


@dataclass(frozen=True)
class Preferences:
    """A batch of prompts whose student's rewards are still to come."""

    settings: LossSettings
    given: PromptColumns  # with the mask as the user gave it
    responses: Responses

    @property
    def teacher(self) -> Tensor:  # (P, N)
        """The teacher's rewards."""
        return self.given.teacher_rewards

    @cached_property
    def columns(self) -> PromptColumns:
        """The columns, with the lengths: an empty response has the reward 0, the best there is."""
        return replace(self.given, lengths=self._of_all(self.responses.lengths()))

    @classmethod
    def checked(
        cls,
        settings: LossSettings,
        labels: Tensor,  # (R, T) or (M,)
        columns: PromptColumns,
        response_ids: Tensor | None,  # (M,)
    ) -> Preferences:
        """The prompts of a user's call; raises ValueError for what does not fit."""
        teacher_rewards, mask = columns.teacher_rewards, columns.mask
        _check_prompts(labels, teacher_rewards, response_ids, mask, columns.read_as)
        loss = loss_kinds.LOSSES[settings.loss]
        check_columns(loss, teacher_rewards, columns.anchor_rewards, columns.from_teacher)
        if settings.shift:
            labels = labels[..., 1:]
            response_ids = None if response_ids is None else response_ids[1:]
        responses = Responses.checked(
            labels,
            response_ids,
            teacher_rewards.numel() if response_ids is not None else len(labels),
            settings.tokens.ignore_index,
            settings.normalize,
        )
        return cls(settings, columns, responses)

    def loss(self, logps: Tensor, impl: str) -> tuple[Tensor, Tensor]:
        """The loss and the rewards (P, N), detached, from the log-probabilities of all labels."""
        rewards, lengths = map(self._of_all, self.responses.rewards(logps, impl))
        columns = replace(self.given, lengths=lengths)
        return self._loss(rewards, columns), rewards.detach()

    def _of_all(self, numbers: Tensor) -> Tensor:
        """Numbers (P, N) of all responses from those of the responses that were read."""
        read_as = self.given.read_as
        found = numbers if read_as is None else numbers.index_select(0, read_as.flatten())
        return found.view(self.teacher.shape)

    def losses(self, rewards: Tensor, prompts: slice) -> Tensor:
        """The loss of each of some prompts (p,), 0 where it has none, from their rewards (p, N)."""
        return self._loss(rewards, self.columns.of(prompts), reduction="none")

    def _loss(self, rewards: Tensor, columns: PromptColumns, **options: Any) -> Tensor:
        settings = self.settings
        return preference_loss(
            settings.loss,
            rewards,
            columns.teacher_rewards,
            mask=columns.mask,
            anchor_rewards=columns.anchor_rewards,
            from_teacher=columns.from_teacher,
            lengths=columns.lengths,
            impl=settings.impl,
            **{**settings.loss_options, **options},
        )

    def reduce(self, total: Tensor) -> Tensor:
        """The loss from the sum of the losses of all prompts."""
        options, columns = self.settings.options, self.columns
        if options.reduction == "sum":
            return total
        assert columns.lengths is not None
        live = with_tokens(columns.mask, columns.lengths)
        least = loss_kinds.LOSSES[self.settings.loss].least_live(options)
        return total / counted_prompts(live, least).clamp(min=1)


def _check_prompts(
    labels: Tensor,
    teacher_rewards: Tensor,
    response_ids: Tensor | None,
    mask: Tensor | None,
    read_as: Tensor | None,
) -> None:
    argument_checks.check_tensor("labels", labels)
    argument_checks.check_tensor("teacher_rewards", teacher_rewards)
    argument_checks.check_tensors(mask=mask, read_as=read_as, response_ids=response_ids)
    shape = argument_checks.shape(teacher_rewards)
    if teacher_rewards.ndim != 2:
        raise ValueError(f"teacher_rewards must be (P, N), got {shape}")
    if read_as is not None:
        count = len(labels) if response_ids is None else teacher_rewards.numel()
        argument_checks.check_places("read_as", read_as, teacher_rewards, count)
    elif response_ids is None and len(labels) != teacher_rewards.numel():
        raise ValueError(
            f"labels must have P * N = {teacher_rewards.numel()} rows for teacher_rewards {shape}, "
            "unless response_ids are given, or read_as for responses that are read once; "
            f"got {argument_checks.shape(labels)}"
        )
    if mask is not None and (mask.shape != teacher_rewards.shape or mask.dtype != torch.bool):
        given = f"{mask.dtype} {argument_checks.shape(mask)}"
        raise ValueError(f"mask must be bool of shape {shape}, got {given}")
