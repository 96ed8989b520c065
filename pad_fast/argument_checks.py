"""Checks of arguments. Each raises ValueError with the argument, the rule and what was given.

Shapes, dtypes and options are checked before an operation. Values are checked within it, where
torch.compile does not look: on a CPU always, on a GPU only if ``PAD_FAST_CHECK_LABELS=1`` is in the
environment, by an assertion on the device, since the host would have to wait. Without it a label
that is no column gives NaN.
"""

from __future__ import annotations

import itertools
import numbers
import os
from collections.abc import Collection

import torch
from torch import Tensor

from pad_fast.device import can_read_values, waits_for_values

CHECK_VARIABLE = "PAD_FAST_CHECK_LABELS"

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)

# Factors of the logits are computed in float32, whose range ends at 1.2e-38 and 3.4e38. These
# bounds leave eight orders of magnitude to the logits.
SMALLEST, LARGEST = 1e-30, 1e30

GATHER = (
    "call this inside of the forward of the module that owns it, where its hooks have gathered it"
)


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as a plain tuple, as messages show it."""
    return tuple(tensor.shape)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """The value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_tensor(name: str, tensor: object) -> None:
    """The argument is a tensor."""
    if isinstance(tensor, Tensor):
        return
    hint = ""
    if isinstance(tensor, (list, tuple)) or hasattr(tensor, "__array__"):
        hint = "; torch.tensor(...) makes one"
    # What a model returns, and its output head, hold what is meant.
    parts = ("last_hidden_state", "weight") if name != "logits" else ("logits",)
    if part := next((part for part in parts if hasattr(tensor, part)), None):
        hint = f"; give its {part}"
    raise ValueError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}{hint}")


