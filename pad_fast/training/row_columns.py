"""The columns of a row that hold a value for each response: their checks, and equal responses."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch

from pad_fast.conversation.given import as_list
from pad_fast.preference.best_and_worst import best_and_worst

LARGEST_REWARD = float(np.finfo(np.float32).max)


def more_columns(row: dict[str, Any], n: int) -> tuple[list[float | None] | None, list[bool]]:
    """The anchor's rewards of ``n`` responses, None if there are none, and which the teacher wrote.

    A response that is left out may lack its reward.
    """
    anchor, own = row.get("anchor_rewards"), row.get("from_teacher")
    for name, values in (("anchor_rewards", anchor), ("from_teacher", own)):
        if values is not None and len(as_list(name, values)) != n:
            raise ValueError(
                f"{name} must hold one value for each of the {n} completions, got {len(values)}"
            )
    if anchor is not None:
        anchor = [
            float(reward) if check_reward("anchor_rewards", reward, i) else None
            for i, reward in enumerate(as_list("anchor_rewards", anchor))
        ]
    own = [False] * n if own is None else as_list("from_teacher", own)
    if wrong := [value for value in own if not isinstance(value, (bool, np.bool_))]:
        raise ValueError(f"from_teacher must hold true and false, got {wrong[0]!r}")
    return anchor, [bool(value) for value in own]


def anchor_as_read(
    anchor: list[float | None] | None, live: list[bool], cut: list[bool]
) -> list[float | None] | None:
    """The anchor's rewards of responses as they are read: None for those that were cut.

    Raises:
        ValueError: a live response lacks its reward.
    """
    if anchor is None:
        return None
    for i, reward in enumerate(anchor):
        if live[i] and reward is None:
            raise ValueError(
                "anchor_rewards must hold the reward of each response that has a reward in "
                f"teacher_rewards, got null for response {i}; leave the column out to have "
                "PADTrainer compute it"
            )
    return [None if cut[i] else reward for i, reward in enumerate(anchor)]


def without_repeats(
    completion_ids: list[list[int]], teacher: list[float | None], own: list[bool]
) -> tuple[list[float | None], list[bool]]:
    """The columns with each response once: at its first place, with the mean of its rewards."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, reward) in enumerate(zip(completion_ids, teacher, strict=True)):
        if reward is not None:
            places.setdefault(tuple(ids), []).append(i)
    kept: list[float | None] = [None] * len(teacher)
    theirs = [False] * len(teacher)
    for first, *others in places.values():
        same = [first, *others]
        rewards = [float(teacher[i]) for i in same]  # type: ignore[arg-type]
        kept[first] = sum(rewards) / len(same) if others else rewards[0]
        theirs[first] = any(own[i] for i in same)
    return kept, theirs


def as_counted(row: dict[str, Any], repeats: str) -> dict[str, Any]:
    """A scored row with the ``teacher_rewards`` that a training with this ``repeats`` counts.

    With "once" they are those of :func:`without_repeats`: None for all but the first of equal ones.
    """
    if repeats != "once":
        return row
    teacher = row["teacher_rewards"]
    counted, _ = without_repeats(row["completion_ids"], teacher, [False] * len(teacher))
    return {**row, "teacher_rewards": counted}


def part_of(teacher: list[float | None], train_on: str) -> list[float | None]:
    """The rewards of the responses that a setting ``train_on`` reads, None for all others.

    Equal rewards are no pair: where all are equal, "pair" reads the best one alone.
    """
    if train_on not in ("best", "pair") or all(reward is None for reward in teacher):
        return teacher
    rewards = torch.from_numpy(np.array([teacher], dtype=np.float64))  # None becomes NaN
    best, worst = best_and_worst(rewards, ~rewards.isnan())[0].tolist()
    paired = train_on == "pair" and teacher[best] != teacher[worst]
    kept = {best, worst} if paired else {best}
    return [reward if i in kept else None for i, reward in enumerate(teacher)]


def shown(value: Any) -> str:
    """A value as it stands in a message; a number of thousands of digits by its size."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def check_reward(name: str, reward: Any, i: int) -> bool:
    """Whether response ``i`` has a reward; ValueError if it is not finite in a batch's float32."""
    if reward is None:
        return False
    real = isinstance(reward, Real) and not isinstance(reward, bool)
    if not real or not -LARGEST_REWARD <= reward <= LARGEST_REWARD:
        raise ValueError(
            f"{name} must be finite in float32, or null for a response that is left out, "
            f"got {shown(reward)} for response {i}"
        )
    return True
