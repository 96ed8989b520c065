"""The output head of a causal language model, read from its config and tried on the model itself.

Every architecture of transformers computes softcap(scale * (h @ W.T + b)) or a part of it, but each
has its own names for the numbers. Where the result disagrees with the model's own logits, those are
taken instead, so that a quirk that is missing below costs memory but never gives a wrong reward.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pad_fast.linear_logprob.output_head import OutputHead
from pad_fast.models.causal_lm import (
    causal_lm,
    decode,
    decoder,
    evaluating,
    input_embedding,
    vocabulary_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("pad_fast")

# The quirks: names in configs. A new architecture's name goes into one of these lines.
# Gemma 2 to 4, RecurrentGemma, xLSTM
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse
DIVISORS = ("logits_scaling",)  # Granite, MiniCPM
DIVISORS_THAT_MULTIPLY = ("hyperclovax",)  # HyperCLOVA X multiplies by its logits_scaling

_disagreements: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()
_warned: WeakSet[nn.Module] = WeakSet()


def output_head(model: nn.Module) -> OutputHead:
    """The output head of a transformers causal language model: weight, bias, softcap and scale.

    :class:`pad_fast.LinearPADLoss` and the ``linear_`` functions take it in place of a weight. The
    tensors are the model's own parameters, so gradients reach them.

    Args:
        model: in any wrappers. Under FSDP and ZeRO-3 the weight is complete only within the head's
            own forward: :func:`pad_fast.attach_rewards_forward` has a call for that.

    Raises:
        ValueError: no linear head; one with an adapter, quantised or split over devices; or one
            whose logits, tried on a few tokens once, are not the model's own.

    Example:
        >>> from transformers import AutoModelForCausalLM, Gemma2Config
        >>> config = Gemma2Config(vocab_size=9, hidden_size=32, num_hidden_layers=1)
        >>> output_head(AutoModelForCausalLM.from_config(config)).softcap
        30.0
    """
    if (problem := head_problem(model)) is not None:
        raise ValueError(
            f"model must have an output head that can be read as one matrix, and {problem}; take "
            "PADLoss, of the model's own logits"
        )
    return read_head(model)


def read_head(model: nn.Module) -> OutputHead:
    """Read the output head of a transformers causal language model, as its config describes it.

    The tensors are the model's own parameters. Under FSDP and ZeRO-3 they are complete only inside
    :func:`call_head`.

    Raises:
        ValueError: no linear head, or one with an adapter (PEFT's target or saved modules).
    """
    lm = causal_lm(model)
    head = lm.get_output_embeddings() if hasattr(lm, "get_output_embeddings") else None
    if head is not None and (hasattr(head, "base_layer") or hasattr(head, "modules_to_save")):
        raise ValueError(
            "model must not have an adapter on its output head, which is read as one matrix; "
            f"leave it out of target_modules and modules_to_save, got {type(head).__name__}"
        )
    if not isinstance(head, nn.Linear):
        hint = ""
        if isinstance(lm, (str, os.PathLike)):
            hint = "; load it, by AutoModelForCausalLM.from_pretrained(...)"
        raise ValueError(
            "model must be a causal language model with a linear output head, "
            f"got {type(lm).__name__} with {head!r}{hint}"
        )
    config = lm.config.get_text_config()
    return OutputHead(head.weight, head.bias, _softcap(config), _logit_scale(config))


def call_head(
    model: nn.Module,
    head: OutputHead,
    hidden: Tensor,
    function: Callable[[Tensor, OutputHead], Tensor],
) -> Tensor:
    """``function(hidden, head)``, run as the forward of the model's output head module.

    The module itself is called, with its forward replaced for that call, so that its hooks see an
    ordinary call: FSDP2 and ZeRO-3 gather its weight before, may free it afterwards, and gather it
    again for the backward. ``function`` must keep the parameters themselves and no view of them.
    """
    if torch.compiler.is_compiling():  # wrappers are compiled in parts, from inside their hooks
        return function(hidden, head)
    module = causal_lm(model).get_output_embeddings()
    before = module.__dict__.get("forward")  # set by others, such as accelerate's device hooks
    module.forward = lambda hidden: function(
        hidden, replace(head, weight=module.weight, bias=module.bias)
    )
    try:
        return module(hidden)
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _softcap(config) -> float | None:
    caps = [float(cap) for name in SOFTCAPS if (cap := getattr(config, name, None))]
    return caps[0] if caps else None


def _logit_scale(config) -> float:
    scale = 1.0
    for name in MULTIPLIERS:
        if isinstance(value := getattr(config, name, None), int | float):
            scale *= value
    for name in DIVISORS:
        if isinstance(value := getattr(config, name, None), int | float):
            scale = scale * value if config.model_type in DIVISORS_THAT_MULTIPLY else scale / value
    return scale


def head_problem(model: nn.Module) -> str | None:
    """Why ``decode`` and ``read_head`` cannot replace the model's own logits; None if they can.

    Each model is tried once, and its problem is logged once.

    Raises:
        ValueError: where :func:`read_head` raises it.
    """
    lm = causal_lm(model)
    weight = read_head(lm).weight
    problem = _weight_problem(lm.get_output_embeddings(), weight)
    # A sharded head cannot be tried; the names in its config are trusted.
    complete = not isinstance(weight, DTensor) and weight.numel() > 0
    if problem is None and complete and lm not in _disagreements:
        _disagreements[lm] = _disagreement(lm)
    problem = problem or _disagreements.get(lm)
    if problem is not None and lm not in _warned:
        _warned.add(lm)
        logger.warning("%s takes whole logits, which cost memory: %s", type(lm).__name__, problem)
    return problem


def forget_head(model: nn.Module) -> None:
    """Try the output head of a model anew when it is looked up next."""
    _disagreements.pop(causal_lm(model), None)


def trust_head(model: nn.Module) -> None:
    """Believe the config's description of the head, for a model without weights to try it on."""
    _disagreements[causal_lm(model)] = None


def _weight_problem(module: nn.Module, weight: Tensor) -> str | None:
    """Why the weight cannot be used as a matrix, None if it can.

    Shards are no problem where the wrapper gathers them for the head's forward: under FSDP2 if the
    head is a unit of its own, and under ZeRO-3.
    """
    if isinstance(weight, DTensor) and not isinstance(module, FSDPModule):
        return "its output head is split over devices"
    if weight.is_meta:
        return "its output head is offloaded"
    if not weight.is_floating_point():
        return f"its output head is quantised to {weight.dtype}"
    return None


def _disagreement(model: PreTrainedModel) -> str | None:
    try:
        own, ours = _both_logits(model)
    except (AttributeError, TypeError) as error:
        return f"its decoder cannot be called alone: {error}"
    if not own.isfinite().all():  # a rank whose weights are not loaded yet has nothing to compare
        return None
    difference, size = (own - ours).abs().amax().item(), own.abs().amax().item()
    eps = max(torch.finfo(dtype).eps for dtype in (read_head(model).weight.dtype, own.dtype))
    moved = (own[0, :-1] - own[1, :-1]).abs().amax().item()
    if moved > max(1e-4, 16 * eps) * size:
        raise ValueError(
            "model must be a causal language model, whose tokens do not see later ones, got "
            f"{type(model).__name__}: another last token moves the logits before it by {moved:.3g} "
            f"of {size:.3g}"
        )
    if difference <= 16 * eps * size:
        return None
    return f"hidden states times its head miss its logits by {difference:.3g} of {size:.3g}"


@torch.no_grad()
def _both_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The logits (2, 4, V) of a few tokens by the model and by :class:`OutputHead`, in float32.

    The last of the four tokens differs between the two rows.

    The hidden states are scaled up before the head: at a random initialisation logits are so small
    that a softcap, or any other curve, would not show.
    """
    head = read_head(model)
    device, vocabulary = input_embedding(model).device, vocabulary_size(model)
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=device) % vocabulary
    with evaluating(model):
        hidden = decode(model, ids).to(head.weight)
        gain = 40.0 / (hidden @ head.weight.T).abs().amax().clamp(min=1e-6).item()

        def scale_up(module, args, output):
            output.last_hidden_state = output.last_hidden_state * gain
            return output

        handle = decoder(model).register_forward_hook(scale_up)
        try:
            own = model(input_ids=ids, use_cache=False).logits.float()
        finally:
            handle.remove()
    z = nn.functional.linear(hidden * gain, head.weight, head.bias).float() * head.logit_scale
    # A model over several devices returns its logits on that of its input.
    own = own.to(z.device)
    return own, z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
