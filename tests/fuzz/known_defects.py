"""Known defects, whose checks are off. Whoever repairs one sets it to True here."""

import torch

# Rewards have the same bits in any order of the rows, but not in any memory layout of the logits:
# PyTorch adds a row of a transposed view in another order.
LAYOUT_BITS_MENDED = False
# The Triton kernels' tanh of float64 is a quotient of exponentials: it is off by units in the last
# place of 1, not of itself, so that a score is off by 2^-53 * softcap / temperature.
TANH_MENDED = False
# A backward that computes logits again may find one above the forward's peak, because the product
# rounds differently: exp(z - peak) is then above 1, and infinite for logits of 1e9 in float32.
RECOMPUTED_MENDED = False


def absolute_tanh(impl: str, dtype: torch.dtype) -> bool:
    """Whether the softcap has the error of an absolute tanh."""
    return impl == "triton" and dtype == torch.float64 and not TANH_MENDED
