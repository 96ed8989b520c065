"""preference_kl: KL(P_t || P_s) or KL(P_s || P_t) over all rankings, and its gradient.

A ranking passes through sets of responses that remain. With w_S the probability that S is ever the
set that remains, KL = sum_S w_S KL(softmax_S(x) || softmax_S(y)), where x are the scaled rewards of
the side that ranks. A set is a bit mask, and a number for each set is one tensor (2^n,): 2^n sets
in place of n! rankings.
"""

import triton
import triton.language as tl

from ..common.numerics import exp
from .primitives import LOWEST, best_reward, is_live, load_live_bits, scaled_reward

# How a pass works. It takes all sets from one size to the next: S gets from S + {i} what its
# neighbour along bit i holds, times the chance that i is ranked first of S + {i}, which is
# sigmoid(x_i - L_S) with L_S = log sum_{j in S} exp x_j. So S needs only that one number of
# S + {i}. Sets of another size hold 0 meanwhile. That is n / 2 times the arithmetic of a
# recursion that visits each transition once, but without its addresses. A set with a response that
# is not live is never reached from the set of the live ones.
#
# What it costs by arithmetic, with n = 8. A prompt takes at most 2 n^2 2^n = 32,768
# special-function results (exponential, reciprocal) and about 200,000 other operations; the
# compiler keeps the chances of up to 9 responses from pass to pass, which saves most of those
# results. 512 prompts on the 132 multiprocessors of an H200 are 127,000 results and 780,000
# operations each, or 8,000 and 6,100 clocks at 16 and 128 a clock: about 5 us at 1.7 GHz with full
# pipes. Two warps a prompt are two a scheduler, which is few, so two or three times that is likely,
# and an H200 took 12 us. Memory moves 12 bytes a response. Two warps hold 256 sets, 4 a thread:
# neighbours along two bits are in the same thread, along five in another lane, along one in the
# other warp. For n = 12 the same sum gives 0.15 ms, and an H200 took 0.74.

# Groups up to this size keep the n chances of each set in registers from pass to pass.
KEPT = tl.constexpr(9)


@triton.jit
def _scaled_rewards(rewards_ptr, row, live_bits, beta, N: tl.constexpr):
    """(x_0, ..., x_{n-1}) of a group."""
    top = best_reward(rewards_ptr, row, live_bits, N, beta.dtype)
    x = ()
    for i in tl.static_range(N):
        live = is_live(live_bits, i)
        x = x + (scaled_reward(rewards_ptr, row * N + i, live, top, beta),)  # type: ignore[assignment]
    return x


@triton.jit
def _log_totals(x, sets, N: tl.constexpr, ACC: tl.constexpr):
    """L_S = log sum_{i in S} exp x_i of each set S; LOWEST for the empty one."""
    top = tl.full(sets.shape, LOWEST, ACC)
    for i in tl.static_range(N):
        top = tl.where((sets >> i) & 1 == 1, tl.maximum(top, x[i]), top)
    total = tl.zeros(sets.shape, ACC)
    for i in tl.static_range(N):
        total += tl.where((sets >> i) & 1 == 1, exp(x[i] - top), 0.0)
    return top + tl.log(tl.maximum(total, 1.0))  # the best response alone gives 1


@triton.jit
def _neighbours(values, i: tl.constexpr, FROM: tl.constexpr):
    """The value of each set's neighbour along bit i, and 0 for sets on the neighbours' side.

    FROM = 1: sets without i get the value of the set with i. FROM = 0: the other way around.
    """
    bit = tl.arange(0, 2)[None, :, None]
    cube = tl.reshape(values, (values.shape[0] >> (i + 1), 2, 1 << i))
    # A sum of two numbers of which one is 0.
    neighbour = tl.sum(tl.where(bit == FROM, cube, 0.0), axis=1, keep_dims=True)
    return tl.reshape(tl.where(bit == FROM, 0.0, neighbour), values.shape)


