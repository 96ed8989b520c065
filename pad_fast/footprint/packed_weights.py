"""What weights that are stored quantised take less than weights of full width."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pad_fast.footprint.fakes import empty_model
from pad_fast.models.auto import build_model

# transformers unpacks these while it loads them, or later, where the device or a package lacks.
UNPACKED = {"compressed-tensors", "fp8", "gguf", "metal", "mxfp4"}
SCALES = 0.5  # bits of a weight: a float32 scale for 64 weights, or a scale and a zero for fewer


def weight_files(path: str) -> list[Path]:
    """The files of weights that a folder is loaded from; none of a name on the hub."""
    folder = Path(path)
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def saved_bytes(
    path: str, config: Any, dtype: torch.dtype, build: Callable[..., Any] = build_model
) -> int:
    """How many bytes fewer a quantised model holds than one whose weights are all in ``dtype``.

    The largest layer's weights are unpacked while they are used, and count in full.

    Args:
        path: its folder, whose files have the size of the weights, or its name on the hub, where
            the bits of its quantization_config say it.
        config: its transformers configuration.
        dtype: of the weights that are not quantised.
        build: makes such a model.

    Returns:
        Bytes; 0 for a model that is not quantised, and for one that may be unpacked on loading.
    """
    found = _quantization(config)
    if not found or found.get("quant_method") in UNPACKED:
        return 0
    model = empty_model(config, build)
    head = model.get_output_embeddings()
    linear = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    whole = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    unpacked = max(linear, default=0) * dtype.itemsize
    if files := weight_files(path):
        return max(0, whole - sum(file.stat().st_size for file in files) - unpacked)
    if (bits := _bits(found)) is None:
        return 0
    return max(0, int(sum(linear) * (dtype.itemsize - (bits + SCALES) / 8)) - unpacked)


def _quantization(config: Any) -> dict[str, Any]:
    """The quantization_config of a configuration, or of the language model inside it."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            return dict(found if isinstance(found, dict) else found.to_dict())
    return {}


def _bits(quantization: dict[str, Any]) -> float | None:
    """The bits of a quantised weight; None where the configuration does not say."""
    for name, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if quantization.get(name) or quantization.get(f"_{name}"):
            return bits
    given = (quantization.get(name) for name in ("bits", "nbits", "w_bit"))
    return next((bits for bits in given if isinstance(bits, int | float)), None)
