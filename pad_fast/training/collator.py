"""Prepared rows to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pad_fast.models.layout import PromptGroup
from pad_fast.models.packing import pack, split
from pad_fast.training.rows import LARGEST


class PADCollator:
    """P prepared rows to a batch of P prompts with up to N responses each.

    ``teacher_rewards`` (P, N) float32 comes first, as Trainer counts the batch by it; ``mask`` (P, N) bool is True for a live
    response, whose reward must be finite (ValueError); ``lengths`` (P, N) int64 and ``clipped`` (P, N) bool are for metrics, as is the
    number ``num_tokens``. ``slices`` are what the model reads, one after the other: fields of
    :class:`pad_fast.models.packing.PackedRows`, of live responses only, numbered p * N + i. There is one slice, unless ``max_tokens``
    asks for smaller ones.

    ``layout`` is one of ``pad_fast.models.layout.LAYOUTS``; PADTrainer sets what its model can take, and ``options`` of
    :func:`pad_fast.models.packing.pack`, unless a layout is given.
    """

    def __init__(self, layout: str | None = None, max_tokens: int | None = None) -> None:
        self.layout, self.max_tokens = layout, max_tokens
        self.options: dict[str, bool] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        width = max(len(row["completion_ids"]) for row in rows)
        teacher, mask = np.zeros((len(rows), width)), np.zeros((len(rows), width), dtype=bool)
        lengths, clipped = (
            np.zeros(teacher.shape, dtype=np.int64),
            np.zeros(teacher.shape, dtype=bool),
        )
        for p, row in enumerate(rows):
            n = len(row["completion_ids"])
            mask[p, :n] = [reward is not None for reward in row["teacher_rewards"]]
            teacher[p, mask[p]] = [
                reward for reward in row["teacher_rewards"] if reward is not None
            ]
            lengths[p, :n] = [len(ids) for ids in row["completion_ids"]]
            clipped[p, :n] = row["clipped"]
        if not (np.abs(teacher) <= LARGEST).all():
            p, i = np.argwhere(~(np.abs(teacher) <= LARGEST))[0]
            raise ValueError(
                f"teacher_rewards must be finite in float32 or None, got {teacher[p, i]} for response {i} of row {p} of a batch"
            )
        groups = [live_group(row, p * width) for p, row in enumerate(rows)]
        layout = self.layout or "padded"
        slices = [
            pack(part, layout, **self.options)._asdict()
            for part in split(groups, self.max_tokens, layout)
        ]
        return {
            "teacher_rewards": torch.from_numpy(teacher.astype(np.float32)),
            "mask": torch.from_numpy(mask),
            "lengths": torch.from_numpy(lengths),
            "clipped": torch.from_numpy(clipped),
            "slices": slices,
            "num_tokens": sum(
                len(prompt) + len(response)
                for prompt, responses, _ in groups
                for response in responses
            ),
        }


def live_group(row: Mapping[str, Any], first: int = 0) -> PromptGroup:
    """The responses of a prepared row that have a reward; response i is number ``first + i``."""
    live = [i for i, reward in enumerate(row["teacher_rewards"]) if reward is not None]
    return PromptGroup(
        row["prompt_ids"], [row["completion_ids"][i] for i in live], [first + i for i in live]
    )
