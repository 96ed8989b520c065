"""Launchers: choose the tiles, pass the strides on, start one program per row (and per chunk of a row, backward)."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..common.device import ACCUMULATORS, on
from .backward import logprob_bwd
from .forward import logprob_fwd
from .responses import response_finish, response_scatter, response_sums
from .tuning import Tiling, tiling_of

ROWS = 1024  # log-probabilities that a program takes at once


def constants(temperature: float, softcap: float, logit_scale: float) -> tuple[float, float]:
    """(inner, outer) of w = outer * tanh(inner * x), in bits, or of w = inner * x, in nats, where ``softcap`` is 0."""
    if softcap:
        return logit_scale / softcap, softcap / temperature / math.log(2)
    return logit_scale / temperature, 1.0


def _specialization(logits: Tensor, softcap: float, acc: torch.dtype, tiling: Tiling) -> dict:
    """What a kernel is compiled for; whether products and sums are fused does not hang on the version's default.

    Softcapped scores may be. Without a softcap w = inner * x is one product: fused into w - peak it would keep digits that the
    peak, which is rounded, has lost, and the label's own score with others than its term in the sum: an error of the peak's
    rounding, 3e-6 at 30 and 6e-5 at 500, and log-probabilities above 0.
    """
    return {
        "CAPPED": bool(softcap), "ACC": ACCUMULATORS[acc], "BLOCK_V": tiling.block(logits.element_size()),
        "VEC": 16 // logits.element_size(), "num_warps": tiling.num_warps, "enable_fp_fusion": bool(softcap),
    }  # fmt: skip


def forward(
    logits: Tensor,  # (R, T, V), any strides
    labels: Tensor,  # (R, T)
    temperature: float,
    softcap: float,  # 0: none
    logit_scale: float,
    ignore_index: int,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (R, T) each
    """Log-probability of each label, and the maximum and the sum of exponentials that the backward needs; zeros where ignored.

    float32, or float64 for float64 logits. A label that is no column gives NaN and is not read.
    """
    acc = torch.promote_types(logits.dtype, torch.float32)
    logp, peak, total = (
        torch.empty(labels.shape, dtype=acc, device=logits.device) for _ in range(3)
    )
    if labels.numel() == 0:
        return logp, peak, total
    tiling = tiling or tiling_of(logits.device)
    with on(logits.device):
        logprob_fwd[(labels.numel(),)](
            logits, labels.contiguous(), logp, peak, total, labels.shape[1], logits.shape[2], *logits.stride(), ignore_index,
            *constants(temperature, softcap, logit_scale), **_specialization(logits, softcap, acc, tiling),
        )  # fmt: skip
    return logp, peak, total


def backward(
    grad: Tensor,  # (R, T)
    logits: Tensor,  # (R, T, V), any strides
    labels: Tensor,  # (R, T)
    peak: Tensor,  # (R, T)
    total: Tensor,  # (R, T)
    temperature: float,
    softcap: float,
    logit_scale: float,
    ignore_index: int,
    dlogits: Tensor,  # (R, T, V), written; may be logits
    tiling: Tiling | None = None,
) -> None:
    """Gradient of the logits. Rows that are ignored or whose upstream gradient is 0 are zeroed without a read."""
    if logits.numel() == 0:
        return
    tiling = tiling or tiling_of(logits.device)
    chunk = tiling.chunk * tiling.block(logits.element_size())
    with on(logits.device):
        logprob_bwd[(labels.numel(), triton.cdiv(logits.shape[2], chunk))](
            dlogits, logits, grad.contiguous(), labels.contiguous(), peak, total, labels.shape[1], logits.shape[2],
            *dlogits.stride(), *logits.stride(), ignore_index, *constants(temperature, softcap, logit_scale),
            CHUNK=chunk, **_specialization(logits, softcap, peak.dtype, tiling),
        )  # fmt: skip


def sums(
    logps: Tensor,  # (R, T) or (M,)
    labels: Tensor,  # as logps
    response_ids: Tensor | None,  # (M,)
    num_responses: int,
    ignore_index: int,
    mean: bool,
) -> tuple[Tensor, Tensor]:  # (R,) each
    """Sum or mean of each response's log-probabilities, in their dtype, and its number of live tokens, int64."""
    rewards = torch.empty(num_responses, dtype=logps.dtype, device=logps.device)
    lengths = torch.empty(num_responses, dtype=torch.int64, device=logps.device)
    if num_responses == 0:
        return rewards, lengths
    rows, (logps, labels) = logps.shape[-1], (logps.contiguous(), labels.contiguous())
    ids = labels if response_ids is None else response_ids.contiguous()  # padded: not read
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
