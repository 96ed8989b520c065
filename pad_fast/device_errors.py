"""Failures of a device or a compiler, which say nothing about the model that was run."""

from __future__ import annotations

import subprocess

import torch

from pad_fast.device import visible_gpus
from pad_fast.files.system_errors import chain, first_line

# PyTorch's allocator on a CPU and NVIDIA's libraries have no class of their own for it.
NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
# Triton and PyTorch's compiler pass on what their search for gcc and clang finds.
NO_COMPILER = ("C compiler", "C++ compiler", "Python.h")
INSTALL_COMPILER = (
    "Triton builds what launches its kernels with a C compiler and Python's headers; install gcc "
    "or clang, and python3-dev"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, a GPU's or the machine's. A GPU's shared memory is another matter.

    Example:
        >>> from pad_fast.device_errors import is_out_of_memory
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("out of memory"))
        (True, False)
    """
    return any(
        isinstance(each, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(each, RuntimeError) and any(words in str(each) for words in NO_MEMORY))
        for each in chain(error)
    )


def is_of_the_device(error: BaseException) -> bool:
    """Whether the driver reports it, after which a process mostly cannot use the GPU any more."""
    return any(isinstance(each, torch.AcceleratorError) for each in chain(error))


def name_the_device(error: BaseException) -> None:
    """Leave no setting to blame for a failure of the device.

    Raises:
        RuntimeError: memory ran out, or the driver reports the failure; the message says what.
    """
    if is_of_the_device(error) or is_out_of_memory(error):
        raise RuntimeError(
            f"the device failed, which says nothing of the settings: {first_line(error)}; this "
            f"process has {visible_gpus()}: see what else uses the device, and start again"
        ) from error


def lacks_compiler(error: BaseException) -> bool:
    """Whether a C compiler or what it needs is missing."""
    return any(
        isinstance(each, subprocess.CalledProcessError)
        or any(words in str(each) for words in NO_COMPILER)
        for each in chain(error)
    )


def lacks_shared_memory(error: BaseException) -> bool:
    """Whether a kernel asks for more of a multiprocessor's own memory than the GPU has."""
    return any("out of resource: shared memory" in str(each) for each in chain(error))
