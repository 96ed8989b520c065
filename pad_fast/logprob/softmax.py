"""How logits become log-probabilities, tile by tile: options, the online softmax and its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenOptions:
    """How logits become log-probabilities. ``softcap`` 0 means none (a torch.library schema likes no optional float)."""

    temperature: float
    softcap: float
    logit_scale: float
    ignore_index: int


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float32, or wider if the input is."""
    return torch.promote_types(dtype, torch.float32)


def bend(u: torch.Tensor, options: TokenOptions) -> torch.Tensor:
    """z of a tile of products u, in place."""
    if options.logit_scale != 1.0:
        u.mul_(options.logit_scale)
    if options.softcap:
        u.div_(options.softcap).tanh_().mul_(options.softcap)
    return u.div_(options.temperature) if options.temperature != 1.0 else u


def unbend(gradient: torch.Tensor, z: torch.Tensor, options: TokenOptions) -> torch.Tensor:
    """The gradient of the products u from that of z, in place."""
    if options.softcap:
        slope = z.mul(options.temperature / options.softcap)
        gradient.addcmul_(gradient, slope.square_(), value=-1)
    scale = options.logit_scale / options.temperature
    return gradient.mul_(scale) if scale != 1.0 else gradient


class OnlineSoftmax:
    """log sum exp over the columns of tiles that arrive one after another, and the label's z: one pass over the logits."""

    def __init__(self, labels: torch.Tensor, dtype: torch.dtype):
        self.labels = labels  # (L,)
        self.peak = labels.new_full(labels.shape, -torch.inf, dtype=dtype)
        self.total = labels.new_zeros(labels.shape, dtype=dtype)
        self.picked = labels.new_full(
            labels.shape, torch.nan, dtype=dtype
        )  # stays NaN for a label that is no column

    def add(self, rows: slice, columns: slice, z: torch.Tensor) -> torch.Tensor:
        """Take in the tile z, which becomes exp(z - anchor); returns the anchor of each row."""
        local = self.labels[rows] - columns.start
        inside = (local >= 0) & (local < z.shape[1])
        picked = z.gather(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self.picked[rows] = torch.where(inside, picked, self.picked[rows])
        peak = torch.maximum(self.peak[rows], z.amax(1))
        anchor = peak.masked_fill(
            peak == -torch.inf, 0
        )  # -inf minus -inf is NaN: such a row has met no finite logit yet
        total = self.total[rows] * (self.peak[rows] - anchor).exp()
        self.total[rows] = total + z.sub_(anchor.unsqueeze(1)).exp_().sum(1)
        self.peak[rows] = peak
        return anchor

    def log_p(self) -> torch.Tensor:
        """log(total) is not added to the peak first: beside a large peak the rounding would swallow a log-probability near 0."""
        return (self.picked - self.peak) - self.total.log()

    def spread(
        self, rows: torch.Tensor, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, peaks and totals at ``rows`` of flat ``shape``, 0 elsewhere."""

        def place(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(shape.numel()).index_copy_(0, rows, values).view(shape)

        return place(self.log_p()), place(self.peak), place(self.total)


def scores_of(
    z: torch.Tensor,
    peak: torch.Tensor,
    total: torch.Tensor,
    labels: torch.Tensor,
    grad: torch.Tensor,
    column: int,
) -> torch.Tensor:
    """grad * (onehot - softmax) of a tile whose first column is ``column``; z is kept."""
    scores = torch.sub(z, peak.unsqueeze(1)).exp_().mul_((-grad / total).unsqueeze(1))
    local = labels - column
    inside = (local >= 0) & (local < z.shape[1])
    return scores.scatter_add_(
        1, local.clamp(0, z.shape[1] - 1).unsqueeze(1), grad.where(inside, 0).unsqueeze(1)
    )
