"""Launchers: choose the tiles, pass the strides on, start a program per row.

The backward starts one per chunk of a row.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, Protocol

import torch
import triton
from torch import Tensor

from ..common.device import ACCUMULATORS, on
from ..common.numerics import TANH
from .backward import logprob_bwd
from .forward import logprob_fwd
from .responses import response_finish, response_scatter, response_sums
from .softmax import NARROW, WIDE
from .tuning import Tiling, tilings_of

ROWS = 1024  # log-probabilities that a program takes at once


class TokenOptions(Protocol):
    """How logits become log-probabilities: a dataclass that the caller passes on whole."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def temperature(self) -> float: ...
    @property
    def softcap(self) -> float: ...  # 0: none
    @property
    def logit_scale(self) -> float: ...
    @property
    def ignore_index(self) -> int: ...


def constants(options: TokenOptions) -> tuple[float, float]:
    """The numbers (inner, outer) that scale a logit x in a kernel.

    With a softcap w = outer * tanh(inner * x), in bits; without one w = inner * x, in nats.
    """
    if options.softcap:
        inner = options.logit_scale / options.softcap
        return inner, options.softcap / options.temperature / math.log(2)
    return options.logit_scale / options.temperature, 1.0


@functools.lru_cache(maxsize=16)
def _softcap(inner: float, outer: float) -> tuple[int, tuple[float, ...]]:
    """:func:`softcap_of` from :func:`constants`."""
    if 1e-3 <= outer <= 100.0 and abs(inner) <= 1e3:
        folded = tuple(outer * inner ** (2 * k + 1) * factor for k, factor in enumerate(TANH))
        if all(1e-37 < abs(coefficient) < 1e37 for coefficient in folded):  # normal in float32
            return NARROW.value, folded
    return WIDE.value, _of_products(outer)


@functools.lru_cache(maxsize=16)
def _of_products(outer: float) -> tuple[float, ...]:
    """The coefficients of a polynomial of inner * x."""
    return tuple(outer * factor for factor in TANH)


def softcap_of(options: TokenOptions, even: bool = False) -> tuple[int, tuple[float, ...]]:
    """The softcap that a kernel is compiled for, CAPPED, and the coefficients of its tanh.

    They are a polynomial's of x where it is NARROW and not for ``even_tanh``, else of inner * x.
    """
    if not options.softcap:
        return 0, ()
    inner, outer = constants(options)
    kind, coefficients = _softcap(inner, outer)
    return kind, _of_products(outer) if even else coefficients


def _specialization(
    logits: Tensor, options: TokenOptions, acc: torch.dtype, tiling: Tiling, tight: bool
) -> dict[str, Any]:
    """The arguments that a kernel is compiled for; ``tight`` if registers may be short."""
    return {
        "CAPPED": softcap_of(options)[0],
        "ACC": ACCUMULATORS[acc],
        "BLOCK_V": tiling.block(logits.element_size()),
        "VEC": 16 // logits.element_size(),
        "num_warps": tiling.num_warps,
        # Whether products and sums are fused is set here, not left to the default of a version of
        # Triton. Without a softcap w = inner * x is one product. Fused into w - peak, it would keep
        # digits that the rounded peak has lost, and the label's own logit would keep others than
        # its term in the sum. That is an error of the peak's rounding, 3e-6 at 30 and 6e-5 at 500,
        # and gives log-probabilities above 0. Softcapped logits may be fused.
        "enable_fp_fusion": bool(options.softcap),
        **tiling.limits(tight),
    }


