"""What launchers ask about a device. No other file of ``kernels/`` asks what a device is."""

from __future__ import annotations

import contextlib

import torch
import triton.language as tl

# The accumulation dtypes by their names in Triton.
ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Make ``device`` current: Triton launches on the current device, whatever the tensors' is."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def architecture(device: torch.device) -> str:
    """The device's key in the tuning tables: "sm_90", "gfx942", or "" where there is no GPU."""
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, _ = torch.cuda.get_device_capability(device)
    return f"sm_{major}0"


def has_wide_warps() -> bool:
    """Whether a warp has 64 threads, as on AMD's GPUs, and not 32."""
    return torch.version.hip is not None


def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors; under the interpreter 2, so that persistent loops repeat."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
