"""Models and tensors without values, on which the true code runs and is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import masking_utils
from transformers.initialization import no_init_weights
from transformers.integrations import moe

from pad_fast.footprint.meter import Meter
from pad_fast.models.auto import build_model
from pad_fast.models.layout_trial import known_problem
from pad_fast.models.output_head import trust_head
from pad_fast.models.prefix_attention import REPLACED


@contextmanager
def fake() -> Iterator[Meter]:
    """Make every tensor inside a fake one, and count them.

    They are on a fake CPU whatever device is planned for. Its fused attention saves the same
    tensors as a GPU's, and its autocast can be traced on a machine without a GPU.
    """
    with FakeTensorMode(), _one_sequence_per_row(), _products_of_experts(), Meter() as meter:
        yield meter


@contextmanager
def _one_sequence_per_row() -> Iterator[None]:
    """Let transformers take rows for single sequences, as it does in the step that is planned.

    It looks at the values of position_ids for rows of several sequences. Fake tensors have no
    values; it would assume such rows and make a mask of T * T. It has no argument for this.
    """
    with _replaced(masking_utils, "find_packed_sequence_indices", lambda position_ids: None):
        yield


@contextmanager
def _products_of_experts() -> Iterator[None]:
    """Let transformers multiply tokens with their experts in its own operation, in every dtype.

    PyTorch's takes fake tensors in bfloat16 alone. Both keep the same tensors.
    """
    with _replaced(moe, "_can_use_grouped_mm", lambda *args: False):
        yield


@contextmanager
def _replaced(module: Any, name: str, function: Any) -> Iterator[None]:
    """Another function under this name of a module inside, if the module has the name at all."""
    before = getattr(module, name, None)
    if before is not None:
        setattr(module, name, function)
    try:
        yield
    finally:
        if before is not None:
            setattr(module, name, before)


def fake_model(
    config: Any,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    build: Callable[..., Any] = build_model,
) -> Any:
    """The model without its weights, as ``build`` makes it. Call it inside :func:`fake`."""
    if attn_implementation not in (None, "eager"):
        # Every fused attention saves the same tensors, and some need a GPU.
        attn_implementation = "sdpa"
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with no_init_weights():  # some distributions of random weights look at values
        model = build(config, dtype=dtype, **options)
    model.tie_weights()  # which is left out with the random weights
    trust_head(model)
    return model


def with_fake_part(model: Any, add: Callable[[Any], Any]) -> Any:
    """A fake model with what ``add`` adds, which has to make weights on the meta device.

    PEFT moves the weights that it makes by an exchange of tensors that fake ones refuse; those on
    the meta device it leaves where they are. Call it inside :func:`fake`.
    """
    with unset_fake_temporarily():
        whole = add(model)
    for module in whole.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.is_meta:
                made = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(module, name, torch.nn.Parameter(made, weight.requires_grad))
    return whole


def empty_model(config: Any, build: Callable[..., Any] = build_model) -> Any:
    """The model on the meta device, of which only shapes can be asked."""
    with torch.device("meta"):
        return build(config)


def count_parameters(config: Any, build: Callable[..., Any] = build_model) -> int:
    """The number of weights of a model as ``build`` makes it; tied weights count once."""
    return sum(weight.numel() for weight in empty_model(config, build).parameters())


def sharing_problem(config: Any, attn_implementation: str | None) -> str | None:
    """Why prompts cannot be shared, as far as the config says; None where it does not say."""
    if attn_implementation not in (None, *REPLACED):
        return f"its attention is {attn_implementation}"
    with fake():
        return known_problem(fake_model(config, torch.float32, attn_implementation), "shared")
