"""The smallest kernel, which shows whether this machine can launch any."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import on


@triton.jit
def write_one(target):
    """Write 1 to the first entry."""
    tl.store(target, 1)


def launch(device: torch.device) -> Tensor:
    """Launch the kernel; Triton compiles it, and what launches it, for this process.

    Returns:
        (1,) int32, which holds 1.
    """
    target = torch.zeros(1, dtype=torch.int32, device=device)
    with on(device):
        write_one[(1,)](target)
    return target