def forward(
    logits: Tensor,  # (R, T, V), any strides
    labels: Tensor,  # (R, T)
    options: TokenOptions,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (R, T) each
    """Log-probabilities of the labels, and the maxima and sums of exponentials for the backward.

    All are 0 where ignored. They are float32, or float64 for float64 logits. A label that is no
    column gives NaN and is not read.
    """
    acc = torch.promote_types(logits.dtype, torch.float32)
    logp, peak, total = (
        torch.empty(labels.shape, dtype=acc, device=logits.device) for _ in range(3)
    )
    if labels.numel() == 0:
        return logp, peak, total
    tiling = tiling or tilings_of(logits.device).of(options.softcap)
    tight = bool(options.softcap) and acc == torch.float64
    with on(logits.device):
        logprob_fwd[(labels.numel(),)](
            logits,
            labels.contiguous(),
            logp,
            peak,
            total,
            labels.shape[1],
            logits.shape[2],
            *logits.stride(),
            options.ignore_index,
            *constants(options),
            softcap_of(options)[1],
            **_specialization(logits, options, acc, tiling, tight),
        )
    return logp, peak, total


def backward(
    grad: Tensor,  # (R, T)
    logits: Tensor,  # (R, T, V), any strides
    labels: Tensor,  # (R, T)
    softmax: tuple[Tensor, Tensor],  # peaks and totals (R, T)
    options: TokenOptions,
    dlogits: Tensor,  # (R, T, V), written; may be logits
    again: bool = False,
    tiling: Tiling | None = None,
) -> None:
    """The gradient of the logits.

    ``again`` is for logits that were computed again: one above its row's peak counts as the peak.
    Rows that are ignored or whose upstream gradient is 0 are zeroed without a read.
    """
    if logits.numel() == 0:
        return
    tiling = tiling or tilings_of(logits.device).of(options.softcap)
    peak, total = softmax
    chunk = tiling.chunk * tiling.block(logits.element_size())
    tight = not options.softcap and dlogits.stride(2) == 1 != logits.stride(2)
    with on(logits.device):
        logprob_bwd[(labels.numel(), triton.cdiv(logits.shape[2], chunk))](
            dlogits,
            logits,
            grad.contiguous(),
            labels.contiguous(),
            peak,
            total,
            labels.shape[1],
            logits.shape[2],
            *dlogits.stride(),
            *logits.stride(),
            options.ignore_index,
            *constants(options),
            softcap_of(options)[1],
            CHUNK=chunk,
            AGAIN=again,
            **_specialization(logits, options, peak.dtype, tiling, tight),
        )


def sums(
    logps: Tensor,  # (R, T) or (M,)
    labels: Tensor,  # as logps
    response_ids: Tensor | None,  # (M,)
    num_responses: int,
    ignore_index: int,
    mean: bool,
) -> tuple[Tensor, Tensor]:  # (R,) each
    """The sum or mean of each response's log-probabilities, and its number of live tokens.

    Sums have the dtype of the log-probabilities; numbers of tokens are int64.
    """
    rewards = torch.empty(num_responses, dtype=logps.dtype, device=logps.device)
    lengths = torch.empty(num_responses, dtype=torch.int64, device=logps.device)
    if num_responses == 0:
        return rewards, lengths
    rows, (logps, labels) = logps.shape[-1], (logps.contiguous(), labels.contiguous())
    ids = labels if response_ids is None else response_ids.contiguous()  # unread if padded
    with on(logps.device):
        if response_ids is None or logps.dtype == torch.float64:
            options = {
                "PACKED": response_ids is not None,
                "MEAN": mean,
                "BLOCK": ROWS,
                "enable_fp_fusion": False,
            }
            response_sums[(num_responses,)](
                logps, labels, ids, rewards, lengths, rows, ignore_index, **options
            )
            return rewards, lengths
        totals = torch.zeros(num_responses + 1, dtype=torch.float64, device=logps.device)
        counts = torch.zeros(num_responses, dtype=torch.int32, device=logps.device)
        if rows:
            options = {"BLOCK": ROWS, "enable_fp_fusion": False}
            response_scatter[(triton.cdiv(rows, ROWS),)](
                logps, labels, ids, totals, counts, rows, num_responses, ignore_index, **options
            )
        response_finish[(num_responses,)](
            totals, counts, rewards, lengths, num_responses, MEAN=mean, enable_fp_fusion=False
        )
    return rewards, lengths
