"""Launchers of the log-probabilities of hidden states times the output head.

One program takes one row of a chunk of logits; the fused kernel never writes logits, and a fixed
number of its programs takes all rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..common.device import ACCUMULATORS, multiprocessors, on
from ..logprob import launch as logprob
from ..logprob.launch import TokenOptions
from ..logprob.softmax import NARROW
from .fused import linear_logprob_fwd, linear_logprob_join
from .row_softmax import linear_logprob_rows
from .tuning import SPLITS, RowTiling, ScoringTiling, ScoringTilings, rows_of, scoring_of

VEC = 4  # columns that a lane takes at once
JOINED = 128  # rows of a program that joins the parts of the vocabulary
# Bits of a softcap whose powers of two rows keep. An upstream gradient is divided by their sum, and
# has to stay within float32's range, which ends at 2^-126.
MOST_BITS = 64.0
NO_LABEL = -(2**31)  # an ignore_index that no label has


def rows(
    logits: Tensor,  # (C, V) float32 or float64, contiguous columns
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (C,)
    # Scores (C, V) with contiguous columns and a scale of each row (C,), written
    kept: tuple[Tensor, Tensor] | None,
    found: tuple[Tensor, Tensor, Tensor],  # log-probabilities, peaks and totals (C,), written
    options: TokenOptions,
    tiling: RowTiling | None = None,
) -> None:
    """Write the log-probability of each label, and the maximum and sum of exponentials of its row.

    Given ``kept``, row_scale * scores is d log p[label] / d logits.
    """
    if not labels.numel():
        return
    tiling = tiling or rows_of(logits.device).of(logits.dtype, options.softcap)
    bias = bias.contiguous() if bias is not None else None
    capped, tanh = logprob.softcap_of(options)
    scores, row_scale = (logits, logits) if kept is None else kept
    with on(logits.device):
        linear_logprob_rows[(labels.numel(),)](
            logits,
            logits if bias is None else bias,
            labels,
            *found,
            scores,
            row_scale,
            logits.shape[1],
            logits.stride(0),
            scores.stride(0),
            *logprob.constants(options),
            tanh,
            HAS_BIAS=bias is not None,
            KEEP=kept is not None,
            ONCE=kept is not None and _hold_early_scores(scores.dtype, options),
            CAPPED=capped,
            ACC=ACCUMULATORS[logits.dtype],
            BLOCK_V=tiling.columns,
            VEC=VEC,
            num_warps=tiling.num_warps,
            # The reason is the one of kernels/logprob/launch.py.
            enable_fp_fusion=bool(options.softcap),
            **tiling.limits,
        )


def _hold_early_scores(dtype: torch.dtype, options: TokenOptions) -> bool:
    """Whether scores of this dtype may be written before the sum of their row is known.

    They are up to e^40, or with a softcap 2^z. float16 ends at 65,504, and float32 is for those who
    want the last digits, which e^40 loses.
    """
    capped, _ = logprob.softcap_of(options)
    in_range = not capped or (capped == NARROW.value and logprob.constants(options)[1] <= MOST_BITS)
    return dtype == torch.bfloat16 and in_range


def tile(
    logits: Tensor,  # (L, v) float32 or float64, the columns from first_column on
    labels: Tensor,  # (L,), as the three rows below
    peak: Tensor,
    total: Tensor,
    grad: Tensor,
    first_column: int,
    logp_grad: Tensor,  # (L, v), written
    options: TokenOptions,
) -> None:
    """Write grad * d log p[label] / d logits of rows whose peak and total are known.

    Rows whose grad is 0 become 0, and nothing of them is read.
    """
    logprob.backward(
        grad[None],
        logits[None],
        labels[None] - first_column,
        (peak[None], total[None]),
        replace(options, ignore_index=NO_LABEL),  # all these rows are live
        logp_grad[None],
        again=True,
    )


def score(
    hidden: Tensor,  # (L, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    labels: Tensor,  # (L,)
    options: TokenOptions,
    tilings: ScoringTilings | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (L,) each, float32
    """Log-probability of each label, maximum and sum of exponentials, without logits in memory.

    Not for float64.
    """
    count = len(labels)
    logp, peak, total = (hidden.new_empty(count, dtype=torch.float32) for _ in range(3))
    found = (logp, peak, total)
    if not count:
        return found
    parts = tuple(hidden.new_empty(SPLITS, count, dtype=torch.float32) for _ in range(3))
    hidden, weight = (
        factor if factor.stride(1) == 1 else factor.contiguous() for factor in (hidden, weight)
    )
    tiling = _tiling_for(hidden, weight, bias, tilings or scoring_of(hidden.device))
    depth, described = tiling.depth // hidden.element_size(), tiling.described
    factors = _described(hidden, weight, tiling, depth) if described else (hidden, weight)
    capped, tanh = logprob.softcap_of(options, even=True)
    items = triton.cdiv(count, tiling.rows) * SPLITS
    shared = {"SPLITS": SPLITS, "CAPPED": capped, "enable_fp_fusion": True}
    with on(hidden.device):
        programs = min(items, multiprocessors(hidden.device)) if described else items
        linear_logprob_fwd[(programs,)](
            *factors,
            weight if bias is None else bias.contiguous(),
            labels.contiguous(),
            *parts,
            count,
            *weight.shape,
            hidden.stride(0),
            weight.stride(0),
            *logprob.constants(options),
            tanh,
            HAS_BIAS=bias is not None,
            DESCRIBED=described,
            BLOCK_M=tiling.rows,
            BLOCK_N=tiling.columns,
            BLOCK_K=depth,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **tiling.limits,
            **shared,
        )
        grid = (triton.cdiv(count, JOINED),)
        linear_logprob_join[grid](*parts, *found, count, BLOCK_M=JOINED, **shared)
    return found


def _described(
    hidden: Tensor, weight: Tensor, tiling: ScoringTiling, depth: int
) -> tuple[TensorDescriptor, ...]:
    """Descriptors of both factors' tiles."""
    sizes = (tiling.rows, tiling.columns)
    return tuple(
        TensorDescriptor.from_tensor(factor, [size, depth])
        for factor, size in zip((hidden, weight), sizes, strict=True)
    )


def _tiling_for(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tilings: ScoringTilings
) -> ScoringTiling:
    """The tiling for factors of this dtype, width and alignment."""
    aligned = _is_aligned(hidden) and _is_aligned(weight)
    even = hidden.shape[1] % 16 == 0
    return tilings.of(hidden.dtype, aligned, bias is not None, even)


def _is_aligned(factor: Tensor) -> bool:
    """Whether rows start at multiples of 16 bytes, as tensor descriptors need it."""
    return factor.data_ptr() % 16 == 0 and factor.stride(0) * factor.element_size() % 16 == 0