def check_tensors(**tensors: object) -> None:
    """The arguments are tensors, or None if they may be left out."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check_tensor(name, tensor)


def check_floating(name: str, tensor: Tensor) -> None:
    """A tensor of floating-point numbers that operations compute with."""
    check_tensor(name, tensor)
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )


def check_labels(labels: Tensor, rows: tuple[int, ...], states: str, device: torch.device) -> None:
    """``labels`` has one integer for each of the ``rows`` of ``states``, on its device."""
    check_tensor("labels", labels)
    if labels.dtype not in INTEGERS:
        raise ValueError(f"labels must be int32 or int64, got {labels.dtype}")
    if shape(labels) != rows:
        raise ValueError(
            f"labels must have the shape of {states} without its last dimension, {rows}, "
            f"got {shape(labels)}"
        )
    if labels.device != device:
        raise ValueError(f"labels must be on the device of {states}, {device}, got {labels.device}")


def check_logits(logits: Tensor, labels: Tensor) -> int:
    """(..., V) logits with (...) labels; returns V."""
    check_floating("logits", logits)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(
            "logits must have a last dimension of at least one column, the vocabulary, "
            f"got shape {shape(logits)}"
        )
    check_labels(labels, shape(logits)[:-1], "logits", logits.device)
    return logits.shape[-1]


def check_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> tuple[int, int]:
    """(..., D) hidden, (V, D) weight, (V,) bias, (...) labels; returns V and D."""
    check_floating("hidden", hidden)
    check_unsharded("weight", weight)
    if hidden.ndim < 1 or hidden.shape[-1] < 1:
        raise ValueError(
            f"hidden must have a last dimension of at least one column, got shape {shape(hidden)}"
        )
    if weight.ndim != 2 or weight.shape[0] < 1 or weight.shape[1] != hidden.shape[-1]:
        hint = ""
        if weight.numel() == 0:
            hint = f"; ZeRO-3 leaves a weight empty outside of its gather context: {GATHER}"
        raise ValueError(
            f"weight must be (V, D) with D of hidden, {hidden.shape[-1]}, got {shape(weight)}{hint}"
        )
    if bias is not None and shape(bias) != (weight.shape[0],):
        raise ValueError(f"bias must be (V,) = ({weight.shape[0]},), got {shape(bias)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != hidden.dtype or tensor.device != hidden.device):
            given = f"{tensor.dtype} on {tensor.device}; move or cast one of them"
            raise ValueError(
                f"{name} must have the dtype and device of hidden, "
                f"{hidden.dtype} on {hidden.device}, got {given}"
            )
    check_labels(labels, shape(hidden)[:-1], "hidden", hidden.device)
    return weight.shape[0], weight.shape[1]


def check_unsharded(name: str, tensor: Tensor) -> None:
    """A whole tensor, not a shard, in a dtype that operations compute with."""
    # A DTensor is known by its placements: its class would load torch.distributed.
    if (placements := getattr(tensor, "placements", None)) is not None:
        raise ValueError(
            f"{name} must be whole, got a DTensor with {placements}; {GATHER}, "
            f"or pass {name}.full_tensor()"
        )
    if tensor.dtype not in DTYPES:
        hint = ""
        if "float8" in str(tensor.dtype):
            hint = f"; dequantise it first, for example {name}.to(hidden.dtype) times its scale"
        raise ValueError(
            f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}{hint}"
        )


def check_live_rows(rows: Tensor | None, labels: Tensor) -> None:
    """(L,) places among the flattened ``labels``."""
    check_tensors(live_rows=rows)
    if rows is not None and (
        rows.ndim != 1 or rows.dtype != torch.int64 or rows.device != labels.device
    ):
        given = f"{rows.dtype} {shape(rows)} on {rows.device}"
        raise ValueError(
            f"live_rows must be None or int64 of shape (L,) on {labels.device}, got {given}"
        )


def check_budget(budget: object) -> None:
    """A number of bytes, or "auto"."""
    if budget != "auto" and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
        raise ValueError(
            'memory_budget must be "auto" or a number of bytes, an int of at least 0, '
            f"got {budget!r}"
        )


def check_token_options(
    temperature: float, softcap: float | None, logit_scale: float, ignore_index: int = -100
) -> None:
    """Each is a number in its range, and so are the factors that kernels make of them."""
    if not _is_number(temperature) or not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive finite number, got {temperature!r}")
    if softcap is not None and not (_is_number(softcap) and 0 < softcap < float("inf")):
        raise ValueError(f"softcap must be None or a positive finite number, got {softcap!r}")
    if not _is_number(logit_scale) or not -float("inf") < logit_scale < float("inf"):
        raise ValueError(f"logit_scale must be a finite number, got {logit_scale!r}")
    if not isinstance(ignore_index, (int, numbers.Integral)):
        raise ValueError(f"ignore_index must be an int, got {ignore_index!r}")
    factors = {"logit_scale / temperature": logit_scale / temperature}
    if softcap is not None:
        factors |= {
            "softcap / temperature": softcap / temperature,
            "logit_scale / softcap": logit_scale / softcap,
        }
    for name, factor in factors.items():
        if factor != 0 and not SMALLEST <= abs(factor) <= LARGEST:
            raise ValueError(
                f"{name} must lie within {SMALLEST} and {LARGEST}, which float32 can hold, "
                f"got {factor}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, numbers.Real))  # NumPy's numbers are Real


def check_responses(labels: Tensor, response_ids: Tensor | None, num_responses: int | None) -> None:
    """Padded (R, T) labels alone, or packed (M,) labels with (M,) response ids."""
    check_tensor("labels", labels)
    check_tensors(response_ids=response_ids)
    if response_ids is None:
        if labels.ndim != 2:
            raise ValueError(
                "labels must be (R, T), one response a row, unless response_ids are given; "
                f"got {shape(labels)}"
            )
        if num_responses is not None and num_responses != labels.shape[0]:
            raise ValueError(
                f"num_responses must be R of the padded labels, {labels.shape[0]}, or be left out; "
                f"got {num_responses}"
            )
        return
    if labels.ndim != 1:
        raise ValueError(
            f"labels must be (M,), packed, when response_ids are given; got {shape(labels)}"
        )
    if (
        response_ids.dtype not in INTEGERS
        or shape(response_ids) != shape(labels)
        or response_ids.device != labels.device
    ):
        given = f"{response_ids.dtype} {shape(response_ids)} on {response_ids.device}"
        raise ValueError(
            f"response_ids must be integers of shape {shape(labels)} on {labels.device}, "
            f"got {given}"
        )
    if num_responses is not None and num_responses < 0:
        raise ValueError(f"num_responses must not be negative, got {num_responses}")


def check_inplace(logits: Tensor) -> None:
    """The logits have a view (R, T, V), which a gradient can overwrite instead of a copy."""
    steps = [
        (size, stride)
        for size, stride in zip(logits.shape[:-2], logits.stride()[:-2], strict=True)
        if size != 1
    ]
    for (_, outer), (size, inner) in itertools.pairwise(steps):
        if outer != size * inner and logits.numel():
            given = f"shape {shape(logits)} with strides {logits.stride()}"
            raise ValueError(
                "logits must have a view in three dimensions, (-1, T, V), "
                f"for inplace_backward=True, got {given}"
            )


def check_no_overlap(logits: Tensor) -> None:
    """No two logits share memory, so that a gradient can overwrite them."""
    sizes = sorted(
        (stride, size)
        for stride, size in zip(logits.stride(), logits.shape, strict=True)
        if size > 1
    )
    reach = 0
    for stride, size in sizes:
        if stride <= reach:
            given = f"shape {shape(logits)} with strides {logits.stride()}"
            raise ValueError(
                f"logits must not overlap in memory for inplace_backward=True, got {given}"
            )
        reach += stride * (size - 1)


def check_label_values(labels: Tensor, vocabulary: int, ignore_index: int) -> None:
    """Each label is a column or ``ignore_index``."""
    on_cpu = not waits_for_values(labels.device)
    if not on_cpu and os.environ.get(CHECK_VARIABLE) != "1":
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    rule = f"labels must be in 0..{vocabulary - 1} or ignore_index ({ignore_index})"
    if not on_cpu:
        torch._assert_async(~wrong.any(), rule)
    elif wrong.any():
        raise ValueError(f"{rule}, got {labels[wrong][0].item()}")


def check_live_values(rows: Tensor, labels: Tensor, ignore_index: int) -> None:
    """``rows`` are the places of the labels (M,) that are not ignored, each once.

    This is checked on a CPU only. On a GPU a row too many gives NaN, and one too few gives 0.
    """
    if waits_for_values(labels.device):
        return
    live = labels != ignore_index
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(labels):
        raise ValueError(
            f"live_rows must be in 0..{len(labels) - 1}, got {int(rows.min())}..{int(rows.max())}"
        )
    counts = torch.bincount(rows, minlength=len(labels))
    if not torch.equal(counts, live.long()):
        wrong = int((counts != live).nonzero()[0])
        given = f"row {wrong} with label {int(labels[wrong])} {int(counts[wrong])} times"
        raise ValueError(
            f"live_rows must hold each row whose label is not ignore_index ({ignore_index}) once, "
            f"and no other; got {given}"
        )


def check_response_values(response_ids: Tensor, num_responses: int) -> None:
    """Each id is below the number of responses. On a GPU a larger one gives NaN."""
    on_cpu = not waits_for_values(response_ids.device)
    if not on_cpu and os.environ.get(CHECK_VARIABLE) != "1":
        return
    wrong = response_ids >= num_responses
    rule = f"response_ids must be below num_responses ({num_responses}), -1 for a row of none"
    if not on_cpu:
        torch._assert_async(~wrong.any(), rule)
    elif wrong.any():
        raise ValueError(f"{rule}; got {response_ids.max().item()}")


def check_places(name: str, places: Tensor, like: Tensor, count: int) -> None:
    """Integers below ``count``, in the shape of ``like``; values are looked at on a CPU alone."""
    if places.shape != like.shape or places.dtype not in INTEGERS:
        given = f"{places.dtype} {shape(places)}"
        raise ValueError(f"{name} must be integers of shape {shape(like)}, got {given}")
    if waits_for_values(places.device) or not can_read_values(places):
        return
    if (wrong := (places < 0) | (places >= count)).any():
        raise ValueError(
            f"{name} must number the {count} responses of the labels from 0, "
            f"got {places[wrong][0].item()}"
        )
