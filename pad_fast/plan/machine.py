"""The machine that is planned for: its memory, and its speed as far as a short measurement tells."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import dataclass

import torch

UNITS = {
    "": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
SECONDS = 0.2  # of each measurement
USABLE = (
    0.9  # of the memory: the rest goes to the context, to fragments and to what an estimate misses
)


@dataclass(frozen=True)
class Machine:
    """`memory` in bytes; `flops` a second of a plain matrix product and `bandwidth` in bytes a second of a copy, both measured on this
    machine, also where another `is_gpu` that is planned for."""

    name: str
    memory: int
    flops: float
    bandwidth: float
    is_gpu: bool = False

    def fits(self, peak: int) -> bool:
        return peak <= USABLE * self.memory

    def seconds(self, flops: float, moved: float = 0.0) -> float:
        """What products and memory allow at best, the slower of the two."""
        return max(flops / self.flops, moved / self.bandwidth)


def this_machine(dtype: torch.dtype, memory: int | None = None) -> Machine:
    """The first GPU, else the CPU, with `memory` in the place of its own; products are measured in `dtype`."""
    if torch.cuda.is_available():
        device, properties = torch.device("cuda"), torch.cuda.get_device_properties(0)
        name, own = properties.name, properties.total_memory
    else:
        device, own = torch.device("cpu"), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    size = 8192 if device.type == "cuda" else 512
    a = torch.ones(size, size, dtype=dtype, device=device)
    block = torch.ones(2**28 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    product, copy = _seconds(lambda: a @ a, device), _seconds(lambda: target.copy_(block), device)
    is_gpu = (
        device.type == "cuda" or memory is not None
    )  # nobody plans for the memory of another CPU
    name = name if memory is None else "a GPU as given"
    return Machine(
        name,
        own if memory is None else memory,
        2 * size**3 / product,
        2 * block.nbytes / copy,
        is_gpu,
    )


def parse_bytes(name: str, text: str) -> int:
    """Bytes of a text such as 80GiB, 24 GB or 640MiB. ValueError names `name`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise ValueError(f"{name}: must be a size above 0 such as 80GiB, got {text!r}")
    return round(float(found[1]) * UNITS[found[2].upper()])


def _seconds(step, device: torch.device) -> float:
    """Of one call, the best of as many as SECONDS holds: other work only ever adds time."""
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    return best
