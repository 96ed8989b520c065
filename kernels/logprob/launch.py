"""Launchers: choose the tiles, pass the strides on, start one program per row (and per chunk of a row, backward)."""

from __future__ import annotations

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backward import logprob_bwd
from .forward import logprob_fwd
from .tuning import Tiling, tiling_of

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


def constants(temperature: float, softcap: float, logit_scale: float) -> tuple[float, float]:
    """(inner, outer) of w = outer * tanh(inner * x), in bits, or of w = inner * x, in nats, where ``softcap`` is 0."""
    if softcap:
        return logit_scale / softcap, softcap / temperature / math.log(2)
    return logit_scale / temperature, 1.0


def on(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _specialization(logits: Tensor, softcap: float, acc: torch.dtype, tiling: Tiling) -> dict:
    """What a kernel is compiled for. Products and sums may always be fused, whatever the version's default is."""
    return {
        "CAPPED": bool(softcap), "ACC": ACCUMULATORS[acc], "BLOCK_V": tiling.block(logits.element_size()),
        "VEC": 16 // logits.element_size(), "num_warps": tiling.num_warps, "enable_fp_fusion": True,
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
    logp, peak, total = (torch.empty(labels.shape, dtype=acc, device=logits.device) for _ in range(3))
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
