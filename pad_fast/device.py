"""What a device is and can do. All other modules ask here: a new accelerator changes this file.

``kernels/common/device.py`` answers what only launchers ask: architectures, multiprocessors.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pad_fast.allocator import give_memory_back

# The numbers that a product may round float32 matrices to, and how coarse they are.
_ROUNDING = {"tf32": 2.0**-10, "bf16": 2.0**-7}
# The tags of an operation in which the host may wait for the device, or reads how much there is to
# do. A graph of CUDA (torch.compile's mode "reduce-overhead") cannot record it, and ends before it.
WAITS = (torch.Tag.cudagraph_unsafe,)
# By these torch.cuda.is_available() finds no GPU, until the process starts one: with the second it
# reads the first anew each time.
_HIDE_GPUS = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
_planned_memory: ContextVar[int | None] = ContextVar("planned_memory", default=None)
_gpus_left_alone = False  # by all threads of the process: a new one has a context of its own


@contextmanager
def on_cpu(asked: bool = True) -> Iterator[None]:
    """Leave the GPUs alone inside the block, if that is asked for (``use_cpu``)."""
    global _gpus_left_alone
    before, _gpus_left_alone = _gpus_left_alone, _gpus_left_alone or asked
    try:
        yield
    finally:
        _gpus_left_alone = before


def default_device() -> torch.device:
    """The device that models are loaded to: the calling thread's current GPU, or the CPU.

    In a block of :func:`on_cpu` it is the CPU. A GPU has its number, by which other
    threads find the same one: theirs would be GPU 0.
    """
    if _gpus_left_alone or not torch.cuda.is_available():
        return torch.device("cpu")
    return numbered(torch.device("cuda"))


def numbered(device: torch.device) -> torch.device:
    """The same device; if it is a GPU without a number, the calling thread's current one."""
    if is_gpu(device) and device.index is None:
        return torch.device(device.type, torch.cuda.current_device())
    return device


def count_gpus() -> int:
    """The number of GPUs of this machine that this process may use."""
    return 0 if _gpus_left_alone else torch.cuda.device_count()


def visible_gpus() -> str:
    """The number of GPUs that this process may use, and what makes it so, in words."""
    count, chosen = count_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    given = "is not set" if chosen is None else f"is {chosen!r}"
    return f"{count or 'no'} visible GPU{'s' * (count != 1)} (CUDA_VISIBLE_DEVICES {given})"


def gpu_identity(device: torch.device) -> str | None:
    """What tells a GPU from all others, also of other machines; None for a CPU or if unknown."""
    if not is_gpu(device):
        return None
    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if found is None else str(found)


def is_gpu(device: torch.device) -> bool:
    """Whether the device is a GPU that PyTorch calls "cuda", NVIDIA's or AMD's."""
    return device.type == "cuda"


def is_cpu(device: torch.device) -> bool:
    """Whether the device is the CPU, to which models are loaded before they are moved."""
    return device.type == "cpu"


def current(device: torch.device) -> AbstractContextManager:
    """A context in which ``device`` is the current GPU of the thread, if it is one."""
    return torch.cuda.device(device) if is_gpu(device) else nullcontext()


def runs_kernels(tensor: Tensor) -> bool:
    """Whether Triton can launch a compiled kernel on this tensor."""
    return tensor.is_cuda


def waits_for_values(device: torch.device) -> bool:
    """Whether the host has to wait for the device before it can look at a tensor's values."""
    return not is_cpu(device)


def can_read_values(tensor: Tensor) -> bool:
    """Whether the tensor has values that the host can look at, waiting for them if need be.

    A tensor that torch.compile traces has none, nor has a fake or meta tensor.
    """
    if torch.compiler.is_compiling():
        return False
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64. Apple's GPUs do not."""
    return device.type != "mps"


def multiplies_into_float32(tensor: Tensor) -> bool:
    """Whether the tensor's device keeps products of 16-bit matrices in float32."""
    return has_wide_products(tensor.device)


