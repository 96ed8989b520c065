"""Whole steps as cases: a model with random weights, and the ids of one prompt's n responses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pad_fast.device import has_float64, is_gpu
from pad_fast.models.auto import recompute_activations
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
    "Llama, 12M": ("llama", LLAMA_12M),
    "tiny Gemma-2": ("gemma2", TINY_GEMMA),
    "Llama, 20M": ("llama", LLAMA_20M),
    "Llama-3.2-1B": ("llama", LLAMA_1B),
    "Gemma-2-2B": ("gemma2", GEMMA_2B),
}


@dataclass(frozen=True)
class StepCase:
    """A step of a model on ``n`` responses of one prompt; lengths in tokens.

    ``repeats`` is the share of the responses that are equal to another one.
    """

    job: str  # "training step", "scoring" or "longest response"
    model: str
    n: int
    prompt: int
    response: int  # where the search starts, if the longest is searched for
    dtype: str = "float32"
    checkpointing: bool = False
    rounds: int = 3
    repeats: float = 0.0
    # Fewer figures in less time: no resident memory, no profile, not what shares nothing.
    brief: bool = False
    most: int = MAX_LENGTH  # tokens of a response at which the search for the longest ends

    @property
    def trains(self) -> bool:
        return self.job != "scoring"

    @property
    def distinct(self) -> int:
        """How many of the responses are not equal to an earlier one."""
        return self.n - round(self.repeats * self.n)

    @property
    def label(self) -> str:
        """The case in words, as the tables show it."""
        length = "" if self.job == LONGEST else f" R={self.response:,}"
        parts = [self.job, self.model, f"n={self.n} P={self.prompt:,}{length}", self.dtype]
        parts += [f"{self.repeats:.0%} repeats"] if self.repeats else []
        return ", ".join([*parts, "checkpointed activations"] if self.checkpointing else parts)


class StepInputs:
    """The model and the ids of a case, on their device."""

    def __init__(self, case: StepCase, device: torch.device, model: Any = None) -> None:
        self.case, self.device = case, device
        self.model = make_model(case, device) if model is None else model
        generator = torch.Generator().manual_seed(0)
        size = (case.prompt + case.distinct * case.response,)
        ids = torch.randint(self.model.config.vocab_size, size, generator=generator)
        prompt, responses = ids[: case.prompt], ids[case.prompt :].view(-1, case.response)
        responses = responses[torch.arange(case.n) % case.distinct]
        self.group = PromptGroup(prompt.tolist(), responses.tolist(), list(range(case.n)))
        self.responses = responses.to(device)  # (n, R)
        padded = torch.cat([prompt.expand(case.n, -1), responses], 1)
        self.input_ids = padded.to(device)  # (n, P + R)
        self.weights = torch.linspace(-1, 1.5, case.n, device=device)  # d loss / d reward

    @cached_property
    def truth(self) -> Tensor:
        """Rewards of the first responses, each alone, in the dtype of :func:`truth_dtype`."""
        exact = copy.deepcopy(self.model).eval().to(truth_dtype(self.device))
        rewards = []
        with torch.no_grad():
            for i in range(CHECKED):
                logits = exact(input_ids=self.input_ids[i, None], use_cache=False).logits
                rewards.append(mean_logps(logits, self, i))
        return torch.cat(rewards).double()


def truth_dtype(device: torch.device) -> torch.dtype:
    """Float64 on a CPU; float32 on a GPU, where whole models in float64 would not fit."""
    return torch.float32 if is_gpu(device) or not has_float64(device) else torch.float64


def make_model(case: StepCase, device: torch.device) -> Any:
    """The case's model with random weights, the same each time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, options = MODELS[case.model]
    options = {"max_position_embeddings": MAX_LENGTH * 2, **options}
    config = AutoConfig.for_model(architecture, **options)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    if case.checkpointing:
        recompute_activations(model)
    return model.train(case.trains)


def mean_logps(logits: Tensor, inputs: StepInputs, first: int = 0) -> Tensor:
    """Rewards of the responses from ``first`` on, from logits (n, P + R, V) of padded rows."""
    labels = inputs.responses[first : first + len(logits)]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = logits[:, inputs.case.prompt - 1 : -1].log_softmax(-1, dtype=dtype)
    return logps.gather(-1, labels[..., None])[..., 0].mean(1)
