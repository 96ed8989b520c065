"""Tiny models whose configuration wraps that of a text model, as models that read images have."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from pad_fast.models.auto import build_model

VOCABULARY = 64
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32}
LLAMA4 = {
    "intermediate_size_mlp": 32,
    "num_local_experts": 2,
    "moe_layers": [1],
    "no_rope_layers": [1, 1],
}


def wrapper(name: str, vocabulary: int = VOCABULARY, window: int = 64) -> Any:
    """A configuration of this name in transformers, around a tiny text model."""
    text = {**TEXT, "vocab_size": vocabulary, "max_position_embeddings": window}
    makers = {
        "gemma3": lambda: transformers.Gemma3Config(
            text_config={**text, "sliding_window": 8}, vision_config=VISION, image_token_index=5
        ),
        "qwen3_vl": lambda: transformers.Qwen3VLConfig(
            text_config={
                **text,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [4, 2, 2],
                },
            },
            vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0]},
            image_token_id=5,
        ),
        "llava": lambda: transformers.LlavaConfig(
            text_config={"model_type": "llama", **text},
            vision_config={"model_type": "clip_vision_model", **VISION},
            image_token_index=5,
        ),
        "idefics3": lambda: transformers.Idefics3Config(
            text_config={"model_type": "llama", **text}, vision_config=VISION, image_token_id=5
        ),
        "mllama": lambda: transformers.MllamaConfig(
            text_config={**text, "cross_attention_layers": [1]}, vision_config=VISION
        ),
        "llama4": lambda: transformers.Llama4Config(
            text_config={**text, **LLAMA4},
            vision_config={**VISION, "vision_output_dim": 32, "projector_output_dim": 32},
            image_token_index=5,
        ),
        "paligemma": lambda: transformers.PaliGemmaConfig(
            text_config={"model_type": "gemma", **text}, vision_config=VISION, image_token_index=5
        ),
    }
    return makers[name]()


def wrapped_model(name: str, seed: int = 0, **options: Any) -> Any:
    """The model of :func:`wrapper` with random weights that make sharp predictions."""
    torch.manual_seed(seed)
    model = build_model(wrapper(name, **options)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20.0)
    return model
