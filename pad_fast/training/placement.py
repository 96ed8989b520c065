"""Where a student is while it is tried and scored, before a training splits it over devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pad_fast import device as devices

SHARE = 0.8  # the part of a device's memory that the weights may take, beside what a trial needs


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[bool]:
    """Hold a model on a device inside the block, and yield whether it can be used there.

    Trainer leaves a model on the CPU that FSDP or DeepSpeed is to split, and one that evaluation
    is to cast. Whoever uses it before has to move it, or to wait for a CPU.

    Args:
        model: is back on the CPU after the block if it was there; its parameters stay the same
            objects.
        device: the training's.
    """
    if devices.is_cpu(device) or not _waits_on_cpu(model):
        yield True
        return
    memory = devices.total_memory(device)
    if memory is not None and weight_bytes(model) > SHARE * memory:
        yield False
        return
    model.to(device)
    try:
        yield True
    finally:
        model.to("cpu")
        devices.release_cached_memory()


def weight_bytes(model: nn.Module) -> int:
    """The bytes of a model's parameters and buffers; tied ones count once."""
    held: list[Any] = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def has_all_weights(model: nn.Module) -> bool:
    """Whether this process can read every weight as a whole; a device_map's hooks bring its own."""
    return getattr(model, "hf_device_map", None) is not None or not any(
        weight.is_meta or hasattr(weight, "ds_id") or isinstance(weight, DTensor)
        for weight in model.parameters()
    )


def _waits_on_cpu(model: nn.Module) -> bool:
    """Whether the model lies on the CPU as a whole, and not because a device_map offloads it."""
    if getattr(model, "hf_device_map", None) is not None or not has_all_weights(model):
        return False
    return all(devices.is_cpu(weight.device) for weight in model.parameters())
