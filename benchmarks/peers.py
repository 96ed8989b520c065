"""Other projects' implementations, each called as its authors intend.

A project is imported when its contestant is built, not here. Some packages import much that their
kernels do not need: of those, the kernels' own files are loaded without the packages above them.
The notes on precision come from reading the sources.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.cases import IGNORE_INDEX, LINEAR, LOGITS, Case, Inputs
from benchmarks.contestants import ROUNDED, Call, Contestant, Unsupported, padded
from benchmarks.listwise import BETA
from pad_fast import device as devices

CPU_IS_REFUSED = True  # False in a rehearsal, which builds what needs a GPU and does not call it
TRL_COLUMNS = 32768  # trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE, which add_fused_lm_head passes


def _refuse(
    package: str, case: Case, inputs: Inputs, *, softcap: bool = True, cpu: bool = True
) -> None:
    """Raise ImportError if the package is not installed, then Unsupported for what it cannot do."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    if case.softcap and not softcap:
        raise Unsupported("no softcap")
    if CPU_IS_REFUSED and not cpu and not devices.is_gpu(inputs.labels.device):
        raise Unsupported("its kernels need a GPU")


def _file(package: str, module: str, **stubs: ModuleType) -> ModuleType:
    """Import ``package.module`` without the ``__init__`` of the packages above it.

    ``stubs`` stand for modules that it imports relatively; ``__`` in a name stands for a dot.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}")
    alias, root = f"_bare_{package}", spec.submodule_search_locations[0]
    parts = module.split(".")
    for depth in range(len(parts)):
        name = ".".join([alias, *parts[:depth]])
        if name not in sys.modules:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = ["/".join([root, *parts[:depth]])]
    for name, stub in stubs.items():
        sys.modules[f"{alias}.{name.replace('__', '.')}"] = stub
    return importlib.import_module(f"{alias}.{module}")


def _stub(**contents) -> ModuleType:
    module = ModuleType("stub")
    module.__dict__.update(contents)
    return module


@contextmanager
def _standing_in(name: str, module: ModuleType) -> Iterator[None]:
    """Inside, imports of ``name`` give ``module``."""
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


# TRL.


def _trl_linear(case: Case, inputs: Inputs) -> Call:
    # The function that is stubbed gathers weights that DeepSpeed has split.
    stub = _stub(maybe_gather_lm_head_ctx=lambda *_: nullcontext())
    function = _file("trl", "kernels.chunked_logprob", trainer__utils=stub).ChunkedLogProbFunction
    hidden, weight, labels = inputs.hidden, inputs.weight, inputs.labels
    if not devices.is_gpu(hidden.device):  # add_fused_lm_head selects rows only for Triton, too
        return lambda: function.apply(
            hidden, weight, None, inputs.valid_labels, 1.0, TRL_COLUMNS, case.softcap, 1.0, ()
        )[0]

    def selected() -> Tensor:
        live = labels != IGNORE_INDEX
        logps = function.apply(
            hidden[live], weight, None, labels[live], 1.0, TRL_COLUMNS, case.softcap, 1.0, ()
        )[0]
        return logps.new_zeros(live.shape).masked_scatter(live, logps)

    return selected


def _trl_logits(case: Case, inputs: Inputs) -> Call:
    _refuse("trl", case, inputs, softcap=False)
    if not devices.is_gpu(inputs.labels.device):
        from trl.trainer.utils import selective_log_softmax

        return lambda: selective_log_softmax(
            inputs.logits, inputs.valid_labels, row_mask=inputs.labels != IGNORE_INDEX
        )
    function = _file("trl", "kernels.logprob_entropy").selective_log_softmax_and_entropy
    return lambda: function(inputs.logits, inputs.valid_labels, 1.0, inputs.labels != IGNORE_INDEX)[
        0
    ]


# Liger.


def _liger_scaled(case: Case, inputs: Inputs) -> Call:
    _refuse("liger_kernel", case, inputs, softcap=False)
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    return lambda: Function.apply(inputs.hidden, inputs.weight, inputs.labels, 1.0, IGNORE_INDEX)


def _liger_linear(case: Case, inputs: Inputs, reduction: str = "none") -> Call:
    _refuse("liger_kernel", case, inputs, cpu=False)
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as function

    options = {
        "ignore_index": IGNORE_INDEX,
        "reduction": reduction,
        "softcap": case.softcap,
        "accum_dtype": torch.float32,
    }
    return lambda: function(inputs.hidden, inputs.weight, inputs.labels, **options)


def _liger_logits(case: Case, inputs: Inputs) -> Call:
    _refuse("liger_kernel", case, inputs, cpu=False)
    from liger_kernel.transformers.functional import liger_cross_entropy as function

    def losses() -> Tensor:
        # A view, because the kernel writes the gradient over the logits.
        return function(
            inputs.logits.view_as(inputs.logits),
            inputs.labels,
            ignore_index=IGNORE_INDEX,
            reduction="none",
            softcap=case.softcap,
        )

    return losses


def _liger_pairs(case: Case, inputs: Inputs) -> Call:
    """SimPO without a margin, which is VPD of pairs; the better responses come first."""
    _refuse("liger_kernel", case, inputs, softcap=False)
    from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss

    hidden, weight, labels, teacher = padded(case, inputs)
    loss_of = LigerFusedLinearSimPOLoss(
        ignore_index=IGNORE_INDEX, beta=BETA, gamma=0.0, compute_nll_loss=False
    )
    first = 2 * torch.arange(len(teacher), device=teacher.device)[:, None]
    order = (teacher.argsort(dim=1, descending=True) + first).T.flatten()
    return lambda: loss_of(weight, hidden[order], labels[order])[0].view(1)


# Others.


def _cce(case: Case, inputs: Inputs) -> Call:
    _refuse("cut_cross_entropy", case, inputs, cpu=False)
    from cut_cross_entropy import linear_cross_entropy

    hidden, weight = inputs.hidden, inputs.weight
    return lambda: linear_cross_entropy(
        hidden,
        weight,
        inputs.labels,
        ignore_index=IGNORE_INDEX,
        softcap=case.softcap,
        reduction="none",
    )


def _quack_logits(case: Case, inputs: Inputs) -> Call:
    _refuse("quack", case, inputs, softcap=False, cpu=False)
    from quack.cross_entropy import cross_entropy

    return lambda: cross_entropy(
        inputs.logits, inputs.labels, ignore_index=IGNORE_INDEX, reduction="none"
    )


def _quack_linear(case: Case, inputs: Inputs) -> Call:
    _refuse("quack", case, inputs, softcap=False, cpu=False)
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda: chunked_linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, ignore_index=IGNORE_INDEX
    )


def _verl(case: Case, inputs: Inputs) -> Call:
    _refuse("verl", case, inputs, softcap=False, cpu=False)
    device = _stub(  # the real module asks verl's table of platforms, which imports Ray
        get_device_capability=torch.cuda.get_device_capability,
        get_device_name=lambda: "cuda",
        get_torch_device=lambda: torch.cuda,
        is_cuda_available=True,
    )
    with _standing_in("verl.utils.device", device):
        _file("verl", "utils.kernel.kernels")
    function = _file("verl", "utils.kernel.linear_cross_entropy").linear_cross_entropy
    return lambda: function(inputs.hidden, inputs.weight, inputs.valid_labels, 1.0, "none")[0]


def _flash(case: Case, inputs: Inputs) -> Call:
    _refuse("flash_attn", case, inputs, softcap=False, cpu=False)
    function = _file("flash_attn", "ops.triton.cross_entropy").cross_entropy_loss
    return lambda: function(inputs.logits, inputs.labels, ignore_index=IGNORE_INDEX)[0]


ACCUMULATES_16 = "weight gradient summed in the input's dtype"

PEERS = (
    Contestant("TRL fused head", (LINEAR,), _trl_linear, note=ROUNDED, package="trl"),
    Contestant(
        "TRL selective_log_softmax",
        (LOGITS,),
        _trl_logits,
        note="also gives the entropy on a GPU",
        package="trl",
    ),
    Contestant(
        "Liger fused linear scaled CE",
        (LINEAR,),
        _liger_scaled,
        note=f"sm_90: float16 logits; {ACCUMULATES_16}",
        package="liger-kernel",
        sign=-1,
    ),
    Contestant(
        "Liger fused linear CE",
        (LINEAR,),
        _liger_linear,
        note=ROUNDED,
        package="liger-kernel",
        sign=-1,
    ),
    Contestant(
        "Liger fused linear CE, mean",
        (LINEAR,),
        partial(_liger_linear, reduction="mean"),
        note=ROUNDED,
        package="liger-kernel",
        sign=-1,
        scalar=True,
    ),
    Contestant(
        "Liger CE",
        (LOGITS,),
        _liger_logits,
        note="gradient overwrites the logits",
        package="liger-kernel",
        sign=-1,
        overwrites_inputs=True,
    ),
    Contestant(
        "Liger chunked SimPO",
        ("linear_pair_loss",),
        _liger_pairs,
        note=f"{ROUNDED}; {ACCUMULATES_16}",
        package="liger-kernel",
        per_token=False,
    ),
    Contestant(
        "cut-cross-entropy",
        (LINEAR,),
        _cce,
        note=f"small gradients dropped; {ACCUMULATES_16}",
        package="cut-cross-entropy",
        sign=-1,
    ),
    Contestant("QuACK CE", (LOGITS,), _quack_logits, package="quack-kernels", sign=-1),
    Contestant(
        "QuACK chunked linear CE, mean",
        (LINEAR,),
        _quack_linear,
        package="quack-kernels",
        sign=-1,
        scalar=True,
    ),
    Contestant("verl", (LINEAR,), _verl, note="also gives the entropy", package="verl"),
    Contestant("flash-attn CE", (LOGITS,), _flash, package="flash-attn", sign=-1),
)
