"""The description of the machine in a record, and the machine's roofs."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from pad_fast.device import gpu_name, is_gpu
from pad_fast.plan.machine import copy_rate, product_rate

ROOT = Path(__file__).parents[1]
MEASURED = ("pad_fast", "kernels", "benchmarks/*.py")  # code that a measurement depends on


def device_name(device: torch.device) -> str:
    if is_gpu(device):
        return gpu_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _output_of(*command: str) -> str | None:
    """What a command prints; None if it fails or is not installed."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def driver(device: torch.device) -> str | None:
    if not is_gpu(device):
        return None
    found = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def commit() -> str | None:
    """The commit, with a "+" if code that is measured has uncommitted changes."""
    head = _output_of("git", "rev-parse", "--short=12", "HEAD")
    changes = _output_of("git", "status", "--porcelain", "--", *MEASURED)
    return head and head + ("+" if changes else "")


def version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    if package == "pad_fast":
        import pad_fast

        return pad_fast.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(device: torch.device) -> dict:
    """The keys of a record that describe the machine, the versions and the commit."""
    return {
        "device": device_name(device),
        "driver": driver(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if is_gpu(device) else None,
        "versions": {package: version(package) for package in ("torch", "triton")},
        "commit": commit(),
    }


def roofs(device: torch.device, *, size: int | None = None) -> dict[str, float]:
    """The rates of a copy and of products, against which operations are measured.

    Args:
        device: the device that is measured.
        size: rows of the square matrices.

    Returns:
        "copy": bytes a second that a large copy reads and writes; and by the name of a dtype the
        operations a second of a square product. On a CPU this is float32 alone.
    """
    on_gpu = is_gpu(device)
    size = size or (8192 if on_gpu else 1536)
    found = {"copy": copy_rate(device, (64 if on_gpu else 48) * size * size)}
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        product_rate(device, dtype, size)  # the first product of a GPU loads the library
        found[str(dtype).removeprefix("torch.")] = product_rate(device, dtype, size)
    return found
