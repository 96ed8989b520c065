"""Which implementation runs an operation, "torch" or "triton".

A call can name it by ``impl``, and the environment by ``PAD_FAST_IMPL`` for all calls that leave
``impl`` at "auto". Otherwise the device decides: Triton on a GPU, PyTorch elsewhere.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from pad_fast.argument_checks import check_choice
from pad_fast.device import runs_kernels
from pad_fast.device_errors import INSTALL_COMPILER, lacks_compiler
from pad_fast.files.system_errors import first_line

IMPLS = ("auto", "torch", "triton")
ENVIRONMENT_VARIABLE = "PAD_FAST_IMPL"
# The package is looked for and not imported. torch.compile takes this as a constant.
HAS_TRITON = importlib.util.find_spec("triton") is not None


def check_impl(impl: str) -> None:
    """Raise ValueError unless ``impl`` names an implementation."""
    check_choice("impl", impl, IMPLS)


def resolve_impl(
    impl: str,
    tensor: Tensor,
    *,
    has_kernel: bool = True,
    why_not: str = "this operation has no Triton kernel",
) -> str:
    """The implementation that an operation on ``tensor`` takes, "torch" or "triton".

    Args:
        impl: "auto", "torch" or "triton".
        tensor: any input of the operation.
        has_kernel: whether Triton can run this call.
        why_not: the reason where it cannot, for the error.

    Raises:
        ValueError: an implementation that was asked for by name, by ``impl`` or the environment,
            cannot run. Nothing falls back.

    Example:
        >>> import torch
        >>> resolve_impl("torch", torch.zeros(1))
        'torch'
    """
    check_impl(impl)
    asked = impl if impl != "auto" else os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    check_choice(ENVIRONMENT_VARIABLE, asked, IMPLS)
    if asked == "auto":
        return "triton" if has_kernel and runs_kernels(tensor) and HAS_TRITON else "torch"
    if asked == "triton":
        _require_triton(tensor, has_kernel, why_not)
    return asked


def check_launches(impl: str, device: torch.device) -> None:
    """Launch the smallest kernel where operations take Triton.

    Triton needs a C compiler of the machine, and asks for it no sooner than at a first launch.

    Raises:
        ValueError: nothing can be launched; the message says what to install. Also as
            :func:`resolve_impl`.
    """
    if resolve_impl(impl, torch.empty(0, device=device)) != "triton":
        return
    from pad_fast.kernels.common import trial

    try:
        trial.launch(device)
    except Exception as error:  # by Triton, a compiler, the linker or the driver
        advice = f"{INSTALL_COMPILER}; or" if lacks_compiler(error) else "without Triton,"
        raise ValueError(
            f"impl: Triton cannot launch kernels on {device}: {first_line(error)}. {advice} "
            f"set impl to torch (or {ENVIRONMENT_VARIABLE}=torch), which is slower"
        ) from error


def _require_triton(tensor: Tensor, has_kernel: bool, why_not: str) -> None:
    if not has_kernel:
        raise ValueError(f'impl="triton" was asked for, but {why_not}; use impl="auto" or "torch"')
    if not HAS_TRITON:
        raise ValueError('impl="triton" was asked for, but the triton package is not installed')
    if not runs_kernels(tensor) and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'impl="triton" needs a CUDA tensor (or TRITON_INTERPRET=1), got one on {tensor.device}'
        )
