"""What an operation asks of a device: launches, allocations, copies from the host, and waits.

The tensors lie on the CPU and count as a device's: reading a value would wait. The kernels run
under Triton's interpreter, whose own work is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pad_fast.kernels.linear_logprob import launch as linear
from pad_fast.kernels.logprob import launch as logprob
from pad_fast.kernels.preference import launch as preference
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from pad_fast import argument_checks, device
from pad_fast.linear_logprob import op as linear_op
from pad_fast.logprob import op as logits_op
from pad_fast.logprob import response_op, torch_impl
from pad_fast.preference import op as preference_op
from pad_fast.preference import plackett_luce

ATEN = torch.ops.aten
# Reading a value or a number of results on the host: a GPU would have to finish first.
WAITS = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN._unique2,
    ATEN.unique_dim,
    ATEN.unique_consecutive,
    ATEN.bincount,
    ATEN.equal,
    ATEN.is_nonzero,
}
ALLOCATIONS = {ATEN.empty, ATEN.empty_like, ATEN.new_empty, ATEN.empty_strided}
# The only ways in which values of the host become a tensor without a copy between devices.
FROM_HOST = {ATEN.lift_fresh, ATEN.lift_fresh_copy, ATEN._to_copy, ATEN.scalar_tensor}
# Our operations, whose bodies a dispatch mode does not see by itself.
OPERATIONS = (
    logits_op.token_logprobs,
    logits_op.token_logprobs_backward,
    response_op.response_sums,
    preference_op.preference_loss,
    linear_op.live_rows,
    linear_op.linear_token_logprobs,
    linear_op.linear_token_logprobs_backward,
    linear_op.scale_live_rows,
)
KERNELS = (
    (linear, ("linear_logprob_rows", "linear_logprob_fwd", "linear_logprob_join")),
    (
        logprob,
        ("logprob_fwd", "logprob_bwd", "response_sums", "response_scatter", "response_finish"),
    ),
    (
        preference,
        (
            "preference_jsd",
            "preference_kl",
            "preference_vpd",
            "preference_sampled",
            "preference_reduce",
        ),
    ),
)
READS = ("tolist", "numpy", "cpu")  # reads of a tensor on a CPU, which no dispatcher sees
ASKS = (device, argument_checks, torch_impl, plackett_luce)


class Launches(TorchDispatchMode):
    """Counts what reaches a device; views and allocations are no launches."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.waited: list[str] = []
        self.from_host: list[str] = []
        self.operations = 0  # PyTorch's, also views and allocations
        self.is_interpreting = False
        self.bodies = {op.library._opoverload: op.body for op in OPERATIONS}

    @property
    def total(self) -> int:
        """Launches of kernels, PyTorch's and ours."""
        return self.launched.total()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if body := self.bodies.get(function):
            with self:
                return body(*args, **(kwargs or {}))
        self.operations += 1
        packet = function.overloadpacket
        made = function(*args, **(kwargs or {}))
        is_view = function.is_view and _shares_memory(args[0], made)
        if packet in WAITS or _indexes_by_mask(packet, args):
            self.waited.append(str(packet))
        elif packet in FROM_HOST and not (packet is ATEN._to_copy and _stays(args[0], made)):
            self.from_host.append(str(packet))
        elif (
            packet not in ALLOCATIONS
            and not is_view
            and packet is not ATEN.detach
            and packet is not ATEN.promote_types
        ):
            self.launched[str(packet).removeprefix("aten.")] += 1
        return made


def _indexes_by_mask(packet: Any, args: tuple[Any, ...]) -> bool:
    if packet not in (ATEN.index, ATEN.index_put, ATEN.index_put_):
        return False
    return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1]))


def _shares_memory(before: torch.Tensor, after: Any) -> bool:
    """Whether a view is one: ``contiguous`` and ``reshape`` copy where they have to."""
    parts = [leaf for leaf in tree_leaves(after) if isinstance(leaf, torch.Tensor)]
    own = before.untyped_storage().data_ptr()
    return all(part.untyped_storage().data_ptr() == own for part in parts)


def _stays(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.device == after.device


class _Counted:
    """A kernel whose launches are counted, and whose interpreter is not."""

    def __init__(self, kernel: Any, launches: Launches) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.launches.launched[self.kernel.fn.__name__] += 1
            self.launches.is_interpreting = True
            with _disable_current_modes():
                self.kernel[grid](*args, **options)
            self.launches.is_interpreting = False

        return launch


@contextmanager
def counted(monkeypatch) -> Iterator[Launches]:
    """Count what runs inside, on tensors that count as a device's."""
    launches = Launches()

    def watched(name: str, own: Any) -> Any:
        def read(tensor, *args, **options):
            if not launches.is_interpreting:
                launches.waited.append(name)
            return own(tensor, *args, **options)

        return read

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
        for module in ASKS:
            patch.setattr(module, "waits_for_values", lambda device: True)
        for module, names in KERNELS:
            for name in names:
                patch.setattr(module, name, _Counted(getattr(module, name), launches))
        with launches:
            yield launches
