"""Log-probabilities, rewards and their gradients in float64, with a bound of the rounding error.

Bounds:

They hold for an evaluation in an accumulation dtype of unit roundoff u, to first order in u and in
any order of the operations.

- A sum of n terms has a relative error of at most n u. Above 64 terms the errors are taken as
  independent, which makes it 8 sqrt(n) u (Higham and Mary, 2019, with a factor of 8).
- z = softcap * tanh(scale * x / softcap) / temperature has a relative error of ROUNDINGS u: each
  factor is rounded, each operation is rounded, and tanh has an error of 2 units in the last place.
- Errors d of z change logsumexp(z) by at most log sum_j p_j exp(d_j), whatever their signs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .compare import unit_roundoff
from .known_defects import RECOMPUTED_MENDED

ROUNDINGS = 12  # 2 * (scale, 1 / softcap, softcap, 1 / temperature) + 4 of tanh


@dataclass(frozen=True)
class Options:
    """The options of an operation on tokens."""

    temperature: float = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0
    ignore_index: int = -100

    def keywords(self) -> dict:
        return dict(vars(self))


@dataclass(frozen=True)
class Tokens:
    """Log-probabilities (M,) and d log p / d x (M, V) of live rows, 0 for others, with bounds."""

    live: Tensor  # (M,)
    logp: Tensor
    logp_error: Tensor
    slope: Tensor
    slope_error: Tensor


def summed(count: int) -> float:
    """The relative error, in units of u, of a sum of ``count`` terms of one sign."""
    return min(count, 8 * math.sqrt(count))


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scores(x: Tensor, options: Options) -> Tensor:
    scaled = options.logit_scale * x
    if options.softcap is not None:
        scaled = options.softcap * torch.tanh(scaled / options.softcap)
    return scaled / options.temperature


def token_oracle(
    x: Tensor,
    x_error: Tensor | None,
    labels: Tensor,
    options: Options,
    dtype: torch.dtype,
    absolute_tanh: bool = False,
) -> Tokens:
    """Of float64 logits x (M, V), off by at most ``x_error``, computed from inputs of ``dtype``.

    With ``absolute_tanh`` a tanh is off by units in the last place of 1, not of itself.
    """
    live = labels != options.ignore_index
    x = x.where(live[:, None], 0.0).requires_grad_()
    y = labels.where(live, 0).long()[:, None]
    with torch.enable_grad():
        z = _scores(x, options)
        logp = z.log_softmax(1).gather(1, y)[:, 0]
        (slope,) = torch.autograd.grad(logp.sum(), x)
    x, z, logp = x.detach(), z.detach(), logp.detach()
    logp_error, slope_error = _bounds(x, z, y, options, dtype, x_error, absolute_tanh)
    keep = live[:, None]
    return Tokens(
        live,
        logp.where(live, 0.0),
        logp_error.where(live, 0.0),
        slope.where(keep, 0.0),
        slope_error.where(keep, 0.0),
    )


def _bounds(
    x: Tensor,
    z: Tensor,
    y: Tensor,
    options: Options,
    dtype: torch.dtype,
    x_error: Tensor | None,
    absolute_tanh: bool,
) -> tuple[Tensor, Tensor]:
    wide = accumulation(dtype)
    unit = unit_roundoff(wide) * (2 if wide == torch.float64 else 1)  # the oracle rounds as well
    tiny, cap = torch.finfo(wide).tiny, options.softcap
    size = z.abs().where(z.isfinite(), 0.0)
    factor = abs(options.logit_scale / options.temperature)
    # A product below the normal numbers is off by tiny, which the factors after it enlarge.
    error = unit * ROUNDINGS * size + tiny * (1 + (cap or 0.0)) / options.temperature
    if x_error is not None:
        error = error + factor * x_error
    if cap is not None and absolute_tanh:
        error = error + 4 * unit * cap / options.temperature
    p = z.softmax(1)
    small = torch.log1p((p * torch.expm1(error.clamp(max=1.0))).sum(1))
    large = (z + error).logsumexp(1) - z.logsumexp(1)
    total_error = torch.where(error.amax(1) < 1, small, large.clamp(min=0))
    gap = z.amax(1, keepdim=True) - z
    gap = gap.where(gap.isfinite(), 0.0)
    columns = summed(z.shape[1])
    logp = z.log_softmax(1).gather(1, y)[:, 0].abs()
    # Rounded: z_y - peak, each z_j - peak (and its product with log2 e, a rounded number, where exp
    # is a power of two), exp, their sum, log, and the two last differences.
    steps = (
        gap.gather(1, y)[:, 0]
        + 3 * (p * gap).sum(1)
        + columns
        + 6
        + 3 * math.log(z.shape[1])
        + logp
    )
    logp_error = error.gather(1, y)[:, 0] + total_error + unit * steps
    relative = error + total_error[:, None] + unit * (3 * gap + columns + 8)
    above = 0 if x_error is None or RECOMPUTED_MENDED else 200
    most = (
        (z.log_softmax(1) + relative).clamp(max=above).exp()
    )  # p times exp(relative), and 1 at most
    p_error = torch.where(relative < 1, p * torch.expm1(relative.clamp(max=1)), most) + 4 * tiny
    chosen = torch.zeros_like(p).scatter_(1, y, 1.0) - p
    flat, flat_error = torch.ones_like(p), torch.zeros_like(p)
    if cap is not None:  # d tanh = 1 - t^2, where t has the relative error of z
        tanh = torch.tanh(options.logit_scale * x / cap)
        flat = 1 - tanh.square()
        flat_error = flat_error + unit * (2 * ROUNDINGS + 3)
        if x_error is not None:
            flat_error = flat_error + 2 * abs(options.logit_scale) * x_error / cap
        flat_error = flat_error.clamp(max=1)
    slope_error = (flat + flat_error) * p_error + chosen.abs() * (flat_error + 8 * unit * flat)
    slope_error = (1 + 16 * unit) * slope_error
    return logp_error, factor * slope_error + tiny


@dataclass(frozen=True)
class Rewards:
    """Rewards (R,) with their bounds, and the weight (M,) of each token's log-probability."""

    values: Tensor
    error: Tensor
    weights: Tensor  # (M,) 1 or 1 / |y| for a live token of a response, else 0
    place: Tensor  # (M,) the response of each row, 0 where it has none


