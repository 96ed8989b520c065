"""What an evaluation hands to ``compute_metrics``, and returns as predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_utils import denumpify_detensorize

# The numbers of a response that are kept, in the order of the last dimension.
COLUMNS = ("student", "teacher", "lengths", "clipped", "from_teacher")


def response_numbers(rewards: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The numbers (P, N, len(COLUMNS)) of a batch's responses; NaN for one that is left out."""
    columns = (
        rewards.detach(),
        *(batch[name] for name in ("teacher_rewards", "lengths", "clipped", "from_teacher")),
    )
    table = torch.stack([column.float() for column in columns], -1)
    return table.masked_fill(~batch["mask"][..., None], torch.nan)


def prediction_of(tables: Sequence[Tensor], losses: Tensor) -> EvalPrediction:
    """The whole evaluation, as ``compute_metrics`` receives it.

    Args:
        tables: of :func:`response_numbers`, batch by batch.
        losses: loss of each prompt; NaN for one without a ranking.

    Returns:
        ``predictions`` are the student's rewards and ``label_ids`` the teacher's, float32 (P, N)
        in the order of the dataset, NaN for a response that is left out or that pads a smaller
        group. ``inputs`` is a dictionary of ``mask`` (P, N), True for live responses, ``lengths``
        in tokens, ``clipped`` and ``from_teacher``. ``losses`` (P,) are those of the prompts.
    """
    width = max(table.shape[1] for table in tables)
    whole = torch.cat(
        [
            torch.nn.functional.pad(table, (0, 0, 0, width - table.shape[1]), value=torch.nan)
            for table in tables
        ]
    ).numpy()
    found = {name: whole[..., i] for i, name in enumerate(COLUMNS)}
    mask = ~np.isnan(found["teacher"])
    inputs = {
        "mask": mask,
        "lengths": np.where(mask, found["lengths"], 0).astype(np.int64),
        "clipped": mask & (found["clipped"] == 1),
        "from_teacher": mask & (found["from_teacher"] == 1),
    }
    return EvalPrediction(
        predictions=found["student"],
        label_ids=found["teacher"],
        inputs=inputs,  # type: ignore[arg-type]
        losses=losses.numpy(),
    )


def own_metrics(found: Any, prefix: str) -> dict[str, Any]:
    """What ``compute_metrics`` returned, under names that begin with the evaluation's.

    Raises:
        ValueError: it is no dictionary.
    """
    if not isinstance(found, dict):
        raise ValueError(f"compute_metrics must return a dictionary of numbers, got {found!r:.80}")
    return {
        name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": value
        for name, value in denumpify_detensorize(found).items()
    }
