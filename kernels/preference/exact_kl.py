"""preference_kl: KL(P_t || P_s) or KL(P_s || P_t) over all rankings, from the 2^n sets of responses that can remain.

A set is a bit mask, and a number for each set is one tensor (2^n,): no table, no index. With w_S the probability that S is ever
the set that remains, KL = sum_S w_S KL(softmax_S(x) || softmax_S(y)), x being the side that ranks. Each pass takes all sets from
one size to the next: what S gets from S + {i} is its neighbour along bit i, and the chance that i is ranked first of S + {i} is
sigmoid(x_i - L_S), L_S = log sum_{j in S} exp x_j, with no look at S + {i}. Sets of another size hold 0 meanwhile, n / 2 times the
arithmetic of a recursion that visits each transition once, and none of its addresses. A set with a response that is not live is
never reached from the set of the live ones.

What it costs, reasoned and not timed, for n = 8: 2 n^2 2^n = 32,768 special-function results (exponential, reciprocal) and about
200,000 other operations a prompt at most; the compiler keeps the chances of up to 9 responses from pass to pass, and most of those
results are saved. 512 prompts on the 132 multiprocessors of an H200 are 127,000 results and 780,000 operations each, 8,000 and 6,100
clocks at 16 and 128 of them a clock: about 5 us at 1.7 GHz where the pipes are full. There are two warps a prompt and so two a
scheduler, which is few, so rather two or three times that; 60 us are asked for. Memory moves 12 bytes a response. Two warps hold 256
sets, 4 a thread: neighbours along two bits are in the same thread, along five in another lane, along one in the other warp. For
n = 12 the same sum gives 0.15 ms.
"""

import triton
import triton.language as tl

from ..common.numerics import exp
from .primitives import LOWEST, best, living_bits, one

KEPT = tl.constexpr(
    9
)  # responses up to which each set's n chances are kept in registers from pass to pass


@triton.jit
def _scaled(rewards_ptr, row, alive, beta, N: tl.constexpr):
    """(x_0, ..., x_{n-1})."""
    top = best(rewards_ptr, row, alive, N, beta.dtype)
    x = ()
    for i in tl.static_range(N):
        x = x + (one(rewards_ptr, row * N + i, ((alive >> i) & 1) == 1, top, beta),)  # type: ignore[assignment]
    return x


@triton.jit
def _log_totals(x, sets, N: tl.constexpr, ACC: tl.constexpr):
    """log sum_{i in S} exp x_i of each set S; LOWEST for the empty one."""
    top = tl.full(sets.shape, LOWEST, ACC)
    for i in tl.static_range(N):
        top = tl.where((sets >> i) & 1 == 1, tl.maximum(top, x[i]), top)
    total = tl.zeros(sets.shape, ACC)
    for i in tl.static_range(N):
        total += tl.where((sets >> i) & 1 == 1, exp(x[i] - top), 0.0)
    return top + tl.log(tl.maximum(total, 1.0))  # the best alone gives 1


@triton.jit
def _neighbours(values, i: tl.constexpr, FROM: tl.constexpr):
    """Each set's neighbour along bit i, for the sets without i (FROM = 1) or with it (FROM = 0); 0 for the others."""
    bit = tl.arange(0, 2)[None, :, None]
    cube = tl.reshape(values, (values.shape[0] >> (i + 1), 2, 1 << i))
    neighbour = tl.sum(
        tl.where(bit == FROM, cube, 0.0), axis=1, keep_dims=True
    )  # one of the two is 0
    return tl.reshape(tl.where(bit == FROM, 0.0, neighbour), values.shape)


@triton.jit
def _afresh(log_total, x, N: tl.constexpr):
    """The same log-denominators, to the compiler others: x is finite, but it cannot know that the product is 0.

    Of ten responses or more, the n softmaxes of each set do not fit into registers. They depend on no pass, so the compiler
    would work them all out before the loop, or keep them from one to the next, and spill them.
    """
    return log_total + x[0] * 0.0 if N > KEPT else log_total


@triton.jit
def _reached(x, log_total, sets, alive, N: tl.constexpr, ACC: tl.constexpr):
    """w_S: the probability that S is the set that remains at some step, if x ranks."""
    arriving = tl.where(sets == alive, 1.0, 0.0).to(ACC)
    reached = arriving
    for _ in range(N - 2):  # sets of one response add nothing
        log_total = _afresh(log_total, x, N)
        leaving = arriving
        arriving = tl.zeros(sets.shape, ACC)
        for i in tl.static_range(N):
            arriving += _neighbours(leaving, i, FROM=1) / (1.0 + exp(log_total - x[i]))
        reached += arriving
    return reached


@triton.jit
def _to_go(x, log_total, step, sets, N: tl.constexpr):
    """V_S: the divergence that is left where S remains, from that of each step. Passes are as many as sizes."""
    left = step
    for _ in range(N - 2):
        log_total = _afresh(log_total, x, N)
        after = left
        left = step
        for i in tl.static_range(N):
            left += tl.where(
                (sets >> i) & 1 == 1, exp(x[i] - log_total) * _neighbours(after, i, FROM=0), 0.0
            )
    return left


@triton.jit(
    do_not_specialize_on_alignment=[
        "loss_ptr",
        "grad_ptr",
        "student_ptr",
        "teacher_ptr",
        "live_ptr",
    ]
)
def preference_kl(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    beta: tl.float64,
    teacher_beta: tl.float64,
    N: tl.constexpr,
    REVERSE: tl.constexpr,  # the student ranks
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    beta = tl.full((), beta, ACC)
    teacher_beta = tl.full((), teacher_beta, ACC)
    alive = living_bits(live_ptr, row, N)
    ranks_ptr, ranks_beta = (student_ptr, beta) if REVERSE else (teacher_ptr, teacher_beta)
    other_ptr, other_beta = (teacher_ptr, teacher_beta) if REVERSE else (student_ptr, beta)
    x = _scaled(ranks_ptr, row, alive, ranks_beta, N)
    sets = tl.arange(0, 1 << N)
    log_x = _log_totals(x, sets, N, ACC)
    reached = _reached(x, log_x, sets, alive, N, ACC)
    y = _scaled(
        other_ptr, row, alive, other_beta, N
    )  # read here, as n more numbers would not stay in registers meanwhile
    log_y = _log_totals(y, sets, N, ACC)

    log_x = _afresh(log_x, x, N)
    step = tl.zeros(sets.shape, ACC)  # the divergence of the choice from each set
    for i in tl.static_range(N):
        log_p, log_q = x[i] - log_x, y[i] - log_y
        step += tl.where((sets >> i) & 1 == 1, exp(log_p) * (log_p - log_q), 0.0)
    tl.store(loss_ptr + row, tl.maximum(tl.sum(reached * step, 0), 0.0))

    left = _to_go(x, log_x, step, sets, N) if REVERSE else step
    log_x, log_y = _afresh(log_x, x, N), _afresh(log_y, y, N)
    for i in tl.static_range(N):
        log_p, log_q = x[i] - log_x, y[i] - log_y
        if REVERSE:
            slope = exp(log_p) * (log_p - log_q + _neighbours(left, i, FROM=0) - left)
        else:
            slope = exp(log_q) - exp(log_p)
        slope = tl.where((sets >> i) & 1 == 1, reached * slope, 0.0)
        tl.store(grad_ptr + row * N + i, beta * tl.sum(slope, 0))
