"""What every launcher needs: the accumulation type by its name in Triton, and the right device."""

from __future__ import annotations

import contextlib

import torch
import triton.language as tl

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
