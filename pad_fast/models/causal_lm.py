"""The parts of a transformers causal language model: its decoder, its embedding, its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def causal_lm(model: Any) -> PreTrainedModel:
    """The causal language model inside DDP, FSDP, torch.compile or PEFT wrappers; its adapters stay active.

    Raises ValueError for prompt-learning adapters, whose virtual tokens live outside of that model.
    """
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or isinstance(
            inner := getattr(model, "module", None), nn.Module
        ):
            model = inner
        elif hasattr(model, "get_base_model"):
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                raise ValueError(
                    f"model must not have a prompt-learning adapter, got {model.active_peft_config.peft_type}; use LoRA"
                )
            model = model.get_base_model()
        else:
            return model


def input_embedding(model: PreTrainedModel) -> Tensor:
    """(V, D); where it is, ids must be."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def vocabulary_size(model: PreTrainedModel) -> int:
    """Ids that can be both read and predicted. The modules' own numbers: shards of weights have other shapes."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return min(int(embedding.num_embeddings), int(head.out_features))


def decode(model: PreTrainedModel, input_ids: Tensor, **options: Any) -> Tensor:
    """Last hidden states (B, T, D) of right-padded ids (B, T). Causal attention never looks at what stands to the right, so no
    mask is needed, and without one attention takes its fast causal kernel. ``options`` say what else is in the rows."""
    return model.get_decoder()(input_ids=input_ids, use_cache=False, **options)[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module's own mode as before on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
