"""Whole steps as cases: a model with random weights, and the ids of one prompt's n responses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pad_fast.device import has_float64, is_gpu
from pad_fast.models.layout import PromptGroup

CHECKED = 2  # responses whose rewards are compared with the truth
MAX_LENGTH = 1 << 18  # tokens
LONGEST = "longest response"

LLAMA_12M: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
LLAMA_20M: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
GEMMA_CAPS: dict[str, Any] = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA_2B: dict[str, Any] = {**GEMMA_CAPS, "sliding_window": 4096}
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TINY_GEMMA: dict[str, Any] = {
    **TINY,
    **GEMMA_CAPS,
    "num_hidden_layers": 2,  # one with a window and one without
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 7,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # architecture and configuration
    "tiny": ("llama", TINY),
    most: int = MAX_LENGTH  # tokens of a response at which the search for the longest ends
