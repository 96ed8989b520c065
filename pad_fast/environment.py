"""The versions and devices that a result depends on, for a run's manifest and for bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

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

# Other versions of these may change a result; the other packages read and write files.
DECISIVE = ("pad-fast", "torch", "triton", "transformers", "accelerate", "flash-attn")
# What accelerate, torch and this package read from the environment and what may change a result,
# by how the names begin, and those that begin alike and change none. The device, which one of them
# chooses, stands in the manifest by itself.
VARIABLES = (
    "ACCELERATE_",
    "CUBLAS_",
    "FLASH_ATTENTION_",
    "FSDP_",
    "MKL_CBWR",
    "NVIDIA_TF32_OVERRIDE",
    "PAD_FAST_COMPILE",
    "PAD_FAST_IMPL",
    "PARALLELISM_CONFIG_",
    "TORCHDYNAMO_",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TRITON_INTERPRET",
)
HARMLESS = (
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG",
    "ACCELERATE_DISABLE_RICH",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_USE_CPU",
    "CUBLAS_LOG",
)
# What accelerate's launcher sets where nothing is asked for, so that a run may be begun without it
# and go on with it.
UNCHANGED = {
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "false",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "false",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_MIXED_PRECISION": "no",
}


def install_extra(name: str) -> str:
    """The command that installs what an optional part of the package needs."""
    return f'in a clone of pad-fast, pip install ".[{name}]"'


def decisive(versions: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The versions, of all that are known, and the variables that may change a result."""
    return {name: versions[name] for name in DECISIVE if name in versions} | dict(variables)


def variables() -> dict[str, str]:
    """The variables of the environment that may change a result, as they are set."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES)
        and not name.startswith(HARMLESS)
        and UNCHANGED.get(name) != value.lower()
    }


def shown(values: Mapping[str, Any]) -> str:
    """Names with their values, in a line."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def versions() -> dict[str, str]:
    """Versions of Python and of those of :data:`PACKAGES` that are installed."""
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

    from pad_fast import device
    from pad_fast.dispatch import resolve_impl

    lines = {"platform": f"{platform.platform()} ({sys.platform})"}
    found = versions()
    lines.update({name: found.get(name, "not installed") for name in ("python", *PACKAGES)})
    lines["CUDA"] = device.build()
    lines.update({f"device {index}": line for index, line in enumerate(device.gpu_names())})
    lines["threads"] = str(torch.get_num_threads())
    lines["implementation"] = resolve_impl("auto", torch.empty(0, device=device.default_device()))
    lines.update(variables())
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
