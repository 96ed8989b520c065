"""preference_sampled: unbiased estimates of the divergences from drawn rankings, with gradients.

A draw is a key for each response, x plus Gumbel noise, best first. It is never sorted: as in
``list_mle.py``, whether one response comes after another is a comparison. So a draw is a matrix
(response that is ranked, response that remains) of the softmaxes of its steps. The estimators and
their baselines are those of ``pad_fast/preference/sampled_rankings.py``.
"""

import triton
import triton.language as tl

from ..common.numerics import LN_2, exp
from .list_mle import not_before
from .primitives import LOWEST, load_live, log_mixture_shares, scaled_reward

# KL and reverse KL sum the divergence of each step along the path; JSD weighs draws of either side
# by P / M <= 2. Philox counters are (response, draw, group, side), and the key is the seed.
#
# What it costs by arithmetic: 2 n^2 exponentials for each draw and side. 512 prompts with
# n = 16 and 256 draws are 67 million for KL, 19 us of the special-function units of an H200 at 1.7
# GHz, and twice that for the others. The comparisons and sums, about 30 operations a pair, take
# four times as long. Noise is 10 rounds of Philox a response, as much as 6 pairs. An H200 took
# 0.47 ms for KL and 1.09 for reverse KL.


@triton.jit
def _exponential(seed, row, draw, response, side, ACC: tl.constexpr):
    """Exp(1) numbers (draws, responses), from 2^-33 on.

    The small ones decide which response wins, and keep their digits.
    """
    shape = draw[:, None] + response[None, :] * 0
    bits, _, _, _ = tl.philox(
        seed,
        response[None, :] + draw[:, None] * 0,
        shape,
        shape * 0 + row.to(tl.int32),
        shape * 0 + side,
    )
    v = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    v = tl.minimum(v, 0.99999994)
    return tl.where(v < 0.01, v * (1.0 + v * (0.5 + v * 0.33333334)), -tl.log(1.0 - v)).to(ACC)


@triton.jit
def _step_softmax(x, after):
    """The softmax of the step that ranks each response, and its log-denominator.

    From x (n,) and ``after`` (draws, n, n) to (draws, n, n) and (draws, n).
    """
    x = x[None, None, :]
    peak = tl.max(tl.where(after, x, LOWEST), 2)
    share = tl.where(after, exp(x - peak[:, :, None]), 0.0)
    total = tl.maximum(tl.sum(share, 2), 1.0)  # the best response alone gives 1
    return share / total[:, :, None], peak + tl.log(total)


@triton.jit
def _draw_rankings(x, live, seed, row, draw, side, ACC: tl.constexpr):
    """Whether the second response is not before the first, (draws, n, n), in draws from P_x."""
    response = tl.arange(0, x.shape[0])
    key = x[None, :] - tl.log(_exponential(seed, row, draw, response, side, ACC))
    places = response[None, :, None], response[None, None, :]
    return not_before(key[:, :, None], places[0], key[:, None, :], places[1], live[None, None, :])


@triton.jit
def _step_divergences(x, y, share, log_x, log_y, live):
    """KL(softmax(x) || softmax(y)) of each step (draws, n), and the log-ratio (draws, n, n)."""
    ratio = (x[None, None, :] - log_x[:, :, None]) - (y[None, None, :] - log_y[:, :, None])
    return tl.where(live[None, :], tl.sum(share * ratio, 2), 0.0), ratio


@triton.jit
def _reverse_kl_draws(s, t, live, counted, seed, row, draw, ACC: tl.constexpr):
    """What reverse KL needs of some draws from the student's ranking distribution.

    Returns the softmax, the log-ratio and the divergence of each step, the divergence of all steps
    after it, its place in the ranking, and whether it counts.
    """
    after = _draw_rankings(s, live, seed, row, draw, 0, ACC)
    share, log_s = _step_softmax(s, after)
    _, log_t = _step_softmax(t, after)
    step, ratio = _step_divergences(s, t, share, log_s, log_t, live)
    rest = tl.sum(tl.where(after, step[:, None, :], 0.0), 2) - step
    place = tl.sum(live.to(tl.int32), 0) - tl.sum(after.to(tl.int32), 2)
    here = counted[:, None] & live[None, :]
    return share, ratio, step, tl.where(here, rest, 0.0), place, here


