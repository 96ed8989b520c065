"""Peak memory of a step: what PyTorch's allocator held, and what the system saw."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]


def allocated_peak(step: Step, device: torch.device) -> tuple[int, tuple[Tensor, ...]]:
    """Most bytes that PyTorch's allocator held during a step beyond what it held before, results included; and the results."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outputs = step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, outputs
    # The CPU's allocator keeps no peak, but it tells the profiler of each allocation and release; buffers that the matrix library
    # holds for itself are not among them, which is why resident memory is recorded beside it.
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        outputs = step()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path) as file:
            events = [
                event for event in json.load(file)["traceEvents"] if event["name"] == "[memory]"
            ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak, outputs


def resident_peak(step: Step) -> int | None:
    """As :func:`allocated_peak`, of the process's resident memory and less the results, as Linux counts it.

    Never while a step is timed: giving freed memory back first makes each page of it fault again.
    """
    gc.collect()
    if not forget_peak():
        return None
    before = resident()
    outputs = step()
    after = resident("VmHWM")
    return after - before - sum(output.nbytes for output in outputs) if before and after else None


def resident(field: str = "VmRSS") -> int | None:
    """Bytes now ("VmRSS"), or at most since :func:`forget_peak` ("VmHWM"); None where there is no /proc."""
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else None


def free_memory(device: torch.device) -> int:
    """Bytes that can be had now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    found = (
        re.search(r"^MemAvailable:\s+(\d+) kB$", info.read_text(), re.M) if info.exists() else None
    )
    return (
        int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )


def forget_peak() -> bool:
    """Give freed memory back to the system and start the peak afresh; False where that cannot be done."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True
