"""Tiny models of five architectures, groups of responses, and their rewards one by one."""

import copy

import torch
import transformers

from pad_fast.models.layout import PromptGroup
from pad_fast.models.output_head import head_problem

VOCABULARY, WINDOW = 61, 6

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,
}

LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "gemma2": transformers.Gemma2Config(
        **SMALL, **LAYERS, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, **LAYERS),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=WINDOW),
}


def make_model(name: str = "llama", dtype=torch.float64, **options):
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])
    for key, value in options.items():
        setattr(config, key, value)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    head_problem(model)
    return model


def make_groups(*sizes: tuple[int, tuple[int, ...]], seed: int = 0) -> list[PromptGroup]:
    """Groups of random tokens; each size is a prompt's length and its responses' lengths."""
    generator = torch.Generator().manual_seed(seed)
    groups, first = [], 0
    for prompt, responses in sizes:
        x, *ys = (
            torch.randint(VOCABULARY, (length,), generator=generator).tolist()
            for length in (prompt, *responses)
        )
        groups.append(PromptGroup(x, ys, list(range(first, first + len(ys)))))
        first += len(ys)
    return groups


# 2 to 16 responses, of one token up to more than a window
RAGGED = ((9, (3, 1, 20)), (1, (1, 4)), (17, tuple(range(1, 17))), (5, (7, 7)))


def alone(model, groups):
    """Rewards by one forward pass for each response, with the model's own logits and attention."""
    rewards = []
    for prompt, responses, _ in groups:
        for response in responses:
            logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[
                0, len(prompt) - 1 : -1
            ]
            rewards.append(
                logits.double().log_softmax(-1).gather(1, torch.tensor(response)[:, None]).mean()
            )
    return torch.stack(rewards)


def loss_of(rewards):
    """A loss that is not linear: the weight of a response depends on all rewards."""
    weights = torch.linspace(-1, 1.3, rewards.numel(), dtype=torch.float64, device=rewards.device)
    return (rewards.double() * weights).sum().tanh() + rewards.square().sum() / 20


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(found, wanted, rtol=1e-4, atol=2e-6):
    """Compare tensors by name. Norms, and Gemma-2's softmax, are float32 in any model."""
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name].to(value),
            value,
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


# A scored group of a run: three samples and the teacher's own answer, as token ids.
SCORED_ROW = {
    "prompt_id": 0,
    "prompt_ids": [1, 2],
    "completion_ids": [[3], [4, 5], [6], [7, 8, 9]],
    "finish_reasons": ["stop"] * 4,
    "teacher_rewards": [-2.0, -1.0, -3.0, -0.5],
    "student_rewards": [-1.0, -1.5, -2.5, -4.0],
    "from_teacher": [False, False, False, True],
}
