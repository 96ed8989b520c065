"""The rewards and the columns beside them that a loss is given: checks, and their groups."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from pad_fast import argument_checks
from pad_fast.preference.loss_kinds import Loss

Column = TypeVar("Column", Tensor, Tensor | None)


def check_rewards(student: Tensor, teacher: Tensor, mask: Tensor | None, least: int = 2) -> None:
    """Raise ValueError unless rewards are (P, N) on one device, and so is the mask.

    N is at least ``least``: 2 to be ranked, 1 for a loss that has a likelihood.
    """
    argument_checks.check_floating("student_rewards", student)
    argument_checks.check_floating("teacher_rewards", teacher)
    argument_checks.check_tensors(mask=mask)
    shape = argument_checks.shape(student)
    if student.ndim != 2 or student.shape[1] < least:
        responses = "responses" if least > 1 else "response"
        rule = f"must be (P, N) with at least N = {least} {responses} a prompt"
        raise ValueError(f"student_rewards {rule}, got {shape}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True for live responses, got {mask.dtype}")
    for name, tensor in (("teacher_rewards", teacher), ("mask", mask)):
        if tensor is None:
            continue
        if tensor.shape != student.shape:
            rule = f"must have the shape of student_rewards, {shape}"
            raise ValueError(f"{name} {rule}, got {argument_checks.shape(tensor)}")
        if tensor.device != student.device:
            rule = f"must be on the device of student_rewards, {student.device}"
            raise ValueError(f"{name} {rule}, got {tensor.device}")


def check_columns(
    loss: Loss,
    student: Tensor,
    anchor: Tensor | None,
    from_teacher: Tensor | None,
    lengths: Tensor | None = None,
) -> None:
    """Raise ValueError unless the columns beside the rewards (P, N) are what a loss needs."""
    if loss.needs_anchor and anchor is None:
        raise ValueError(
            f"loss={loss.name!r} needs anchor_rewards, the rewards under the model that the "
            "training started from; got none"
        )
    columns = {
        "anchor_rewards": (anchor, argument_checks.DTYPES, "floating point"),
        "from_teacher": (from_teacher, (torch.bool,), "bool"),
        "lengths": (lengths, argument_checks.INTEGERS, "int32 or int64"),
    }
    for name, (tensor, dtypes, rule) in columns.items():
        if tensor is None:
            continue
        argument_checks.check_tensor(name, tensor)
        if tensor.shape != student.shape or tensor.device != student.device:
            place = f"must be {argument_checks.shape(student)} on {student.device}"
            given = f"{argument_checks.shape(tensor)} on {tensor.device}"
            raise ValueError(f"{name} {place}, like student_rewards; got {given}")
        if tensor.dtype not in dtypes:
            raise ValueError(f"{name} must be {rule}, got {tensor.dtype}")


def with_second_place(column: Column) -> Column:
    """A column (P, 1) as (P, 2), the second place False or 0; a wider one as it is.

    Rankings are of at least two places, of which a mask then leaves out the second.
    """
    return column if column is None or column.shape[1] > 1 else pad(column, (0, 1))


def in_full_precision(rewards: Tensor) -> Tensor:
    """Rewards in float32, or in float64 if they are."""
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))


def in_groups(
    student: Tensor, teacher: Tensor, mask: Tensor | None, size: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Student, teacher and mask as (P * groups, n): consecutive live responses form a group.

    The last groups of a prompt are filled up with masked responses.
    """
    num = student.shape[1]
    if size is None or size >= num:
        return student, teacher, mask
    missing = -num % size
    if mask is not None:
        order = (~mask).long().argsort(dim=1, stable=True)  # the live ones first
        student, teacher, mask = (part.gather(1, order) for part in (student, teacher, mask))
    elif missing:
        mask = torch.ones_like(student, dtype=torch.bool)
    student, teacher = (
        pad(rewards, (0, missing)).reshape(-1, size) for rewards in (student, teacher)
    )
    return student, teacher, None if mask is None else pad(mask, (0, missing)).reshape(-1, size)


def with_tokens(live: Tensor | None, lengths: Tensor) -> Tensor:
    """The mask of the live responses that are not empty; without a mask all are live."""
    return lengths > 0 if live is None else (lengths > 0) & live


def counted_prompts(live: Tensor, least: int = 2) -> Tensor:
    """The number of prompts in ``live`` (P, N) with ``least`` live responses, as a tensor ()."""
    return (live.sum(1) >= least).sum()