@triton.jit
def _kl(s, t, live, seed, row, samples, DRAWS: tl.constexpr, ACC: tl.constexpr):
    """Loss and gradient of KL(P_t || P_s) from draws of the teacher."""
    loss, grad = tl.zeros((DRAWS,), ACC), tl.zeros(s.shape, ACC)
    for first in range(0, samples, DRAWS):
        draw = first + tl.arange(0, DRAWS)
        here = (draw < samples)[:, None] & live[None, :]
        after = _draw_rankings(t, live, seed, row, draw, 0, ACC)
        share_t, log_t = _step_softmax(t, after)
        share_s, log_s = _step_softmax(s, after)
        step, _ = _step_divergences(t, s, share_t, log_t, log_s, live)
        loss += tl.sum(tl.where(here, step, 0.0), 1)
        grad += tl.sum(tl.sum(tl.where(here[:, :, None], share_s - share_t, 0.0), 1), 0)
    return tl.maximum(tl.sum(loss, 0) / samples, 0.0), grad / samples


@triton.jit
def _reverse_kl(s, t, live, seed, row, samples, DRAWS: tl.constexpr, ACC: tl.constexpr):
    """Loss and gradient of KL(P_s || P_t), in two passes over the same draws.

    The first pass finds the baseline of each place, the mean of the divergence after it. The
    second leaves the draw itself out of that mean.
    """
    places = tl.arange(0, s.shape[0])
    loss, grad, means = tl.zeros((DRAWS,), ACC), tl.zeros(s.shape, ACC), tl.zeros(s.shape, ACC)
    for first in range(0, samples, DRAWS):
        draw = first + tl.arange(0, DRAWS)
        _, _, step, rest, place, here = _reverse_kl_draws(
            s, t, live, draw < samples, seed, row, draw, ACC
        )
        loss += tl.sum(tl.where(here, step, 0.0), 1)
        at = place[:, :, None] == places[None, None, :]
        sums = tl.sum(tl.sum(tl.where(at, rest[:, :, None], 0.0), 1), 0)
        means += sums / samples
    for first in range(0, samples, DRAWS):
        draw = first + tl.arange(0, DRAWS)
        share, ratio, step, rest, place, here = _reverse_kl_draws(
            s, t, live, draw < samples, seed, row, draw, ACC
        )
        at = place[:, :, None] == places[None, None, :]
        mean = tl.sum(tl.where(at, means[None, None, :], 0.0), 2)
        advantage = (rest - mean) * (samples / (samples - 1.0))
        slope = share * (ratio - step[:, :, None] - advantage[:, :, None])
        own = tl.sum(tl.where(here, advantage, 0.0), 0)
        grad += own + tl.sum(tl.sum(tl.where(here[:, :, None], slope, 0.0), 1), 0)
    return tl.maximum(tl.sum(loss, 0) / samples, 0.0), grad / samples


@triton.jit
def _jsd_draws(s, t, x, live, seed, row, draw, pairs, side, ACC: tl.constexpr):
    """Draws from P_x: u = P_s / M, u log u, the loss's term, and d log P_s / d s (draws, n)."""
    after = _draw_rankings(x, live, seed, row, draw, side, ACC)
    share, log_s = _step_softmax(s, after)
    _, log_t = _step_softmax(t, after)
    d = tl.sum(tl.where(live[None, :], (s[None, :] - log_s) - (t[None, :] - log_t), 0.0), 1)
    log_u, log_v = log_mixture_shares(d)
    counted = draw < pairs
    u, v = tl.where(counted, exp(log_u), 0.0), tl.where(counted, exp(log_v), 0.0)
    slope = 1.0 - tl.sum(tl.where(live[None, :, None], share, 0.0), 1)
    return u, u * log_u, u * log_u + v * log_v, tl.where(live[None, :], slope, 0.0)


