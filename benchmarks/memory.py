"""Peak memory of a step: as PyTorch's allocator counts it, and as the system does."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pad_fast import device as devices
from pad_fast.files import process_memory
from pad_fast.files.process_memory import resident

Step = Callable[[], tuple[Tensor, ...]]


def allocated_peak(step: Step, device: torch.device) -> tuple[int, tuple[Tensor, ...]]:
    """The peak of PyTorch's allocator during a step, and the step's results.

    Returns:
        Bytes beyond those that were allocated before, results included, and the results.
    """
    gc.collect()
    if devices.is_gpu(device):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        outputs = step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, outputs
    # The CPU's allocator keeps no peak, but it reports each allocation and release to the profiler.
    # Buffers of the matrix library are not among them: resident memory is recorded too.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(
        activities=activities, profile_memory=True, acc_events=True
    ) as profiler:
        outputs = step()
    held = peak = 0
    for event in sorted(_memory_events(profiler), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak, outputs


def _memory_events(profiler: torch.profiler.profile) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event["name"] == "[memory]"]


def resident_peak(step: Step) -> int | None:
    """The peak of the process's resident memory during a step, beyond its start and the results.

    Not to be used while a step is timed: freed memory is given back first, and each of its pages
    faults again.

    Returns:
        Bytes, as Linux counts them; None on other systems.
    """
    gc.collect()
    if not forget_peak():
        return None
    before = resident()
    outputs = step()
    after = resident("VmHWM")
    return after - before - sum(output.nbytes for output in outputs) if before and after else None


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now."""
    if devices.is_gpu(device):
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    text = info.read_text() if info.exists() else ""
    if found := re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.M):
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def forget_peak() -> bool:
    """Give freed memory back to the system and reset the peak; False where that is impossible."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return process_memory.forget_peak()
