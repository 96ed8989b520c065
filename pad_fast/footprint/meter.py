"""A meter of the bytes and floating-point operations of a step, on real or fake tensors."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from pad_fast.linear_logprob import memory_budget, op  # noqa: F401, which registers the operations

aten = torch.ops.aten
ours = torch.ops.pad_fast
experts = torch.ops.transformers


@dataclass(frozen=True)
class Footprint:
    """The memory and arithmetic of a step.

    Attributes:
        start: bytes held before it, such as weights and the optimizer's state.
        peak: the most bytes held at one time, those at the start included.
        flops: multiplications and additions of all matrix products.
        operations: how many operations have so many flops and read and write so many bytes.
    """

    start: int
    peak: int
    flops: int
    operations: Mapping[tuple[int, int], int] = field(default_factory=dict)


class Meter(TorchDispatchMode):
    """Counts the bytes of all live storages that operations inside made, and their flops.

    Attributes:
        visible: the share of a row's pairs of tokens that see each other, by the row's length.
            Attention over rows of other lengths counts all pairs.
        gradient_bytes: the most that a frozen head's gradients of logits take at once on a GPU;
            None for a CPU, which takes a chunk of rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.start = self.peak = self.flops = 0
        self.operations: Counter[tuple[int, int]] = Counter()
        self.visible: dict[int, float] = {}
        self.gradient_bytes: int | None = None
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Autograd adds gradients up in place, except those that a mode such as this one sees. It
        # makes a new sum where the first one is a view, as that of a head is whose weight is also
        # the embedding's.
        in_backward = torch._C._current_graph_task_id() != -1
        if func is aten.add.Tensor and in_backward and not torch.is_grad_enabled():
            func = aten.add_.Tensor if not args[0]._is_view() else func
        out = func(*args, **kwargs)
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._hold(value)
        flops, workspace = self._cost(func, args, kwargs, out)
        self.peak = max(self.peak, self.held + workspace)
        self.flops += flops
        if (moved := _moved(func, args, kwargs, out)) or flops:
            self.operations[flops, moved] += 1
        return out

    def restart(self) -> None:
        """Begin a new step. Storages that are alive are still counted."""
        self.start, self.peak, self.flops = self.held, self.held, 0
        self.operations = Counter()

    def footprint(self) -> Footprint:
        """The footprint of the step since :meth:`restart`."""
        return Footprint(self.start, self.peak, self.flops, dict(self.operations))

    def _cost(self, func: Any, args: tuple, kwargs: dict, out: Any) -> tuple[int, int]:
        """Flops, and bytes that the operation holds only while it runs."""
        packet = getattr(func, "_overloadpacket", func)
        if packet in flop_registry:
            return int(flop_registry[packet](*args, **kwargs, out_val=out)), 0
        if packet not in COSTS:
            return 0, 0
        call = Call(bind(func, args, kwargs), self.visible, self.gradient_bytes)
        cost = COSTS[packet]
        return cost.flops(call), cost.workspace(call)

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