@triton.jit
def _recomputed(log_total, x, N: tl.constexpr):
    """The same log-denominators, but others for the compiler, which cannot know that x * 0 is 0.

    With ten responses or more, the n softmaxes of each set do not fit into registers. They depend
    on no pass, so the compiler would compute them all before the loop, and spill them.
    """
    return log_total + x[0] * 0.0 if N > KEPT else log_total


@triton.jit
def _reached(x, log_total, sets, live_bits, N: tl.constexpr, ACC: tl.constexpr):
    """w_S: the probability that S is the set that remains at some step of a ranking."""
    arriving = tl.where(sets == live_bits, 1.0, 0.0).to(ACC)
    reached = arriving
    for _ in range(N - 2):  # sets of one response add nothing
        log_total = _recomputed(log_total, x, N)
        leaving = arriving
        arriving = tl.zeros(sets.shape, ACC)
        for i in tl.static_range(N):
            arriving += _neighbours(leaving, i, FROM=1) / (1.0 + exp(log_total - x[i]))
        reached += arriving
    return reached


@triton.jit
def _divergence_ahead(x, log_total, step, sets, N: tl.constexpr):
    """V_S: the divergence of all steps from S on, from that of each single step."""
    ahead = step
    for _ in range(N - 2):
        log_total = _recomputed(log_total, x, N)
        after = ahead
        ahead = step
        for i in tl.static_range(N):
            chosen = exp(x[i] - log_total) * _neighbours(after, i, FROM=0)
            ahead += tl.where((sets >> i) & 1 == 1, chosen, 0.0)
    return ahead


@triton.jit(
    do_not_specialize_on_alignment=[
        "loss_ptr",
        "grad_ptr",
        "student_ptr",
        "teacher_ptr",
        "live_ptr",
        "lengths_ptr",
    ]
)
def preference_kl(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    lengths_ptr,  # (G, N) integers, or None
    beta: tl.float64,
    teacher_beta: tl.float64,
    N: tl.constexpr,
    REVERSE: tl.constexpr,  # KL(P_s || P_t): the student ranks
    ACC: tl.constexpr,
):
    """A program takes a group."""
    row = tl.program_id(0).to(tl.int64)
    beta = tl.full((), beta, ACC)
    teacher_beta = tl.full((), teacher_beta, ACC)
    live_bits = load_live_bits(live_ptr, lengths_ptr, row, N)
    ranks_ptr, ranks_beta = (student_ptr, beta) if REVERSE else (teacher_ptr, teacher_beta)
    other_ptr, other_beta = (teacher_ptr, teacher_beta) if REVERSE else (student_ptr, beta)
    x = _scaled_rewards(ranks_ptr, row, live_bits, ranks_beta, N)
    sets = tl.arange(0, 1 << N)
    log_x = _log_totals(x, sets, N, ACC)
    reached = _reached(x, log_x, sets, live_bits, N, ACC)
    # y is read after the passes, during which n more numbers would not stay in registers.
    y = _scaled_rewards(other_ptr, row, live_bits, other_beta, N)
    log_y = _log_totals(y, sets, N, ACC)

    log_x = _recomputed(log_x, x, N)
    step = tl.zeros(sets.shape, ACC)  # the divergence of the choice from each set
    for i in tl.static_range(N):
        log_p, log_q = x[i] - log_x, y[i] - log_y
        step += tl.where((sets >> i) & 1 == 1, exp(log_p) * (log_p - log_q), 0.0)
    tl.store(loss_ptr + row, tl.maximum(tl.sum(reached * step, 0), 0.0))

    ahead = _divergence_ahead(x, log_x, step, sets, N) if REVERSE else step
    log_x, log_y = _recomputed(log_x, x, N), _recomputed(log_y, y, N)
    for i in tl.static_range(N):
        log_p, log_q = x[i] - log_x, y[i] - log_y
        if REVERSE:
            slope = exp(log_p) * (log_p - log_q + _neighbours(ahead, i, FROM=0) - ahead)
        else:
            slope = exp(log_q) - exp(log_p)
        slope = tl.where((sets >> i) & 1 == 1, reached * slope, 0.0)
        tl.store(grad_ptr + row * N + i, beta * tl.sum(slope, 0))
