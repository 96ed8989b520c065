"""The data type that a model's weights are loaded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pad_fast.files.weights import stored_as

AUTO = "auto"


def stored_dtype(checkpoint: Any, asked: str) -> torch.dtype:
    """The data type that a checkpoint is loaded in.

    For "auto" it is what transformers finds too: that of the configuration, else of the first
    weights in a folder. A name on the hub whose configuration has none is loaded in float32.

    Args:
        checkpoint: its ``config`` and its ``path`` are read.
        asked: the setting dtype.
    """
    if asked != AUTO:
        return getattr(torch, asked)
    text = checkpoint.config.get_text_config()
    found = getattr(checkpoint.config, "dtype", None) or stored_as(Path(checkpoint.path))
    found = found or getattr(text, "dtype", None)
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """A data type as settings name it.

    Example:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
