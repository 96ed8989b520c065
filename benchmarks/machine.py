"""What a record says of the machine, and the roofs that it was measured under."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[1]
ALWAYS = ("torch", "triton")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _answer(*command: str) -> str | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def driver(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    found = _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def commit() -> str | None:
    """The commit, with a "+" where code that can be measured was changed since."""
    head = _answer("git", "rev-parse", "--short=12", "HEAD")
    return head and head + (
        "+"
        if _answer("git", "status", "--porcelain", "--", "pad_fast", "kernels", "benchmarks/*.py")
        else ""
    )


def version(package: str) -> str | None:
    if package == "pad_fast":
        import pad_fast

        return pad_fast.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe(device: torch.device) -> dict:
    return {
        "device": device_name(device),
        "driver": driver(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "versions": {package: version(package) for package in ALWAYS},
        "commit": commit(),
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def roofs(device: torch.device, *, size: int | None = None) -> dict[str, float]:
    """Bytes a second of a large copy, read and written, and operations a second of a square product in float32 and bfloat16.

    Random data: a product of zeros runs faster than a real one. On a CPU only float32, in which its cases are.
    """
    on_gpu = device.type == "cuda"
    size = size or (8192 if on_gpu else 1536)
    found = {"copy": _copy_rate(device, (16 if on_gpu else 12) * size * size)}
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        found[str(dtype).removeprefix("torch.")] = (
            2 * size**3 / _seconds(lambda a=a, b=b: a @ b, device)
        )
    return found


def _copy_rate(device: torch.device, elements: int) -> float:
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _seconds(call, device: torch.device, repeats: int = 10) -> float:
    times = []
    for _ in range(repeats + 3):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[3:])
