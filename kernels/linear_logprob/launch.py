"""Launchers: one program per row of a chunk of logits, or a fixed number of them that never write one."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..common.device import ACCUMULATORS, multiprocessors, on
from ..logprob import launch as logprob
from .fused import linear_logprob_fwd, linear_logprob_join
from .scores import linear_logprob_rows
from .tuning import SPLITS, RowTiling, ScoringTiling, rows_of, scoring_of

VEC = 4  # columns of a lane
JOINED = 128  # rows of a program that joins the parts of the vocabulary


def rows(
    logits: Tensor,  # (C, V) float32 or float64, the first rows of a chunk, contiguous columns
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (C,)
    scores: Tensor | None,  # (C, V), written, contiguous columns
    numbers: tuple[Tensor, Tensor, Tensor],  # log-probabilities, peaks and totals (C,), written
    temperature: float,
    softcap: float,  # 0: none
    logit_scale: float,
    tiling: RowTiling | None = None,
) -> None:
    """Log-probability of each label, the maximum and the sum of exponentials, and with ``scores`` d log p[label] / d logits."""
    if not labels.numel():
        return
    tiling = tiling or rows_of(logits.device)
    bias = bias.contiguous() if bias is not None else None
    with on(logits.device):
        linear_logprob_rows[(labels.numel(),)](
            logits, logits if bias is None else bias, labels, *numbers, logits if scores is None else scores, logits.shape[1],
            logits.stride(0), logits.stride(0) if scores is None else scores.stride(0),
            *logprob.constants(temperature, softcap, logit_scale), HAS_BIAS=bias is not None, KEEP=scores is not None,
            CAPPED=bool(softcap), ACC=ACCUMULATORS[logits.dtype], BLOCK_V=tiling.columns, VEC=VEC,
            num_warps=tiling.num_warps, enable_fp_fusion=bool(softcap),  # as logprob's, for its reason
            **tiling.limits,
        )  # fmt: skip


def tile(
    logits: Tensor,  # (L, v) float32 or float64, of the columns from ``column`` on
    labels: Tensor,  # (L,)
    peak: Tensor,  # (L,)
    total: Tensor,  # (L,)
    grad: Tensor,  # (L,)
    column: int,
    scores: Tensor,  # (L, v), written
    temperature: float,
    softcap: float,
    logit_scale: float,
) -> None:
    """grad * d log p[label] / d logits, of rows whose peak and total are known; zeros, and nothing read, where grad is 0."""
    nothing = -(2**31)  # a label that is ignored; these are all live
    logprob.backward(
        grad[None], logits[None], labels[None] - column, peak[None], total[None], temperature, softcap, logit_scale, nothing, scores[None]
    )  # fmt: skip


def score(
    hidden: Tensor,  # (L, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (L,)
    temperature: float,
    softcap: float,
    logit_scale: float,
    tiling: ScoringTiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (L,) each, float32
    """Log-probability of each label, maximum and sum of exponentials, without logits in memory. Not for float64."""
    tiling = tiling or scoring_of(hidden.device)
    count, vocabulary = len(labels), len(weight)
    logp, top, sums = (hidden.new_empty(count, dtype=torch.float32) for _ in range(3))
    if not count:
        return logp, top, sums
    own, peak, total = (hidden.new_empty(SPLITS, count, dtype=torch.float32) for _ in range(3))
    hidden, weight = (
        factor if factor.stride(1) == 1 else factor.contiguous() for factor in (hidden, weight)
    )
    depth = tiling.depth // hidden.element_size()
    described = tiling.described and all(_describable(factor) for factor in (hidden, weight))
    factors = (
        tuple(
            TensorDescriptor.from_tensor(factor, [size, depth])
            for factor, size in ((hidden, tiling.rows), (weight, tiling.columns))
        )
        if described
        else (hidden, weight)
    )
    items = triton.cdiv(count, tiling.rows) * SPLITS
    with on(hidden.device):
        linear_logprob_fwd[(min(items, multiprocessors(hidden.device)) if described else items,)](
            *factors, weight if bias is None else bias.contiguous(), labels.contiguous(), own, peak, total, count, vocabulary,
            hidden.shape[1], hidden.stride(0), weight.stride(0), *logprob.constants(temperature, softcap, logit_scale), SPLITS=SPLITS,
            HAS_BIAS=bias is not None, CAPPED=bool(softcap), DESCRIBED=described, BLOCK_M=tiling.rows, BLOCK_N=tiling.columns,
            BLOCK_K=depth, num_warps=tiling.num_warps, num_stages=tiling.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        linear_logprob_join[(triton.cdiv(count, JOINED),)](
            own,
            peak,
            total,
            logp,
            top,
            sums,
            count,
            SPLITS=SPLITS,
            CAPPED=bool(softcap),
            BLOCK_M=JOINED,
            enable_fp_fusion=True,
        )
    return logp, top, sums


def _describable(factor: Tensor) -> bool:
    """Descriptors want 16-byte rows that begin at 16 bytes."""
    return factor.data_ptr() % 16 == 0 and factor.stride(0) * factor.element_size() % 16 == 0
