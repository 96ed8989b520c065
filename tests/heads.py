"""Tiny models of nine architectures whose output heads differ, and their rewards the plain way."""

import copy

import torch
import transformers

from pad_fast.models.packing import PackedRows, pack_rows

VOCABULARY, WINDOW = 61, 48
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "max_position_embeddings": WINDOW,
}
HEAD_DIM = {**SMALL, "head_dim": 12}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_WINDOW = {"vocab_size": VOCABULARY, "hidden_size": 24}
CONFIGS = {
    "llama": transformers.LlamaConfig(**HEAD_DIM),
    "qwen3": transformers.Qwen3Config(**HEAD_DIM, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(**GPT2),
    # a softcap
    "gemma2": transformers.Gemma2Config(**HEAD_DIM, final_logit_softcapping=3.0, sliding_window=8),
    # a scale that multiplies
    "cohere": transformers.CohereConfig(**SMALL, logit_scale=0.3),
    # a scale that divides
    "granite": transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    # a bias
    "phi": transformers.PhiConfig(**SMALL),
    # alibi in place of positions
    "bloom": transformers.BloomConfig(**NO_WINDOW, n_layer=2, n_head=2),
    # no attention
    "mamba": transformers.MambaConfig(**NO_WINDOW, num_hidden_layers=2, state_size=4),
}


def make_model(name: str, dtype=torch.float32, seed: int = 0):
    """A model with large logits.

    At a random initialisation all log-probabilities are near -log V, and a softcap does nothing.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        copy.deepcopy(CONFIGS[name]), dtype=dtype
    ).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(40.0)
        if head.bias is not None:
            head.bias.normal_()
    return model


def make_texts(seed: int = 0):
    """Four prompts, and their responses: ragged, a single one, none, and one that is empty."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(VOCABULARY, (length,), generator=generator).tolist()

    prompts = [ids(length) for length in (5, 1, 13, 8)]
    lengths = ((3, 1, 20), (4,), (), (0, 7, 7, 2))
    responses = [[ids(length) for length in group] for group in lengths]
    return prompts, responses


def make_packed() -> tuple[list, PackedRows]:
    """Three pairs of prompt and response, and the same as packed rows, numbered 4, 0 and 2."""
    prompts, responses = make_texts()
    pairs = [(prompts[p], responses[p][i]) for p, i in ((0, 0), (0, 2), (3, 1))]
    return pairs, pack_rows(pairs, response_ids=[4, 0, 2])


def naive_rewards(model, prompts, responses, *, normalize="mean", temperature=1.0):
    """One forward pass for each response, through the model's own logits, in float64."""
    rewards = []
    for prompt, group in zip(prompts, responses, strict=True):
        rewards.append([])
        for response in group:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
            logps = (logits / temperature).log_softmax(-1)
            found = [logps[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)]
            rewards[-1].append(sum(found) / (max(1, len(found)) if normalize == "mean" else 1))
    return rewards


def flat(rewards):
    return [value for group in rewards for value in group]