def reward_oracle(
    tokens: Tokens, labels: Tensor, responses: Tensor, count: int, mean: bool, options: Options,
    dtype: torch.dtype,
) -> Rewards:  # fmt: skip
    """Rewards of flat tokens whose response is ``responses`` (M,), -1 for none."""
    own = (labels != options.ignore_index) & (responses >= 0)
    place = responses.long().where(responses >= 0, 0)
    lengths = torch.zeros(count, dtype=torch.float64)
    sums, errors, sizes = lengths.clone(), lengths.clone(), lengths.clone()
    if count:
        lengths.index_add_(0, place, own.double())
        sums.index_add_(0, place, tokens.logp.where(own, 0.0))
        errors.index_add_(0, place, tokens.logp_error.where(own, 0.0))
        sizes.index_add_(0, place, tokens.logp.abs().where(own, 0.0))
    divisor = lengths.clamp(min=1) if mean else torch.ones_like(lengths)
    wide = accumulation(dtype)
    # float32 log-probabilities are rounded to steps of 2^-30 and summed exactly.
    rounding = lengths * 2.0**-31 + lengths * 2.0**-53 * sizes
    if wide == torch.float64:
        rounding = 2 * lengths * 2.0**-53 * sizes
    values = sums / divisor
    finite = values.abs().where(values.isfinite(), 0.0)
    error = (errors + rounding) / divisor + 3 * unit_roundoff(wide) * finite
    weights = own.double() / (divisor[place] if count else 1.0)
    return Rewards(values, error, weights, place)
