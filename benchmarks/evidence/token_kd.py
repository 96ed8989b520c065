"""Distillation of each token's distribution on the student's own samples, the study's bound.

It needs the teacher's whole distribution at every token and one tokenizer for both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer

from pad_fast.files.stored_rows import Row
from pad_fast.training.config import PADConfig

IGNORED = -100


def token_kl(
    student: Tensor,  # (T, V)
    teacher: Tensor,  # (T, V)
) -> Tensor:  # (T,)
    """KL(teacher || student) of each of T rows of logits over V tokens, in nats."""
    teacher_logp = teacher.log_softmax(-1)
    return (teacher_logp.exp() * (teacher_logp - student.log_softmax(-1))).sum(-1)


class TokenKDTrainer(Trainer):
    """Trains the mean of :func:`token_kl` over the tokens of all responses of a batch.

    Args:
        model: the student.
        args: a batch is counted in prompts, each with all of its responses.
        train_dataset: rows with ``prompt_ids`` and ``completion_ids``.
        processing_class: the tokenizer of both models.
        teacher: folder of the teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        args: PADConfig,
        train_dataset: Any,
        processing_class: Any,
        teacher: str,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=_Padding(processing_class.pad_token_id),
        )
        loaded: Any = AutoModelForCausalLM.from_pretrained(teacher)
        self.teacher = loaded.to(args.device).eval()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over the responses' tokens."""
        live = inputs.pop("labels")[:, 1:] != IGNORED  # (R, T - 1), the token that is predicted
        output = model(**inputs, use_cache=False)
        with torch.no_grad():
            teacher = self.teacher(**inputs, use_cache=False).logits[:, :-1]  # (R, T - 1, V)
        loss = token_kl(output.logits[:, :-1][live], teacher[live]).mean()
        return (loss, output) if return_outputs else loss


class _Padding:
    """Rows to one batch of sequences; the tokens of prompts have no label."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        pairs = [(row["prompt_ids"], ids) for row in rows for ids in row["completion_ids"]]
        width = max(len(prompt) + len(ids) for prompt, ids in pairs)
        found: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for prompt, ids in pairs:
            rest = width - len(prompt) - len(ids)
            found["input_ids"].append([*prompt, *ids, *[self.pad] * rest])
            found["attention_mask"].append([1] * (width - rest) + [0] * rest)
            found["labels"].append([*[IGNORED] * len(prompt), *ids, *[IGNORED] * rest])
        return {name: torch.tensor(values) for name, values in found.items()}
