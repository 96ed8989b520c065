"""The parts of a transformers causal language model: its decoder, its embedding, its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def causal_lm(model: Any) -> PreTrainedModel:
    """Unwrap a causal language model from DDP, FSDP, torch.compile or PEFT.

    PEFT's adapters stay active: they are modules inside the model that is returned.

    Raises:
        ValueError: a prompt-learning adapter, whose virtual tokens live outside that model.
    """
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or isinstance(
            inner := getattr(model, "module", None), nn.Module
        ):
            model = inner
        elif hasattr(model, "get_base_model"):
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                raise ValueError(
                    "model must not have a prompt-learning adapter, "
                    f"got {model.active_peft_config.peft_type}; use LoRA"
                )
            model = model.get_base_model()
        else:
            return model


def embedding_module(model: PreTrainedModel) -> nn.Module:
    """The embedding itself, without an adapter of PEFT around it."""
    found: Any = model.get_input_embeddings()
    while True:
        if hasattr(found, "base_layer"):
            found = found.base_layer
        elif hasattr(found, "original_module"):
            found = found.original_module
        else:
            return found


def input_embedding(model: PreTrainedModel) -> Tensor:
    """The embedding table (V, D). Token ids have to be on its device."""
    weight = embedding_module(model).weight
    assert isinstance(weight, Tensor)
    return weight


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of token ids that the model can both read and predict.

    The modules' own attributes are read, since sharded weights have other shapes.
    """
    embedding: Any = embedding_module(model)
    head: Any = model.get_output_embeddings()
    return min(int(embedding.num_embeddings), int(head.out_features))


def model_window(model: nn.Module) -> int | None:
    """The most tokens of prompt and response that the model supports; None if unknown."""
    return getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)


def is_spread(model: Any) -> bool:
    """Whether the model's device_map puts its layers on several devices, offloading apart."""
    places = getattr(model, "hf_device_map", None) or {}
    return len(set(places.values()) - {"cpu", "disk"}) > 1


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of the model that makes its last hidden states."""
    found: Any = model.get_decoder()
    # That of Llama4ForCausalLM is itself, and that of a wrapper around it is it. The decoder is
    # the part which holds the embedding and no head.
    while _predicts(found):
        embedding = model.get_input_embeddings()
        inner = (part for part in found.children() if embedding in part.modules())
        if (found := next(inner, None)) is None:
            raise AttributeError(f"{type(model).__name__} holds no decoder apart from its head")
    return found


def _predicts(module: nn.Module) -> bool:
    head = getattr(module, "get_output_embeddings", None)
    return head is not None and head() is not None


def decode(model: PreTrainedModel, input_ids: Tensor, **options: Any) -> Tensor:
    """The last hidden states (B, T, D) of right-padded ids (B, T).

    There is no attention mask: causal attention never looks to the right, where the padding is, and
    without a mask it takes its fast causal kernel. ``options`` go to the decoder.
    """
    hidden: Tensor = decoder(model)(input_ids=input_ids, use_cache=False, **options)[0]
    return hidden


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside; afterwards each module is in the mode that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
