"""What launchers ask about a device. No other file of ``kernels/`` asks what a device is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import TypeVar

import torch
import triton.language as tl

# The accumulation dtypes by their names in Triton.
ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}

Entry = TypeVar("Entry")


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Make ``device`` current: Triton launches on the current device, whatever the tensors' is."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def architecture(device: torch.device) -> str:
    """The device's architecture: "sm_90", "gfx942", or "" where there is no GPU."""
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def nearest(table: Mapping[str, Entry], architecture: str) -> Entry:
    """The entry of a tuning table for an architecture, or of the one that is most like it.

    On NVIDIA's GPUs that is its own, one of the same generation, or sm_80, which asks for the least
    shared memory. AMD's are treated as gfx942, without limits of registers. Where a warp has 32
    threads, as on RDNA, a thread then does twice as much.
    """
    if architecture.startswith("gfx"):
        return table.get(architecture, table["gfx942"])
    if architecture in table:
        return table[architecture]
    generation = architecture[:-1] or "sm_8"
    return next((entry for key, entry in table.items() if key[:-1] == generation), table["sm_80"])


def warp_threads(architecture: str) -> int:
    """The threads of a warp: 64 on AMD's CDNA, 32 on RDNA and on NVIDIA's GPUs."""
    return 64 if architecture.startswith("gfx9") else 32


def limits_registers(architecture: str) -> bool:
    """Whether a launch may say how many registers a thread has. AMD's compiler takes no limit."""
    return not architecture.startswith("gfx")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors; under the interpreter 2, so that persistent loops repeat."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