def _moved(func: Any, args: tuple, kwargs: Mapping[str, Any], out: Any) -> int:
    """Bytes that an operation reads and writes; 0 for a view, and for memory that is not filled.

    An operation that looks rows up in a table reads as much as it writes.
    """
    packet = getattr(func, "_overloadpacket", func)
    if getattr(func, "is_view", False) or packet in UNFILLED:
        return 0
    given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    made = [value for value in tree_iter(out) if isinstance(value, Tensor)]
    if packet in LOOK_UPS:
        return 2 * sum(map(_bytes, made))
    return sum(map(_bytes, given)) + sum(map(_bytes, made))


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values; an expanded one has each of them once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def bind(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operation's arguments by the names in its schema, defaults included."""
    arguments = func._schema.arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return {**values, **dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}


UNFILLED = (
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten._unsafe_view,
    aten.lift_fresh,
)
LOOK_UPS = (aten.embedding, aten.index, aten.index_select, aten.gather)


@dataclass(frozen=True)
class Call:
    """An operation's arguments by name, and what the meter knows of rows and of the device."""

    arguments: Mapping[str, Any]
    visible: Mapping[int, float] = field(default_factory=dict)
    gradient_bytes: int | None = None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def visible_share(self) -> float:
        return self.visible.get(self["query"].shape[2], 1.0)

    def shapes_of_attention(self) -> list[torch.Size]:
        """Shapes of query, key and value, each with a head for every head of the query.

        The counters of torch 2.11 refuse heads that several of the query share.
        """
        heads = self["query"].shape[1]
        shapes = (self[name].shape for name in ("query", "key", "value"))
        return [torch.Size((batch, heads, *rest)) for batch, _, *rest in shapes]


def _sdpa_flops(call: Call) -> int:
    return round(sdpa_flop_count(*call.shapes_of_attention()) * call.visible_share())


def _sdpa_backward_flops(call: Call) -> int:
    shapes = (call["grad_out"].shape, *call.shapes_of_attention())
    return round(sdpa_backward_flop_count(*shapes) * call.visible_share())


def _experts_flops(call: Call) -> int:
    """Each row is multiplied with the matrix (in, out) of one expert."""
    return 2 * call["input"].shape[0] * call["weight"][0].numel()


def _head_flops(call: Call) -> int:
    """A frozen head multiplies a second time: the gradients of its logits with its weight."""
    return 2 * call["hidden"].shape[0] * call["weight"].numel() * (1 + call["unscaled"])


def _head_backward_flops(call: Call) -> int:
    """The products of both gradients, and the logits of rows that kept nothing of them."""
    rows, kept = len(call["rows"]), len(call["values"])
    gradients = call["need_hidden"] + call["need_weight"]
    return 2 * call["weight"].numel() * (rows * gradients + rows - kept)


def _head_workspace(call: Call) -> int:
    if not call["unscaled"]:
        return _cpu_workspace(call, kept=call["saved_rows"], backward=False)
    weight, rows = call["weight"], len(call["rows"])
    limit = call.gradient_bytes
    held = weight.nbytes // weight.shape[1] * (rows if limit else min(rows, memory_budget.CPU_ROWS))
    return _cpu_workspace(call, kept=rows, backward=False) + min(held, limit or held)


def _head_backward_workspace(call: Call) -> int:
    return _cpu_workspace(call, kept=len(call["values"]), backward=True)


def _cpu_workspace(call: Call, *, kept: int, backward: bool) -> int:
    weight, rows = call["weight"], len(call["rows"])
    return memory_budget.cpu_workspace(
        rows,
        weight.shape[1],
        weight.shape[0],
        call["hidden"].dtype,
        kept=kept > 0,
        recomputed=kept < rows,
        softcap=call["softcap"] != 0,
        backward=backward,
    )


@dataclass(frozen=True)
class Cost:
    """How to compute an operation's flops, and the bytes that it holds only while it runs."""

    flops: Callable[[Call], int]
    workspace: Callable[[Call], int] = lambda call: 0


# Operations that PyTorch's own registry of flops does not know.
COSTS: dict[Any, Cost] = {
    aten._scaled_dot_product_flash_attention_for_cpu: Cost(_sdpa_flops),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: Cost(_sdpa_backward_flops),
    ours.linear_token_logprobs: Cost(_head_flops, _head_workspace),
    ours.linear_token_logprobs_backward: Cost(_head_backward_flops, _head_backward_workspace),
}
# Not every release of transformers has these; where the backward is none, its products are counted.
if hasattr(experts, "grouped_mm_fallback"):
    COSTS[experts.grouped_mm_fallback] = Cost(_experts_flops)
if hasattr(experts, "grouped_mm_fallback_backward"):
    COSTS[experts.grouped_mm_fallback_backward] = Cost(lambda call: 2 * _experts_flops(call))
