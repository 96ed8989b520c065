"""From prepared rows to batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from pad_fast.models.layout import PromptGroup, first_equal
from pad_fast.models.neighbour_effects import ONE_SIDE, Sides
from pad_fast.models.packing import pack, split
from pad_fast.training.row_columns import LARGEST_REWARD


@dataclass(frozen=True)
class Slicing:
    """How batches are laid out for a model, and cut into slices that it reads one by one.

    Args:
        layout: one of ``pad_fast.models.layout.LAYOUTS``.
        max_tokens: the most tokens of a slice; None for no limit.
        sides: lengths that the model may not read in one call.
        one_row, bucketed: as for :func:`pad_fast.models.packing.pack`.
    """

    layout: str = "padded"
    max_tokens: int | None = None
    sides: Sides = ONE_SIDE
    one_row: bool = False
    bucketed: bool = False

    @property
    def cuts(self) -> bool:
        """Whether a batch may be of several slices."""
        return self.max_tokens is not None or bool(self.sides)


class PADCollator:
    """A batch of P prompts with up to N responses each, from P prepared rows.

    Args:
        layout: one of ``pad_fast.models.layout.LAYOUTS``; None for what PADTrainer finds that its
            model takes ("padded" without a trainer).
        max_tokens: the most tokens of a slice; None likewise (one slice without a trainer).

    Returns:
        A dictionary. ``teacher_rewards`` (P, N) float32 comes first: Trainer counts prompts by it.
        ``mask`` (P, N) bool is True for live responses and ``from_teacher`` for the teacher's own.
        ``anchor_rewards`` (P, N) float32 is there if the rows have them. ``lengths`` (P, N) int64,
        ``clipped`` (P, N) bool and the number ``num_tokens`` are for metrics. ``slices`` are what
        the model reads, one after the other: fields of :class:`pad_fast.models.packing.PackedRows`,
        of live responses only, where response i of prompt p has the number p * N + i. Equal
        responses of a prompt are read once, as the first of them: ``read_as`` (P, N) int64 is the
        number under which each response is read.

    Raises:
        ValueError: a reward is neither finite in float32 nor None.

    Example:
        >>> row = {"prompt_ids": [5, 6], "completion_ids": [[7, 8], [9]], "clipped": [False] * 2}
        >>> batch = PADCollator()([{**row, "teacher_rewards": [0.5, 1.5]}])
        >>> batch["teacher_rewards"], batch["lengths"]
        (tensor([[0.5000, 1.5000]]), tensor([[2, 1]]))
    """

    def __init__(self, layout: str | None = None, max_tokens: int | None = None) -> None:
        self.layout, self.max_tokens = layout, max_tokens
        self.slicing = Slicing(layout or "padded", max_tokens)

    def sliced(self, slicing: Slicing) -> Self:
        """A copy for one model. What was given stays, so that another model is chosen for anew."""
        found = copy.copy(self)
        found.slicing = slicing
        return found

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        width = max(len(row["completion_ids"]) for row in rows)
        groups = [live_group(row, p * width) for p, row in enumerate(rows)]
        how = self.slicing
        slices = [
            pack(part, how.layout, one_row=how.one_row, bucketed=how.bucketed)._asdict()
            for part in split(groups, how.max_tokens, how.layout, how.sides)
        ]
        return {
            **_tables(rows, width),
            "slices": slices,
            "num_tokens": sum(map(_live_tokens, rows)),
        }


def _tables(rows: Sequence[Mapping[str, Any]], width: int) -> dict[str, torch.Tensor]:
    """The (P, N) tensors of a batch, N being ``width``."""
    shape = (len(rows), width)
    teacher, mask = np.zeros(shape), np.zeros(shape, dtype=bool)
    lengths, clipped = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    own, read_as = np.zeros(shape, dtype=bool), np.arange(shape[0] * width).reshape(shape)
    for p, row in enumerate(rows):
        n = len(row["completion_ids"])
        read_as[p, :n] = p * width + np.asarray(_read_places(row), dtype=np.int64)
        mask[p, :n] = [reward is not None for reward in row["teacher_rewards"]]
        teacher[p, mask[p]] = [reward for reward in row["teacher_rewards"] if reward is not None]
        own[p, :n] = row.get("from_teacher") or False
        lengths[p, :n] = [len(ids) for ids in row["completion_ids"]]
        clipped[p, :n] = row["clipped"]
    if not (np.abs(teacher) <= LARGEST_REWARD).all():
        p, i = np.argwhere(~(np.abs(teacher) <= LARGEST_REWARD))[0]
        raise ValueError(
            "teacher_rewards must be finite in float32 or None, "
            f"got {teacher[p, i]} for response {i} of row {p} of a batch"
        )
    return {
        "teacher_rewards": torch.from_numpy(teacher.astype(np.float32)),
        **_anchors(rows, mask),
        "mask": torch.from_numpy(mask),
        "from_teacher": torch.from_numpy(own),
        "lengths": torch.from_numpy(lengths),
        "clipped": torch.from_numpy(clipped),
        "read_as": torch.from_numpy(read_as),
    }


def _anchors(rows: Sequence[Mapping[str, Any]], mask: np.ndarray) -> dict[str, torch.Tensor]:
    """The column ``anchor_rewards``, if the rows have it for all live responses."""
    if any(row.get("anchor_rewards") is None for row in rows):
        return {}
    found = np.zeros(mask.shape, dtype=np.float32)
    for p, row in enumerate(rows):
        values = row["anchor_rewards"]
        for i in np.flatnonzero(mask[p]):
            if values[i] is None:
                raise ValueError(
                    f"anchor_rewards must hold the reward of live response {i} as it is read; one "
                    "that is cut has none, unless PADTrainer computes it before a training"
                )
            found[p, i] = values[i]
    return {"anchor_rewards": torch.from_numpy(found)}


def _read_places(row: Mapping[str, Any]) -> list[int]:
    """For each response the place of the one that is read for it: the first equal live one."""
    live = [i for i, reward in enumerate(row["teacher_rewards"]) if reward is not None]
    places = list(range(len(row["completion_ids"])))
    for i, first in zip(live, first_equal([row["completion_ids"][i] for i in live]), strict=True):
        places[i] = live[first]
    return places


def _live_tokens(row: Mapping[str, Any]) -> int:
    """Tokens of the live responses, each with its prompt, however often they are read."""
    pairs = zip(row["completion_ids"], row["teacher_rewards"], strict=True)
    return sum(len(row["prompt_ids"]) + len(ids) for ids, reward in pairs if reward is not None)


def live_group(row: Mapping[str, Any], first: int = 0) -> PromptGroup:
    """The distinct responses of a prepared row that have a reward.

    Response i has the number ``first + i``; of equal responses the first one is there.
    """
    rewards, ids = row["teacher_rewards"], row["completion_ids"]
    read = enumerate(_read_places(row))
    places = [i for i, place in read if i == place and rewards[i] is not None]
    return PromptGroup(row["prompt_ids"], [ids[i] for i in places], [first + i for i in places])
