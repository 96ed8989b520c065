"""preference_jsd: the Jensen-Shannon divergence over all n! rankings, meeting in the middle.

For each set A of the K = n // 2 responses that are ranked first, log P(tau) = a(order of A) + b(order of the rest): an outer sum
of two vectors, and the probabilities an outer product. A program takes a group and walks over its C(n, K) sets, BLOCK_S of them and a
tile of (orders of A, orders of the rest) at a time. With c = P_s log(P_s / M) the gradient is that of sum c log P_s, in which c enters
by its sums over either half only. Sets and orders come from tables that are made once for each n.

Responses that are not live come last in their own order, with probability 1, on both sides: the n! rankings then hold those of
the live ones, once each, and others of probability 0.

Tiles are (orders of A, sets, orders of the rest), so that for n = 8 a warp has a set of its own and a lane an order of the rest: what is
worked out for a set and an order, (sets, orders), is worked out once, and each lane then goes through the orders of A by itself.

What it costs, counted in the machine code for sm_90 and not timed, for n = 8 without a mask: 18 times four sets, about 2,750
instructions a warp and set. 512 prompts on the 132 multiprocessors of an H200 are 0.2 million for each of their four schedulers,
0.12 ms at 1.7 GHz if one is issued each clock; 0.3 ms are asked for. A thread takes some 200 registers: two programs a multiprocessor.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp
from .primitives import LOWEST, best, living, living_bits, log_add, log_shares, one


@triton.jit
def _ranked(
    orders_ptr, offsets, members, FIRST: tl.constexpr, K: tl.constexpr, ORDERS: tl.constexpr
):
    """The responses (S, O) of half a ranking, best first, one tuple entry a place; ``members`` (S,) holds them in 4 bits each."""
    ranked = ()
    for k in tl.static_range(K):
        place = tl.load(orders_ptr + k * ORDERS + offsets, mask=offsets < ORDERS, other=0).to(
            tl.int64
        )
        ranked = ranked + (
            ((members[:, None] >> (4 * (place + FIRST))[None, :]) & 15).to(tl.int32),
        )  # type: ignore[assignment]
    return ranked


@triton.jit
def _possible(ranked, alive, seats, there, FIRST: tl.constexpr, K: tl.constexpr):
    """Whether each response that is not live has its own seat; ``seats`` holds them in 4 bits each."""
    for k in tl.static_range(K):
        seat = (seats >> (4 * ranked[k]).to(tl.int64)) & 15
        there = there & ((((alive >> ranked[k]) & 1) == 1) | (seat == FIRST + k))
    return there


@triton.jit
def _walk(rewards_ptr, row, ranked, alive, top, beta, below, N: tl.constexpr, K: tl.constexpr):
    """From the last place to the first: log P, and x and log-denominator of each place. ``below``: the log-denominator after them."""
    x, totals = (), ()
    total = below
    logp = tl.zeros(ranked[0].shape, beta.dtype)
    for place in tl.static_range(K):
        response = ranked[K - 1 - place]
        live = ((alive >> response) & 1) == 1
        value = one(rewards_ptr, row * N + response, live, top, beta)
        total = log_add(value, total)
        logp += tl.where(live, value - total, 0.0)
        x = (value,) + x  # type: ignore[assignment]
        totals = (total,) + totals  # type: ignore[assignment]
    return logp, x, totals


@triton.jit
def _remaining(rewards_ptr, row, members, alive, top, beta, N: tl.constexpr, K: tl.constexpr):
    """The log-denominator (S,) where the first half is ranked."""
    peak = tl.full(members.shape, LOWEST, beta.dtype)
    for k in tl.static_range(K, N):
        response = ((members >> (4 * k)) & 15).to(tl.int32)
        peak = tl.maximum(
            peak, one(rewards_ptr, row * N + response, ((alive >> response) & 1) == 1, top, beta)
        )
    total = tl.zeros(members.shape, beta.dtype)
    for k in tl.static_range(K, N):
        response = ((members >> (4 * k)) & 15).to(tl.int32)
        total += exp(
            one(rewards_ptr, row * N + response, ((alive >> response) & 1) == 1, top, beta) - peak
        )
    return peak + tl.log(total)


@triton.jit
def _slopes(ranked, x, totals, alive, weight, columns, K: tl.constexpr):
    """sum_k weight * d log P / dx (columns, S, O), and sum_k exp(last log-denominator - log-denominator_k) (S, O)."""
    slopes = tl.zeros((columns.shape[0], weight.shape[0], weight.shape[1]), weight.dtype)
    flow = tl.zeros(weight.shape, weight.dtype)
    for k in tl.static_range(K):
        live = ((alive >> ranked[k]) & 1) == 1
        if k > 0:
            flow *= exp(totals[k] - totals[k - 1])
        flow += tl.where(live, 1.0, 0.0)
        slope = tl.where(live, weight * (1.0 - exp(x[k] - totals[k]) * flow), 0.0)
        slopes += tl.where(ranked[k][None, :, :] == columns[:, None, None], slope[None, :, :], 0.0)
    return slopes, flow


@triton.jit(
    do_not_specialize_on_alignment=[
        "loss_ptr",
        "grad_ptr",
        "student_ptr",
        "teacher_ptr",
        "live_ptr",
    ]
)
def preference_jsd(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    sets_ptr,  # (SETS,) int64: N responses in 4 bits each, the K first ones and the rest
    first_ptr,  # (K, FIRST) places of each order of the first
    rest_ptr,  # (N - K, REST)
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
    row = tl.program_id(0).to(tl.int64)
    beta = tl.full((), beta, ACC)
    teacher_beta = tl.full((), teacher_beta, ACC)
    alive = living_bits(live_ptr, row, N)
    seats = tl.full((), -1, tl.int64)  # 15, no seat at all, for the live
    seat = tl.zeros((), tl.int32)
    for i in tl.static_range(N):
        seat += (alive >> i) & 1
    for i in tl.static_range(N):
        dead = 1 - ((alive >> i) & 1)
        seats ^= ((15 ^ seat) * dead).to(tl.int64) << (4 * i)
        seat += dead
    top_s, top_t = best(student_ptr, row, alive, N, ACC), best(teacher_ptr, row, alive, N, ACC)

    columns = tl.arange(0, BLOCK_N)
    live = living(live_ptr, row * N + columns, columns < N)
    s = one(student_ptr, row * N + columns, live, top_s, beta)
    rest = tl.arange(0, BLOCK_R)
    loss = tl.zeros((BLOCK_S, BLOCK_R), ACC)
    slopes_f = tl.zeros((BLOCK_N, BLOCK_S, BLOCK_F), ACC)
    slopes_r = tl.zeros((BLOCK_N, BLOCK_S, BLOCK_R), ACC)
    pull = tl.zeros((BLOCK_S, BLOCK_N), ACC)
    nothing = tl.full((BLOCK_S, BLOCK_R), LOWEST, ACC)
    for index in range(0, SETS, BLOCK_S):
        sets = index + tl.arange(0, BLOCK_S)
        there = sets < SETS
        members = tl.load(sets_ptr + sets, mask=there, other=0)
        ranked = _ranked(rest_ptr, rest, members, K, N - K, REST)
        possible = _possible(
            ranked, alive, seats, there[:, None] & (rest < REST)[None, :], K, N - K
        )
        b_s, x_s, totals_s = _walk(student_ptr, row, ranked, alive, top_s, beta, nothing, N, N - K)
        b_t = _walk(teacher_ptr, row, ranked, alive, top_t, teacher_beta, nothing, N, N - K)[0]
        p_s, p_t = tl.where(possible, exp(b_s), 0.0), tl.where(possible, exp(b_t), 0.0)
        remaining_s = _remaining(student_ptr, row, members, alive, top_s, beta, N, K)
        remaining_t = _remaining(teacher_ptr, row, members, alive, top_t, teacher_beta, N, K)
        weight_r = tl.zeros((BLOCK_S, BLOCK_R), ACC)
        carried = tl.zeros((BLOCK_S,), ACC)
        for start in range(0, FIRST, BLOCK_F):
            first = start + tl.arange(0, BLOCK_F)
            order = _ranked(first_ptr, first, members, 0, K, FIRST)
            likely = _possible(order, alive, seats, (first < FIRST)[None, :], 0, K)
            below = tl.zeros((BLOCK_S, BLOCK_F), ACC)
            a_s, x, totals = _walk(
                student_ptr, row, order, alive, top_s, beta, below + remaining_s[:, None], N, K
            )
            a_t = _walk(
                teacher_ptr,
                row,
                order,
                alive,
                top_t,
                teacher_beta,
                below + remaining_t[:, None],
                N,
                K,
            )[0]
            q_s, q_t = tl.where(likely, exp(a_s), 0.0), tl.where(likely, exp(a_t), 0.0)
            log_u, log_v = log_shares(tl.trans(a_s - a_t)[:, :, None] + (b_s - b_t)[None, :, :])
            loss += p_t * tl.sum(tl.trans(q_t)[:, :, None] * log_v, 0)
            weight_r += p_s * tl.sum(tl.trans(q_s)[:, :, None] * log_u, 0)
            weight_f = q_s * tl.trans(tl.sum(p_s[None, :, :] * log_u, 2))
            part, flow = _slopes(order, x, totals, alive, weight_f, columns, K)
            slopes_f += part
            carried += tl.sum(weight_f * exp(remaining_s[:, None] - totals[K - 1]) * flow, 1)
        loss += weight_r
        slopes_r += _slopes(ranked, x_s, totals_s, alive, weight_r, columns, N - K)[0]
        unranked = tl.zeros((BLOCK_S, BLOCK_N), tl.int1)
        for k in tl.static_range(K, N):
            unranked = unranked | (columns[None, :] == ((members >> (4 * k)) & 15)[:, None])
        pull += tl.where(
            unranked & live[None, :], exp(s[None, :] - remaining_s[:, None]) * carried[:, None], 0.0
        )

    tl.store(loss_ptr + row, tl.minimum(tl.maximum(tl.sum(tl.sum(loss, 1), 0) / 2, 0.0), LN_2))
    slopes = tl.sum(tl.sum(slopes_f, 2), 1) + tl.sum(tl.sum(slopes_r, 2), 1) - tl.sum(pull, 0)
    tl.store(grad_ptr + row * N + columns, beta / 2 * slopes, mask=columns < N)
