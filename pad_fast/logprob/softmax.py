"""How logits become log-probabilities, tile by tile: the options, the online softmax, its gradient.

The counterpart in Triton is ``kernels/logprob/softmax.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pad_fast import argument_checks


@dataclass(frozen=True)
class TokenOptions:
    """How logits become log-probabilities: one value, from the user's call to the launcher.

    The log-probability of a label y is log softmax(z)[y] with
    z = softcap * tanh(logit_scale * logits / softcap) / temperature, or without a softcap
    z = logit_scale * logits / temperature. Rows whose label is ``ignore_index`` are left out.
    """

    temperature: float = 1.0
    softcap: float = 0.0  # 0 means none: the schema of an operation has no optional float
    logit_scale: float = 1.0
    ignore_index: int = -100

    @classmethod
    def checked(
        cls, temperature: float, softcap: float | None, logit_scale: float, ignore_index: int
    ) -> TokenOptions:
        """The options as a user writes them. Raises ValueError for one that makes no sense."""
        argument_checks.check_token_options(temperature, softcap, logit_scale, ignore_index)
        return cls(float(temperature), float(softcap or 0.0), float(logit_scale), int(ignore_index))

    @property
    def numbers(self) -> tuple[float, float, float, int]:
        """The four arguments that stand for the options in the schema of an operation."""
        return self.temperature, self.softcap, self.logit_scale, self.ignore_index

    @property
    def leave_logits(self) -> bool:
        """Whether z are the logits themselves."""
        return self.temperature == self.logit_scale == 1.0 and not self.softcap


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and results: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def transform(u: Tensor, options: TokenOptions) -> Tensor:
    """The logits z of a tile of raw logits u, in place."""
    if options.logit_scale != 1.0:
        u.mul_(options.logit_scale)
    if options.softcap:
        u.div_(options.softcap).tanh_().mul_(options.softcap)
    return u.div_(options.temperature) if options.temperature != 1.0 else u


def transform_backward(
    gradient: Tensor, z: Tensor, options: TokenOptions, over: Tensor | None = None
) -> Tensor:
    """The gradient of the raw logits u from that of z, in place.

    ``over``, which may be z, is written with a softcap's slope, which takes no memory then.
    """
    if options.softcap:
        slope = torch.mul(z, options.temperature / options.softcap, out=over)
        gradient.addcmul_(gradient, slope.square_(), value=-1)
    scale = options.logit_scale / options.temperature
    return gradient.mul_(scale) if scale != 1.0 else gradient


class OnlineSoftmax:
    """log sum exp over columns whose tiles arrive one after another, and the label's own z.

    This takes one pass over the logits. ``peak`` is max z and ``total`` is sum exp(z - peak), of
    the columns so far.
    """

    def __init__(self, labels: Tensor, dtype: torch.dtype):
        self.labels = labels  # (L,)
        self.least = torch.finfo(dtype).min
        self.peak = labels.new_full(labels.shape, -torch.inf, dtype=dtype)
        self.total = labels.new_zeros(labels.shape, dtype=dtype)
        # A label that is no column is never picked, and its log-probability stays NaN.
        self.picked = labels.new_full(labels.shape, torch.nan, dtype=dtype)

    def pick(self, rows: slice, columns: slice, z: Tensor) -> None:
        """Take the labels' own z, where they are columns of the tile z."""
        local = self.labels[rows] - columns.start
        inside = (local >= 0) & (local < z.shape[1])
        picked = z.gather(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self.picked[rows] = torch.where(inside, picked, self.picked[rows])

    def add(self, rows: slice, columns: slice, z: Tensor, into: Tensor) -> Tensor:
        """Take in the tile z, and return each row's anchor.

        ``into``, which may be z, becomes exp(z - anchor).
        """
        peak = z.amax(1)
        if columns.start:
            peak = torch.maximum(self.peak[rows], peak)
        # The peak of a row without a finite logit so far is -inf, and -inf minus -inf is NaN.
        anchor = peak.clamp(min=self.least)
        total = torch.sub(z, anchor.unsqueeze(1), out=into).exp_().sum(1)
        if columns.start:
            total += self.total[rows] * (self.peak[rows] - anchor).exp()
        self.total[rows], self.peak[rows] = total, peak
        return anchor

    def log_p(self) -> Tensor:
        """The labels' log-probabilities (L,).

        log(total) is subtracted last: added to a large peak, its rounding would swallow a
        log-probability near 0.
        """
        return (self.picked - self.peak) - self.total.log()

    def spread(self, rows: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, peaks and totals in ``shape``: at flat ``rows``, and 0 elsewhere."""

        def place(values: Tensor) -> Tensor:
            return values.new_zeros(shape.numel()).index_copy_(0, rows, values).view(shape)

        return place(self.log_p()), place(self.peak), place(self.total)


@dataclass(frozen=True)
class RowNumbers:
    """The numbers of each row that a gradient needs next to its logits, (L,) each."""

    labels: Tensor
    peak: Tensor
    total: Tensor
    grad: Tensor  # upstream

    def __getitem__(self, rows: slice | Tensor) -> RowNumbers:
        return RowNumbers(self.labels[rows], self.peak[rows], self.total[rows], self.grad[rows])


def logp_grad(z: Tensor, numbers: RowNumbers, column: int, into: Tensor | None = None) -> Tensor:
    """grad * d log p[label] / d z = grad * (onehot - softmax) of a tile.

    ``column`` is the tile's first. ``into`` is written and returned, and may be z.
    """
    weights = (-numbers.grad / numbers.total).unsqueeze(1)
    gradient = torch.sub(z, numbers.peak.unsqueeze(1), out=into).exp_().mul_(weights)
    local = numbers.labels - column
    inside = (local >= 0) & (local < z.shape[1])
    own = numbers.grad.where(inside, 0).unsqueeze(1)
    return gradient.scatter_add_(1, local.clamp(0, z.shape[1] - 1).unsqueeze(1), own)
