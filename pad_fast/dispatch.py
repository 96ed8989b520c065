"""Which implementation runs an operation: chosen by hand, by the environment, or by the device."""

from __future__ import annotations

import importlib.util
import os

import torch

IMPLS = ("auto", "torch", "triton")
ENVIRONMENT_VARIABLE = "PAD_FAST_IMPL"
HAS_TRITON = (
    importlib.util.find_spec("triton") is not None
)  # found, not imported; torch.compile takes it as a constant


def check_impl(impl: str) -> None:
    """Raise ValueError unless ``impl`` names an implementation."""
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(IMPLS)}, got {impl!r}")


def resolve_impl(
    impl: str,
    tensor: torch.Tensor,
    *,
    has_kernel: bool = True,
    why_not: str = "this operation has no Triton kernel",
) -> str:
    """The implementation, "torch" or "triton", that an operation on ``tensor`` takes.

    "auto" asks ``PAD_FAST_IMPL``; if that is unset, empty or "auto" too, CUDA tensors take Triton where the operation has a kernel and
    all else takes PyTorch. An implementation that was asked for by name, either way, is taken or raises: nothing falls back.
    ``why_not`` says why there is no kernel for this call.
    """
    check_impl(impl)
    asked = impl if impl != "auto" else os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    if asked not in IMPLS:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be one of {', '.join(IMPLS)}, got {asked!r}")
    if asked == "auto":
        return "triton" if has_kernel and tensor.is_cuda and HAS_TRITON else "torch"
    if asked == "triton":
        _require_triton(tensor, has_kernel, why_not)
    return asked


def _require_triton(tensor: torch.Tensor, has_kernel: bool, why_not: str) -> None:
    if not has_kernel:
        raise ValueError(f'impl="triton" was asked for, but {why_not}; use impl="auto" or "torch"')
    if not HAS_TRITON:
        raise ValueError('impl="triton" was asked for, but the triton package is not installed')
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'impl="triton" needs a CUDA tensor (or TRITON_INTERPRET=1), got one on {tensor.device}'
        )