@triton.jit
def _jsd(s, t, live, seed, row, samples, DRAWS: tl.constexpr, ACC: tl.constexpr):
    """Loss and gradient of JSD from pairs of draws, one of either side, in one pass.

    The baseline of a pair is the mean u log u of the others, (all - own) / (pairs - 1).
    """
    pairs = (samples + 1) // 2
    loss, both = tl.zeros((DRAWS,), ACC), tl.zeros((DRAWS,), ACC)
    grad, plain = tl.zeros(s.shape, ACC), tl.zeros(s.shape, ACC)
    for first in range(0, pairs, DRAWS):
        draw = first + tl.arange(0, DRAWS)
        u, log_term_u, term_u, slope_u = _jsd_draws(s, t, t, live, seed, row, draw, pairs, 0, ACC)
        w, log_term_w, term_w, slope_w = _jsd_draws(s, t, s, live, seed, row, draw, pairs, 1, ACC)
        own = (log_term_u + log_term_w) / 2
        loss += term_u + term_w
        both += own
        share = own / (pairs - 1.0)
        weight_u, weight_w = log_term_u + u * share, log_term_w + w * share
        grad += tl.sum(weight_u[:, None] * slope_u + weight_w[:, None] * slope_w, 0)
        plain += tl.sum(u[:, None] * slope_u + w[:, None] * slope_w, 0)
    grad -= tl.sum(both, 0) / (pairs - 1.0) * plain
    return tl.minimum(tl.maximum(tl.sum(loss, 0) / (4.0 * pairs), 0.0), LN_2), grad / (4.0 * pairs)


@triton.jit
def _scaled_rewards(rewards_ptr, places, live, beta):
    """x (BLOCK,) of a group."""
    top = tl.max(tl.load(rewards_ptr + places, mask=live, other=float("-inf")).to(beta.dtype), 0)
    return scaled_reward(rewards_ptr, places, live, top, beta)


@triton.jit(
    do_not_specialize=["responses", "samples", "seed"],
    do_not_specialize_on_alignment=[
        "loss_ptr",
        "grad_ptr",
        "student_ptr",
        "teacher_ptr",
        "live_ptr",
        "lengths_ptr",
    ],
)
def preference_sampled(
    loss_ptr,  # (G,)
    grad_ptr,  # (G, N), of the student's rewards
    student_ptr,  # (G, N)
    teacher_ptr,  # (G, N)
    live_ptr,  # (G, N) bool, or None
    lengths_ptr,  # (G, N) integers, or None
    responses,
    samples,
    seed: tl.int64,
    beta: tl.float64,
    teacher_beta: tl.float64,
    KIND: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,  # responses, a power of two
    DRAWS: tl.constexpr,  # at a time
):
    """A program takes a group, and walks over its draws, DRAWS at a time."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    live = load_live(live_ptr, lengths_ptr, row * responses + place, place < responses)
    s = _scaled_rewards(student_ptr, row * responses + place, live, tl.full((), beta, ACC))
    t = _scaled_rewards(teacher_ptr, row * responses + place, live, tl.full((), teacher_beta, ACC))
    if KIND == "kl":
        loss, grad = _kl(s, t, live, seed, row, samples, DRAWS, ACC)
    elif KIND == "reverse_kl":
        loss, grad = _reverse_kl(s, t, live, seed, row, samples, DRAWS, ACC)
    else:
        loss, grad = _jsd(s, t, live, seed, row, samples, DRAWS, ACC)
    tl.store(loss_ptr + row, loss)
    grad = tl.where(live, tl.full((), beta, ACC) * grad, 0.0)
    tl.store(grad_ptr + row * responses + place, grad, mask=place < responses)
