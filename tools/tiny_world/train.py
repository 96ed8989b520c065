"""Training of a small Llama: cross-entropy on the assistant's tokens, every example drawn anew."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
CHUNK = 64  # sequences of similar length that pass the model together


@dataclass(frozen=True)
class Recipe:
    """The size of a model and how it is trained.

    The learning rate falls linearly to zero after the share ``decay_from`` of the steps; 1.0 keeps
    it constant.
    """

    hidden: int
    layers: int
    steps: int
    batch: int
    learning_rate: float
    decay_from: float


@dataclass(frozen=True)
class Row:
    """One sequence of T tokens.

    ``labels[t]`` is the token after t where the assistant says it. Within a candidate,
    ``doubts[t]`` is 1 if the candidate is wrong up to t, else 0. Elsewhere both are ``IGNORED``.
    """

    ids: list[int]
    labels: list[int]
    doubts: list[int] = field(default_factory=list)


# The groups of rows of a step. Its loss is the sum of the groups' means.
Lesson = Callable[[random.Random, int], list[list[Row]]]


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings, in float32."""
    torch.manual_seed(seed)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        initializer_range=0.05,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special, do_sample=False, max_new_tokens=48)
    return model


def pad(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
    """Rows as one tensor (R, T), filled on the right, where causal attention does not look."""
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def chunk_loss(
    model: LlamaForCausalLM, doubter: torch.nn.Linear, rows: Sequence[Row]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy of replies and the summed binary cross-entropy of doubts, in nats.

    ``doubter`` reads the doubts off the last layer but one.
    """
    labels = pad([row.labels for row in rows], IGNORED)  # (R, T)
    doubts = pad([row.doubts for row in rows], IGNORED)  # (R, T), or (R, 0) for plain answers
    doubted = doubts.numel() > 0
    output = model.model(
        pad([row.ids for row in rows], 0), use_cache=False, output_hidden_states=doubted
    )
    live = labels != IGNORED
    loss = functional.cross_entropy(
        model.lm_head(output.last_hidden_state[live]), labels[live], reduction="sum"
    )
    if not doubted:
        return loss, loss.new_zeros(())
    live = doubts != IGNORED
    found = doubter(output.hidden_states[-2][live])[:, 0]
    return loss, functional.binary_cross_entropy_with_logits(
        found, doubts[live].float(), reduction="sum"
    )


def backward(model: LlamaForCausalLM, doubter: torch.nn.Linear, rows: Sequence[Row]) -> float:
    """Add the gradients of a group's loss; returns the mean loss of its replies.

    The mean is over the tokens of replies, or over the questions if they are multiple choice. The
    mean loss of doubts is added to what is differentiated.
    """
    rows = sorted(rows, key=lambda row: len(row.ids))
    doubts = sum(doubt != IGNORED for row in rows for doubt in row.doubts)
    # The end of turn after a letter is learned at once. The letter should not share its weight.
    tokens = len(rows) if doubts else sum(label != IGNORED for row in rows for label in row.labels)
    total = 0.0
    for start in range(0, len(rows), CHUNK):
        loss, doubt = chunk_loss(model, doubter, rows[start : start + CHUNK])
        (loss / tokens + doubt / max(doubts, 1)).backward()
        total += loss.item() / tokens
    return total


def optimizers(model: LlamaForCausalLM, doubter: torch.nn.Linear) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, and AdamW for embeddings and norms.

    Muon needed about two thirds of AdamW's steps.
    """
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    outer = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(inner, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*outer, *doubter.parameters()], betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM, lesson: Lesson, recipe: Recipe, seed: int
) -> Iterator[list[float]]:
    """Train in place, one step for each item that is taken.

    Yields the loss of each group in nats per token. The generator may be left after any step.
    """
    rng = random.Random(seed)
    doubter = torch.nn.Linear(recipe.hidden, 1)
    optims = optimizers(model, doubter)
    for step in range(recipe.steps):
        model.train()
        losses = [backward(model, doubter, rows) for rows in lesson(rng, step)]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        left = (recipe.steps - step) / max(1.0, recipe.steps * (1 - recipe.decay_from))
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 50, left)
            optim.step()
            optim.zero_grad()
        model.eval()
        yield losses
