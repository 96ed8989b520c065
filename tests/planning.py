"""Settings, models and steps that the planner is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from pad_fast import PADConfig
from pad_fast.models.auto import recompute_activations
from pad_fast.models.layout import PromptGroup
from pad_fast.models.packing import pack, split
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.training.micro_batches import micro_batched_backward

CPU = torch.device("cpu")

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}

# Architecture, vocabulary, tokens of a prompt and of a response. Most of the memory is activations
# in the first two settings, and the output head in the others.
SETTINGS = {
    "llama-long": ("llama", 512, 48, 208),
    "gemma2-long": ("gemma2", 512, 48, 208),
    "llama-vocabulary": ("llama", 50000, 8, 24),
    "gemma2-vocabulary": ("gemma2", 50000, 8, 24),
}


N, MANY = 4, 8


def setting(name: str, **changes):
    """The config, and the tokens of a prompt and of a response."""
    kind, vocabulary, prompt, response = SETTINGS[name]
    values = {**COMMON, "vocab_size": vocabulary, **changes}
    if kind == "gemma2":
        return Gemma2Config(sliding_window=32, query_pre_attn_scalar=16, **values), prompt, response
    return LlamaConfig(**values), prompt, response


def near(estimate: float, measured: float, tolerance: float = 0.05) -> None:
    """Users are promised 20%; by the same allocator the two agree to 4% here."""
    assert abs(estimate / measured - 1) <= tolerance, (estimate, measured)


def step(
    model,
    shape: tuple[int, int, int],
    *,
    layout: str = "padded",
    limit: int | None = None,
    bf16: bool = False,
    device: torch.device = CPU,
) -> None:
    """Forward and backward of one prompt, in slices of ``limit`` tokens."""
    prompt, response, n = shape
    slices = split([PromptGroup([1] * prompt, [[1] * response] * n, range(n))], limit, layout)

    def rewards_of(part):
        packed = pack(part, layout, bucketed=device.type != "cpu").on(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model(**packed._asdict(), num_responses=n)

    if len(slices) == 1:
        rewards_of(slices[0]).sum().backward()
    else:
        micro_batched_backward(rewards_of, slices, torch.sum)


def real_model(config, *, checkpointing: bool = False, **options):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if checkpointing:
        recompute_activations(model)
    attach_rewards_forward(model.train(), **options)
    return model


def group_row(prompt: int, response: int) -> dict:
    """A row of training data: N responses to a prompt, in tokens."""
    return {
        "prompt_ids": [1] * prompt,
        "completion_ids": [[i + 1] * response for i in range(N)],
        "teacher_rewards": [float(i) for i in range(N)],
    }


def two_steps(folder: Path, checkpointing: bool, micro: int, **options) -> PADConfig:
    """The settings of a trainer's two steps of ``micro`` micro-batches of two rows, on a CPU."""
    given = {"share_prefix": "false", **options}
    return PADConfig(
        output_dir=str(folder),
        use_cpu=True,
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=2,
        max_steps=2,
        gradient_accumulation_steps=micro,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        **given,
    )
