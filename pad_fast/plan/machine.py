"""The machine that is planned for: its memory, and its speed from a short measurement."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pad_fast.device import all_memory, default_device, gpu_name, is_gpu, synchronize
from pad_fast.files.process_memory import resident

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
SECONDS = 0.2  # the time that each measurement takes
COPIED = 2**30  # bytes of a block that is copied: more than any cache, of which some have 480 MiB
MOST_COPIED = 16  # the part of a machine's memory that the two blocks may take
# Seconds in which PyTorch starts one operation: its own Python and, on a GPU, the driver's launch.
STARTED = 8e-6
# Bytes a second of the SHA-256 of a trained student's files, on one core that has no instructions
# for it; this machine's rate is measured.
HASHED = 0.7e9
DISK = 3e9  # bytes a second of a file of weights, which was mostly written or fetched just before
OPENED = 0.5  # seconds in which a model of any size is made before its weights are read
# The part of the memory that a plan may fill. The rest goes to the device's context, to
# fragmentation and to what an estimate misses.
USABLE = 0.9


@dataclass(frozen=True)
class Machine:
    """A device, and the rates that times are estimated from.

    Attributes:
        name: as it is printed.
        memory: bytes.
        flops: operations a second of a plain matrix product in the data type of the training.
        bandwidth: bytes a second of a copy, those read and those written.
        is_gpu: whether the device that is planned for is a GPU.
        process: bytes that this process holds before any model: 0 on a GPU.
        others: like ``flops``, in other data types by their names, such as "bfloat16".
        here: whether it is this machine, on which work can be tried.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    is_gpu: bool = False
    process: int = 0
    others: Mapping[str, float] = field(default_factory=dict)
    here: bool = False
    hashed: float = HASHED

    def fits(self, peak: int) -> bool:
        """Whether ``peak`` bytes fit in the usable part of the memory."""
        return peak <= USABLE * self.memory

    def time_of(
        self, operations: Mapping[tuple[int, int], int], dtype: torch.dtype | None = None
    ) -> float:
        """The seconds of operations, see :attr:`pad_fast.footprint.meter.Footprint.operations`.

        Args:
            operations: how many there are of each number of flops and moved bytes.
            dtype: of their products; by default that of the training.
        """
        rate = self.flops if dtype is None else self.others.get(_name(dtype), self.flops)
        return sum(
            count * max(flops / rate, moved / self.bandwidth, STARTED)
            for (flops, moved), count in operations.items()
        )

    def loading(self, nbytes: int) -> float:
        """The seconds in which so many bytes of weights are loaded."""
        return OPENED + nbytes / DISK


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def this_machine(
    dtype: torch.dtype, memory: int | None = None, others: Sequence[torch.dtype] = ()
) -> Machine:
    """The first GPU, or the CPU if there is none.

    Args:
        dtype: of the matrix products of the training, which are measured.
        memory: bytes of another GPU that is planned for. The rates are still this machine's.
        others: data types whose products are measured too.
    """
    device = default_device()
    own = all_memory(device)
    if memory is not None:
        name = "a GPU as given"
    elif is_gpu(device):
        name = gpu_name(device)
    else:
        name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return Machine(
        name,
        own if memory is None else memory,
        product_rate(device, dtype),
        copy_rate(device),
        is_gpu(device) or memory is not None,
        0 if is_gpu(device) or memory is not None else resident() or 0,
        {_name(other): product_rate(device, other) for other in {*others} - {dtype}},
        memory is None,
        HASHED if memory is not None else hash_rate(),
    )


def product_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations a second of a square matrix product; ``size`` is its number of rows."""
    size = size or (8192 if is_gpu(device) else 1024)
    # Random numbers: a GPU multiplies constants faster, since they cost less power.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, generator=generator).to(dtype)
    return 2 * size**3 / _seconds(lambda: a @ a, device)


def copy_rate(device: torch.device, nbytes: int | None = None) -> float:
    """Bytes a second of a copy of ``nbytes`` bytes, those read and those written."""
    nbytes = nbytes or min(COPIED, all_memory(device) // MOST_COPIED // 2)
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _seconds(lambda: target.copy_(source), device)


def hash_rate(nbytes: int = 2**24) -> float:
    """Bytes a second of the checksum of a file of weights."""
    block = bytes(nbytes)
    return nbytes / _seconds(lambda: hashlib.sha256(block).digest(), torch.device("cpu"))


def parse_bytes(name: str, text: str) -> int:
    """The bytes of a text such as 80GiB, 24 GB or 640MiB.

    Raises:
        ValueError: it is no size above 0; the message begins with ``name``.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise ValueError(f"{name}: must be a size above 0 such as 80GiB, got {text!r}")
    return round(float(found[1]) * UNITS[found[2].upper()])


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """The time of the fastest call within SECONDS, since other work only adds to it.

    A first call is not counted: it may load libraries.
    """
    step()
    synchronize(device)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        step()
        synchronize(device)
        best = min(best, time.perf_counter() - before)
    return best
