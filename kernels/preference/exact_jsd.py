"""preference_jsd: the Jensen-Shannon divergence over all n! rankings, and its gradient.

For each set A of the K = n // 2 responses that are ranked first, log P(ranking) = a(order of A) +
b(order of the rest): an outer sum of two vectors, and the probabilities are an outer product.
Sets and orders come from ``jsd_tables.py``.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp
from .primitives import (
    LOWEST,
    best_reward,
    is_live,
    load_live,
    load_live_bits,
    log_add,
    log_mixture_shares,
    scaled_reward,
)

# With c = P_s log(P_s / M), where M is the mean of P_s and P_t, the gradient is that of
# sum c log P_s, and c enters only by its sums over either half.
#
# Tiles are (orders of A, sets, orders of the rest), so that with n = 8 a warp has a set of its own
# and a lane an order of the rest. What belongs to a set and an order, (sets, orders), is computed
# once, and each lane then goes through the orders of A by itself.
#
# What it costs, counted in the machine code for sm_90, with n = 8 and no mask: 18 times four
# sets, about 2,750 instructions for each warp and set. 512 prompts on the 132
# multiprocessors of an H200 are 0.2 million for each of their four schedulers, 0.12 ms at 1.7 GHz
# if one is issued each clock. An H200 took 0.20 ms. A thread takes some 200 registers, which leaves
# two programs a multiprocessor.


@triton.jit
def _own_seats(live_bits, N: tl.constexpr):
    """The seat of each response in 4 bits: 15, no seat, for live ones; the last seats for others.

    Responses that are not live come last in their own order, with probability 1 on both sides. The
    n! rankings then hold those of the live ones, once each, and others of probability 0.
    """
    seats = tl.full((), -1, tl.int64)
    seat = tl.zeros((), tl.int32)
    for i in tl.static_range(N):
        seat += (live_bits >> i) & 1
    for i in tl.static_range(N):
        dead = 1 - ((live_bits >> i) & 1)
        seats ^= ((15 ^ seat) * dead).to(tl.int64) << (4 * i)
        seat += dead
    return seats


@triton.jit
def _ranked(
    orders_ptr, offsets, members, FIRST: tl.constexpr, K: tl.constexpr, ORDERS: tl.constexpr
):
    """The responses (S, O) at the K places of half a ranking, a tuple entry for each place.

    ``members`` (S,) holds the responses of a set in 4 bits each, this half from number FIRST on.
    """
    ranked = ()
    for k in tl.static_range(K):
        place = tl.load(orders_ptr + k * ORDERS + offsets, mask=offsets < ORDERS, other=0)
        shift = (4 * (place.to(tl.int64) + FIRST))[None, :]
        ranked = ranked + (((members[:, None] >> shift) & 15).to(tl.int32),)  # type: ignore[assignment]
    return ranked


@triton.jit
def _possible(ranked, live_bits, seats, there, FIRST: tl.constexpr, K: tl.constexpr):
    """Whether each response that is not live has its own seat, in rankings that are ``there``."""
    for k in tl.static_range(K):
        seat = (seats >> (4 * ranked[k]).to(tl.int64)) & 15
        there = there & (is_live(live_bits, ranked[k]) | (seat == FIRST + k))
    return there


@triton.jit
def _side(rewards_ptr, row, live_bits, beta, N: tl.constexpr, ACC: tl.constexpr):
    """The student's or the teacher's rewards and what scales them: the best one, and beta."""
    return rewards_ptr, best_reward(rewards_ptr, row, live_bits, N, ACC), tl.full((), beta, ACC)


@triton.jit
def _walk(side, group, ranked, below, N: tl.constexpr, K: tl.constexpr):
    """From the last place to the first: log P, and the x and log-denominator of each place.

    ``below`` is the log-denominator of the responses that come after all of them.
    """
    rewards_ptr, top, beta = side
    row, live_bits, _ = group
    x, totals = (), ()
    total = below
    logp = tl.zeros(ranked[0].shape, beta.dtype)
    for place in tl.static_range(K):
        response = ranked[K - 1 - place]
        live = is_live(live_bits, response)
        value = scaled_reward(rewards_ptr, row * N + response, live, top, beta)
        total = log_add(value, total)
        logp += tl.where(live, value - total, 0.0)
        x = (value,) + x  # type: ignore[assignment]
        totals = (total,) + totals  # type: ignore[assignment]
    return logp, x, totals


@triton.jit
def _rest_total(side, group, members, N: tl.constexpr, K: tl.constexpr):
    """The log-denominator (S,) of the responses that are left where the first half is ranked."""
    rewards_ptr, top, beta = side
    row, live_bits, _ = group
    peak = tl.full(members.shape, LOWEST, beta.dtype)
    for k in tl.static_range(K, N):
        response = ((members >> (4 * k)) & 15).to(tl.int32)
        live = is_live(live_bits, response)
        peak = tl.maximum(peak, scaled_reward(rewards_ptr, row * N + response, live, top, beta))
    total = tl.zeros(members.shape, beta.dtype)
    for k in tl.static_range(K, N):
        response = ((members >> (4 * k)) & 15).to(tl.int32)
        live = is_live(live_bits, response)
        total += exp(scaled_reward(rewards_ptr, row * N + response, live, top, beta) - peak)
    return peak + tl.log(total)


@triton.jit
def _half(
    orders_ptr,
    offsets,  # (O,), the orders
    there,  # (S, O) or (1, O)
    members,  # (S,)
    group,
    student,
    teacher,
    below_s,  # (S,), the student's log-denominator after this half
    below_t,  # (S,)
    N: tl.constexpr,
    FIRST: tl.constexpr,
    K: tl.constexpr,
    ORDERS: tl.constexpr,
):
    """One half of the rankings, the places from FIRST to FIRST + K, of some sets and orders.

    Returns log P_s, log P_t, P_s and P_t, (S, O) each, the latter 0 where an order is impossible,
    then what :func:`_slopes` needs: who is ranked, the student's x, and its log-denominators.
    """
    ranked = _ranked(orders_ptr, offsets, members, FIRST, K, ORDERS)
    possible = _possible(ranked, group[1], group[2], there, FIRST, K)
    zeros = tl.zeros(ranked[0].shape, student[2].dtype)
    log_s, x, totals = _walk(student, group, ranked, zeros + below_s[:, None], N, K)
    log_t = _walk(teacher, group, ranked, zeros + below_t[:, None], N, K)[0]
    p_s, p_t = tl.where(possible, exp(log_s), 0.0), tl.where(possible, exp(log_t), 0.0)
    return log_s, log_t, p_s, p_t, ranked, x, totals


@triton.jit
def _meet(loss, weight, a, q_s, q_t, b, p_s, p_t):
    """All rankings of some sets, from log P_s / P_t, P_s and P_t of the first half and the rest.

    Adds P_t log P_t / M to ``loss`` and P_s log P_s / M to ``weight``, summed over the first half,
    (S, R). The third result is P_s log P_s / M summed over the rest, (S, F).
    """
    log_u, log_v = log_mixture_shares(tl.trans(a)[:, :, None] + b[None, :, :])
    loss += p_t * tl.sum(tl.trans(q_t)[:, :, None] * log_v, 0)
    weight += p_s * tl.sum(tl.trans(q_s)[:, :, None] * log_u, 0)
    return loss, weight, q_s * tl.trans(tl.sum(p_s[None, :, :] * log_u, 2))


@triton.jit
def _slopes(ranked, x, totals, live_bits, weight, columns, K: tl.constexpr):
    """sum of weight * d log P / d x over the places of a half, (N, S, O).

    The second result is sum_k exp(last log-denominator - log-denominator_k), (S, O).
    """
    slopes = tl.zeros((columns.shape[0], weight.shape[0], weight.shape[1]), weight.dtype)
    flow = tl.zeros(weight.shape, weight.dtype)
    for k in tl.static_range(K):
        live = is_live(live_bits, ranked[k])
        if k > 0:
            flow *= exp(totals[k] - totals[k - 1])
        flow += tl.where(live, 1.0, 0.0)
        slope = tl.where(live, weight * (1.0 - exp(x[k] - totals[k]) * flow), 0.0)
        slopes += tl.where(ranked[k][None, :, :] == columns[:, None, None], slope[None, :, :], 0.0)
    return slopes, flow


@triton.jit
def _pull(s, members, remaining, carried, live, columns, N: tl.constexpr, K: tl.constexpr):
    """How the steps of the first half push down the rewards of the rest, (S, N)."""
    unranked = tl.zeros((members.shape[0], columns.shape[0]), tl.int1)
    for k in tl.static_range(K, N):
        unranked = unranked | (columns[None, :] == ((members >> (4 * k)) & 15)[:, None])
    pushed = unranked & live[None, :]
    return tl.where(pushed, exp(s[None, :] - remaining[:, None]) * carried[:, None], 0.0)


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
def preference_jsd(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    lengths_ptr,  # (G, N) integers, or None
    sets_ptr,  # (SETS,) int64: N responses in 4 bits each, the K first ones and the rest
    first_ptr,  # (K, FIRST), the orders of the first
    rest_ptr,  # (N - K, REST), the orders of the rest
    beta: tl.float64,
    teacher_beta: tl.float64,
    N: tl.constexpr,
    K: tl.constexpr,
    SETS: tl.constexpr,
    FIRST: tl.constexpr,  # K!
    REST: tl.constexpr,  # (N - K)!
    BLOCK_S: tl.constexpr,  # sets at a time
    BLOCK_F: tl.constexpr,  # orders of the first at a time
    BLOCK_R: tl.constexpr,  # all orders of the rest
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
):
    """A program takes a group, and walks over its C(N, K) sets, BLOCK_S at a time."""
    row = tl.program_id(0).to(tl.int64)
    live_bits = load_live_bits(live_ptr, lengths_ptr, row, N)
    group = (row, live_bits, _own_seats(live_bits, N))
    student = _side(student_ptr, row, live_bits, beta, N, ACC)
    teacher = _side(teacher_ptr, row, live_bits, teacher_beta, N, ACC)
    columns = tl.arange(0, BLOCK_N)
    live = load_live(live_ptr, lengths_ptr, row * N + columns, columns < N)
    s = scaled_reward(student_ptr, row * N + columns, live, student[1], student[2])
    rest = tl.arange(0, BLOCK_R)
    loss = tl.zeros((BLOCK_S, BLOCK_R), ACC)
    slopes_f = tl.zeros((BLOCK_N, BLOCK_S, BLOCK_F), ACC)
    slopes_r = tl.zeros((BLOCK_N, BLOCK_S, BLOCK_R), ACC)
    pull = tl.zeros((BLOCK_S, BLOCK_N), ACC)
    none = tl.full((BLOCK_S,), LOWEST, ACC)  # the log-denominator of no response
    for index in range(0, SETS, BLOCK_S):
        sets = index + tl.arange(0, BLOCK_S)
        members = tl.load(sets_ptr + sets, mask=sets < SETS, other=0)
        there = (sets < SETS)[:, None] & (rest < REST)[None, :]
        b_s, b_t, p_s, p_t, ranked, x_r, totals_r = _half(
            rest_ptr, rest, there, members, group, student, teacher, none, none, N, K, N - K, REST
        )
        left_s = _rest_total(student, group, members, N, K)
        left_t = _rest_total(teacher, group, members, N, K)
        weight_r = tl.zeros((BLOCK_S, BLOCK_R), ACC)
        carried = tl.zeros((BLOCK_S,), ACC)
        for start in range(0, FIRST, BLOCK_F):
            f = start + tl.arange(0, BLOCK_F)
            some = (f < FIRST)[None, :]
            a_s, a_t, q_s, q_t, order, x, totals = _half(
                first_ptr, f, some, members, group, student, teacher, left_s, left_t, N, 0, K, FIRST
            )
            loss, weight_r, weight_f = _meet(
                loss, weight_r, a_s - a_t, q_s, q_t, b_s - b_t, p_s, p_t
            )
            part, flow = _slopes(order, x, totals, live_bits, weight_f, columns, K)
            slopes_f += part
            carried += tl.sum(weight_f * exp(left_s[:, None] - totals[K - 1]) * flow, 1)
        loss += weight_r
        slopes_r += _slopes(ranked, x_r, totals_r, live_bits, weight_r, columns, N - K)[0]
        pull += _pull(s, members, left_s, carried, live, columns, N, K)

    tl.store(loss_ptr + row, tl.minimum(tl.maximum(tl.sum(tl.sum(loss, 1), 0) / 2, 0.0), LN_2))
    slopes = tl.sum(tl.sum(slopes_f, 2), 1) + tl.sum(tl.sum(slopes_r, 2), 1) - tl.sum(pull, 0)
    tl.store(grad_ptr + row * N + columns, student[2] / 2 * slopes, mask=columns < N)
