"""What every launcher needs: the accumulation type by its name in Triton, and the right device."""

from __future__ import annotations

import contextlib

import torch
import triton.language as tl

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def architecture(device: torch.device) -> str:
    """The name of a device in the tables: "sm_90", "gfx942", or "" where there is no GPU."""
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, _ = torch.cuda.get_device_capability(device)
    return f"sm_{major}0"
