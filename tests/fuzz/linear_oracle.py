"""Log-probabilities and gradients from hidden states and an output head in float64, with bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .compare import cast_error, unit_roundoff
from .token_oracle import Options, Tokens, accumulation, summed, token_oracle


@dataclass(frozen=True)
class Head:
    """Hidden states (M, D), weight (V, D) and bias (V,) in float64, and their own dtype."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype


def linear_tokens(
    head: Head, labels: Tensor, options: Options, absolute_tanh: bool = False
) -> Tokens:
    """The product of D terms adds its rounding to the error of the logits."""
    unit = 2 * unit_roundoff(accumulation(head.dtype))
    live = (labels != options.ignore_index)[:, None]
    hidden = head.hidden.where(live, 0.0)
    x = hidden @ head.weight.T
    error = unit * (summed(head.weight.shape[1]) + 1) * (hidden.abs() @ head.weight.abs().T)
    if head.bias is not None:
        x = x + head.bias
        error = error + unit * (head.bias.abs() + x.abs())
    return token_oracle(x, error, labels, options, head.dtype, absolute_tanh)


def linear_gradients(
    head: Head, tokens: Tokens, upstream: Tensor, upstream_error: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """(gradient, bound) of hidden, weight and bias for an upstream gradient (M,).

    The gradients of the logits may be stored in the input's dtype before they meet the two
    products, which are sums over V columns and over M rows.
    """
    unit = 2 * unit_roundoff(accumulation(head.dtype))
    g = upstream[:, None] * tokens.slope
    info = torch.finfo(head.dtype)
    stored = info.eps / 2
    step = info.tiny * (info.eps if head.dtype == torch.float16 else 1)
    error = upstream.abs()[:, None] * (tokens.slope_error + step)
    error = error + upstream_error[:, None] * (tokens.slope.abs() + tokens.slope_error)
    error = error + (stored + 4 * unit) * g.abs() + step * tokens.live[:, None]
    hidden = head.hidden.where(tokens.live[:, None], 0.0)
    columns, rows, size = unit * summed(g.shape[1]), unit * summed(len(g)), g.abs() + error
    pairs = [
        (g @ head.weight, (error + columns * size) @ head.weight.abs()),
        (g.T @ hidden, (error + rows * size).T @ hidden.abs()),
        (g.sum(0), (error + rows * size).sum(0)),
    ]
    # With a frozen head, each row stores its slope @ weight, before the upstream gradient.
    row, row_error = pairs[0]
    pairs[0] = (row, row_error + stored * row.abs() + step * upstream.abs()[:, None])
    return [(want, bound + cast_error(want, head.dtype)) for want, bound in pairs]