def has_wide_products(device: torch.device) -> bool:
    """Whether a device keeps products of 16-bit matrices in float32 (``out_dtype``).

    CPUs and GPUs before sm_80 refuse ``out_dtype``, and ROCm builds of PyTorch vary.
    """
    return is_gpu(device) and torch.version.hip is None and _capability(device) >= (8, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def attends_to_grouped_keys(device: torch.device) -> bool:
    """Whether fused attention with a mask takes fewer key heads than query heads.

    A GPU's kernels with a mask do not: PyTorch would fall back to all scores in memory.
    """
    return device.type == "cpu"


def compiles_attention(device: torch.device) -> bool:
    """Whether FlexAttention is compiled for this device, which asks for few lengths of rows."""
    return is_gpu(device)


@functools.cache
def shared_memory(device: torch.device) -> int | None:
    """Bytes of a multiprocessor's own memory that one program may take; None but on NVIDIA's."""
    if not is_gpu(device):
        return None
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", None)


def total_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for a CPU. :func:`planning_for` replaces the answer."""
    planned = _planned_memory.get()
    if planned is not None:
        return planned
    return torch.cuda.get_device_properties(device).total_memory if is_gpu(device) else None


def all_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of the machine's for a CPU, used or not."""
    return total_memory(device) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def planning_for(memory: int | None) -> Iterator[None]:
    """Make :func:`total_memory` answer ``memory`` bytes for every device; None changes nothing."""
    token = _planned_memory.set(memory)
    try:
        yield
    finally:
        _planned_memory.reset(token)


def no_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast casts matrix products to at the moment; None where it is off."""
    kind = device.type
    # The compiler of torch 2.11 cannot look into is_autocast_available, so these are not asked.
    available = kind in ("cpu", "cuda") or torch.amp.is_autocast_available(kind)
    if not available or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def product_rounding(device: torch.device, dtype: torch.dtype) -> float:
    """The relative rounding of matrix products of a dtype, as PyTorch computes them at the moment.

    Products of float32 are coarser than float32 where ``torch.set_float32_matmul_precision``,
    ``torch.backends`` or a trainer's ``tf32=True`` allows it.

    Args:
        device: of the matrices.
        dtype: of the matrices.

    Returns:
        The distance from 1 to the next number, as ``torch.finfo(dtype).eps``.

    Example:
        >>> product_rounding(torch.device("cpu"), torch.bfloat16)
        0.0078125
    """
    eps = torch.finfo(dtype).eps
    if dtype != torch.float32 or device.type not in ("cpu", "cuda"):
        return eps
    library = torch.backends.cuda if is_gpu(device) else torch.backends.mkldnn
    return max(eps, _ROUNDING.get(library.matmul.fp32_precision, 0.0))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def peak_allocated(device: torch.device) -> int:
    """The most bytes that PyTorch held on a GPU since :func:`forget_peak_allocated`."""
    return torch.cuda.max_memory_allocated(device)


def forget_peak_allocated(device: torch.device) -> None:
    """Begin a new peak with what PyTorch holds on a GPU now."""
    torch.cuda.reset_peak_memory_stats(device)


def release_cached_memory() -> None:
    """Give the memory that allocators keep for later back, to the GPU and to the system."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_memory_back()


def release_unused_memory() -> None:
    """Drop what only refers to itself, as models in wrappers with hooks do, and give all back.

    What the caller still refers to stays.
    """
    gc.collect()
    release_cached_memory()


def has_accelerator() -> bool:
    """Whether PyTorch sees an accelerator of any kind."""
    return torch.accelerator.is_available()


def random_states() -> list[Tensor]:
    """The states of the host's random generator and of that of an accelerator in use.

    Asking an accelerator that nothing has used yet would start it.
    """
    states = [torch.get_rng_state()]
    if has_accelerator():
        module = torch.get_device_module()
        if getattr(module, "is_initialized", lambda: True)():
            states.append(module.get_rng_state())
    return states


@contextmanager
def hidden_gpus(device: torch.device) -> Iterator[None]:
    """Let libraries see no GPU inside the block, if ``device`` is the CPU and none is in use.

    Trainer asks those that it sees for their random states, which starts them.
    """
    before = {name: os.environ.get(name) for name in _HIDE_GPUS}
    if is_cpu(device):
        os.environ.update(_HIDE_GPUS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def gpu_name(device: torch.device) -> str:
    """The product name of a GPU."""
    return torch.cuda.get_device_name(device)


def restore_random_states(states: list[Tensor]) -> None:
    """Undo what was drawn since :func:`random_states` gave these states."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module().set_rng_state(states[1])


def gpu_names() -> list[str]:
    """A line about each GPU: its name, memory and architecture."""
    lines = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        size = found.total_memory / 2**30
        lines.append(f"{found.name}, {size:.0f} GiB, sm_{found.major}{found.minor}")
    return lines


def build() -> str:
    """The version of CUDA or ROCm that PyTorch was built for."""
    return str(torch.version.cuda or torch.version.hip or "not in this build of torch")
