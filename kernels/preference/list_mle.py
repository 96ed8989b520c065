"""preference_vpd: ListMLE, -log P_s of the teacher's ranking, and its gradient.

Nothing is sorted: whether one response comes after another is a comparison of their keys.
L_j, the log-denominator of the step that ranks response j, sums over the responses that do not
come before j. The gradient for x_i is the sum of exp(x_i - L_j) over the j that do not come
after i, less 1.
"""

import triton
import triton.language as tl

from ..common.numerics import exp
from .primitives import LOWEST, load_live, scaled_reward


@triton.jit
def not_before(key, place, other_key, other_place, other_live):
    """Whether another response comes after this one in a ranking, or is this one.

    A ranking has the highest key first, and equal keys in the order of their places.
    """
    return other_live & ((other_key < key) | ((other_key == key) & (other_place >= place)))


@triton.jit
def _load_keys(teacher_ptr, places, live):
    """The teacher's rewards as sort keys: 16 bits become float32, float64 stays as it is."""
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
        "lengths_ptr",
    ],
)
def preference_vpd(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    lengths_ptr,  # (G, N) integers, or None
    responses,
    beta: tl.float64,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,  # responses j at a time
):
    """A program takes BLOCK responses of a group, and looks at all pairs of the group.

    With n <= BLOCK that is n^2 exponentials, twice. Each program of a larger group finds all L_j
    again, and the first writes the loss.
    """
    row = tl.program_id(0).to(tl.int64)
    beta = tl.full((), beta, ACC)
    start = row * responses
    top = tl.full((BLOCK,), float("-inf"), ACC)
    for first in range(0, responses, BLOCK):
        place = first + tl.arange(0, BLOCK)
        live = load_live(live_ptr, lengths_ptr, start + place, place < responses)
        top = tl.maximum(top, tl.load(student_ptr + start + place, mask=live, other=float("-inf")))
    top = tl.max(top, 0)
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own_live = load_live(live_ptr, lengths_ptr, start + own, own < responses)
    own_key = _load_keys(teacher_ptr, start + own, own_live)
    own_x = scaled_reward(student_ptr, start + own, own_live, top, beta)
    loss, grad = tl.zeros((STEP,), ACC), tl.zeros((BLOCK,), ACC)
    for first in range(0, responses, STEP):
        j = first + tl.arange(0, STEP)
        j_live = load_live(live_ptr, lengths_ptr, start + j, j < responses)
        j_key = _load_keys(teacher_ptr, start + j, j_live)
        peak, total = tl.full((STEP,), LOWEST, ACC), tl.zeros((STEP,), ACC)
        for second in range(0, responses, BLOCK):
            place = second + tl.arange(0, BLOCK)
            live = load_live(live_ptr, lengths_ptr, start + place, place < responses)
            key = _load_keys(teacher_ptr, start + place, live)
            x = scaled_reward(student_ptr, start + place, live, top, beta)
            after = not_before(
                j_key[:, None], j[:, None], key[None, :], place[None, :], live[None, :]
            )
            higher = tl.maximum(peak, tl.max(tl.where(after, x[None, :], LOWEST), 1))
            total = total * exp(peak - higher)
            total += tl.sum(tl.where(after, exp(x[None, :] - higher[:, None]), 0.0), 1)
            peak = higher
        log_total = peak + tl.log(tl.maximum(total, 1.0))  # the best response alone gives 1
        j_x = scaled_reward(student_ptr, start + j, j_live, top, beta)
        loss += tl.where(j_live, log_total - j_x, 0.0)
        after = j_live[:, None] & not_before(
            j_key[:, None], j[:, None], own_key[None, :], own[None, :], own_live[None, :]
        )
        grad += tl.sum(tl.where(after, exp(own_x[None, :] - log_total[:, None]), 0.0), 0)
    if tl.program_id(1) == 0:
        tl.store(loss_ptr + row, tl.sum(loss, 0))
    grad = tl.where(own_live, beta * (grad - 1.0), 0.0)
    tl.store(grad_ptr + start + own, grad, mask=own < responses)
