"""A meter of the live bytes and the flops of operations, on real or fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from pad_fast.linear_logprob import memory_budget, op  # noqa: F401, the latter registers pad_fast::linear_token_logprobs

aten = torch.ops.aten
HEAD = torch.ops.pad_fast.linear_token_logprobs.default
HEAD_BACKWARD = torch.ops.pad_fast.linear_token_logprobs_backward.default


@dataclass(frozen=True)
class Footprint:
    """`start`: bytes held before the step, such as weights and the optimizer's state; `peak`: the most held at one time, those
    included; `flops`: multiplications and additions of all matrix products."""

    start: int
    peak: int
    flops: int


class Meter(TorchDispatchMode):
    """Counts the bytes of all live storages that operations inside of it made, and the flops of their products."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.start = self.peak = self.flops = 0
        self.seen: dict[
            int, float
        ] = {}  # share of the pairs of a row of so many tokens that see each other; all of them if not here
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if (
            func is aten.add.Tensor
            and not torch.is_grad_enabled()
            and torch._C._current_graph_task_id() != -1
        ):
            func = (
                aten.add_.Tensor
            )  # autograd adds gradients up in place, but not those that are watched
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._hold(value)
        self.peak = max(self.peak, self.held + _workspace(func, args))
        self.flops += _flops(func, args, kwargs or {}, out, self.seen)
        return out

    def restart(self) -> None:
        """Forget what was passed; what is held stays."""
        self.start, self.peak, self.flops = self.held, self.held, 0

    def footprint(self) -> Footprint:
        return Footprint(self.start, self.peak, self.flops)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.held += storage.nbytes()
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.held -= nbytes


def _flops(func: Any, args: tuple, kwargs: dict, out: Any, seen: Mapping[int, float]) -> int:
    packet = getattr(func, "_overloadpacket", func)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return round(
            sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
            * seen.get(args[0].shape[2], 1.0)
        )
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return round(
            sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
            * seen.get(args[0].shape[2], 1.0)
        )
    if func is HEAD:
        return 2 * args[0].shape[0] * args[1].numel()
    if (
        func is HEAD_BACKWARD
    ):  # the products of both gradients, and again that of the rows which did not keep their scores
        rows, kept = len(args[5]), len(args[9])
        return 2 * args[2].numel() * (rows * (args[10] + args[11]) + rows - kept)
    return 0


def _workspace(func: Any, args: tuple) -> int:
    if func is HEAD:
        return _head_workspace(
            args[0], args[1], len(args[4]), args[6], softcap=args[10], backward=False
        )
    if func is HEAD_BACKWARD:
        return _head_workspace(
            args[1], args[2], len(args[5]), len(args[9]), softcap=args[14], backward=True
        )
    return 0


def _head_workspace(
    hidden: Tensor, weight: Tensor, rows: int, kept: int, *, softcap: float, backward: bool
) -> int:
    sizes = (rows, weight.shape[1], weight.shape[0], hidden.dtype)
    return memory_budget.cpu_workspace(
        *sizes, kept=kept > 0, recomputed=kept < rows, softcap=softcap != 0, backward=backward
    )
