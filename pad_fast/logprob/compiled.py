"""Logits' sums and gradients as loops that torch.compile makes, where PAD_FAST_COMPILE=1 asks.

Each is one loop over the rows on a CPU, without a tile in memory, where PyTorch's own operations
take four or five. A row's last bits may then depend on how many rows there are. Logits with a
softcap are left to PyTorch's operations: a compiled loop computes tanh twice, and took 1.4 times as
long.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from pad_fast.argument_checks import check_choice
from pad_fast.device import waits_for_values
from pad_fast.logprob.softmax import OnlineSoftmax, RowNumbers, TokenOptions

ENVIRONMENT_VARIABLE = "PAD_FAST_COMPILE"
MOST_COMPILATIONS = 64  # for one function; torch.compile stops at 8 otherwise


def is_asked_for(logits: Tensor, options: TokenOptions) -> bool:
    """Whether compiled loops take these logits.

    Raises:
        ValueError: the environment asks for them, and there is no C++ compiler.
    """
    asked = os.environ.get(ENVIRONMENT_VARIABLE) or "0"
    check_choice(ENVIRONMENT_VARIABLE, asked, ("0", "1"))
    if asked == "0" or waits_for_values(logits.device) or options.softcap:
        return False
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}=1 needs a C++ compiler, and there is no {compiler}: "
            f"install one, name yours by CXX, or unset {ENVIRONMENT_VARIABLE}"
        )
    return True


def sum_rows(
    logits: Tensor,  # (M, V)
    rows: Tensor,  # (L,)
    options: TokenOptions,
    softmax: OnlineSoftmax,  # written, has these rows alone
) -> None:
    """Take all columns of some rows into ``softmax``."""
    scale, labels = _scale(options, softmax.peak.dtype), softmax.labels
    # A CPU's labels have been checked to be columns.
    softmax.picked = logits[rows, labels].to(scale.dtype) * scale
    softmax.peak, softmax.total = _compiled(_sum_rows)(logits, rows, scale)


def write_row_gradients(
    logits: Tensor,  # (M, V)
    rows: Tensor,  # (L,)
    numbers: RowNumbers,  # (L,)
    options: TokenOptions,
    dlogits: Tensor,  # (M, V), written at these rows; not logits
) -> None:
    """Write the gradient of the logits of some rows."""
    of_rows = (rows, numbers.labels, numbers.peak, numbers.total, numbers.grad)
    _compiled(_write_row_gradients)(logits, *of_rows, _scale(options, numbers.peak.dtype), dlogits)


@cache
def _compiled(function: Callable) -> Callable:
    compiled = torch.compile(function, fullgraph=True, dynamic=True)

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor] | None:
        # Each dtype and layout of logits is a compilation, and a single row another; with
        # gradients on and off there would be twice as many.
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
            return compiled(*arguments)

    return run


def _scale(options: TokenOptions, dtype: torch.dtype) -> Tensor:
    """d z / d logits, as a tensor: another number would be another compilation."""
    return torch.tensor(options.logit_scale / options.temperature, dtype=dtype)


def _sum_rows(logits: Tensor, rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    z = logits[rows].to(scale.dtype) * scale
    peak = z.amax(1)
    anchor = peak.masked_fill(peak == -torch.inf, 0)
    return peak, (z - anchor.unsqueeze(1)).exp().sum(1)


def _write_row_gradients(
    logits: Tensor,
    rows: Tensor,
    labels: Tensor,
    peak: Tensor,
    total: Tensor,
    grad: Tensor,
    scale: Tensor,
    dlogits: Tensor,
) -> None:
    z = logits[rows].to(scale.dtype) * scale
    share = (z - peak.unsqueeze(1)).exp() * (-grad / total).unsqueeze(1)
    own = torch.arange(z.shape[1]) == labels.unsqueeze(1)
    found = torch.where(own, share + grad.unsqueeze(1), share) * scale
    dlogits.index_copy_(0, rows, found.to(dlogits.dtype))
