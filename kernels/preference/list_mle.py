"""preference_vpd: ListMLE, -log P_s of the teacher's ranking, without sorting: who comes after whom is a comparison.

L_j, the log-denominator where response j is ranked, sums over those that do not come before it; the gradient at i is
sum_j exp(x_i - L_j) over those that do not come after it, less 1. A program takes BLOCK responses of a group and looks at all pairs,
for n <= 128 once each: n^2 exponentials, twice. For more, each of its programs finds all L_j again, and the first adds the loss.
"""

import triton
import triton.language as tl

from ..common.numerics import exp
from .primitives import LOWEST, living, one


@triton.jit
def not_before(key, place, other_key, other_place, other_live):
    """Whether the other comes after, by its key, or is the same; equal keys go by place. Best first."""
    return other_live & ((other_key < key) | ((other_key == key) & (other_place >= place)))


@triton.jit
def _keys(teacher_ptr, places, live):
    """Teacher's rewards in their own dtype: a comparison needs no more, and may no less."""
    keys = tl.load(teacher_ptr + places, mask=live, other=0.0)
    if keys.dtype != tl.float64:
        keys = keys.to(tl.float32)
    return keys


@triton.jit(
    do_not_specialize=["responses"],
    do_not_specialize_on_alignment=[
        "loss_ptr",
        "grad_ptr",
        "student_ptr",
        "teacher_ptr",
        "live_ptr",
    ],
)
def preference_vpd(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    responses,
    beta: tl.float64,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,  # responses j at a time
):
    row = tl.program_id(0).to(tl.int64)
    beta = tl.full((), beta, ACC)
    start = row * responses
    top = tl.full((BLOCK,), float("-inf"), ACC)
    for first in range(0, responses, BLOCK):
        place = first + tl.arange(0, BLOCK)
        live = living(live_ptr, start + place, place < responses)
        top = tl.maximum(top, tl.load(student_ptr + start + place, mask=live, other=float("-inf")))
    top = tl.max(top, 0)
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own_live = living(live_ptr, start + own, own < responses)
    own_key = _keys(teacher_ptr, start + own, own_live)
    own_x = one(student_ptr, start + own, own_live, top, beta)
    loss, grad = tl.zeros((STEP,), ACC), tl.zeros((BLOCK,), ACC)
    for first in range(0, responses, STEP):
        j = first + tl.arange(0, STEP)
        j_live = living(live_ptr, start + j, j < responses)
        j_key = _keys(teacher_ptr, start + j, j_live)
        peak, total = tl.full((STEP,), LOWEST, ACC), tl.zeros((STEP,), ACC)
        for second in range(0, responses, BLOCK):
            place = second + tl.arange(0, BLOCK)
            live = living(live_ptr, start + place, place < responses)
            key = _keys(teacher_ptr, start + place, live)
            x = one(student_ptr, start + place, live, top, beta)
            after = not_before(
                j_key[:, None], j[:, None], key[None, :], place[None, :], live[None, :]
            )
            higher = tl.maximum(peak, tl.max(tl.where(after, x[None, :], LOWEST), 1))
            total = total * exp(peak - higher) + tl.sum(
                tl.where(after, exp(x[None, :] - higher[:, None]), 0.0), 1
            )
            peak = higher
        log_total = peak + tl.log(tl.maximum(total, 1.0))  # the best of them gives 1
        loss += tl.where(j_live, log_total - one(student_ptr, start + j, j_live, top, beta), 0.0)
        after = j_live[:, None] & not_before(
            j_key[:, None], j[:, None], own_key[None, :], own[None, :], own_live[None, :]
        )
        grad += tl.sum(tl.where(after, exp(own_x[None, :] - log_total[:, None]), 0.0), 0)
    if tl.program_id(1) == 0:
        tl.store(loss_ptr + row, tl.sum(loss, 0))
    tl.store(
        grad_ptr + start + own, tl.where(own_live, beta * (grad - 1.0), 0.0), mask=own < responses
    )
