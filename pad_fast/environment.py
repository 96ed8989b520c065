"""The versions and devices that a result depends on: for the manifest of a run and for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

PACKAGES = (
    "pad-fast",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "flash-attn",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> str:
    """The lines of `pad-fast env`, to paste into a bug report."""
    import torch

    from pad_fast.dispatch import resolve_impl

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = {"platform": f"{platform.platform()} ({sys.platform})"}
    lines.update({name: versions().get(name, "not installed") for name in ("python", *PACKAGES)})
    lines["CUDA"] = str(torch.version.cuda or torch.version.hip or "not in this build of torch")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines[f"device {index}"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        )
    lines["threads"] = str(torch.get_num_threads())
    lines["implementation"] = resolve_impl("auto", torch.empty(0, device=device))
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
