"""What the pair can do, measured on prompts that neither model was trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pad_fast.evaluation.answers import exact_match
from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.pipeline.multiple_choice import choice_question
from tiny_world.tasks import SKILLS, Task

MAX_NEW_TOKENS = 32
SAMPLES = 4
Facts = dict[str, Any]
Rows = list[list[list[int]]]  # token ids, by prompt and response


def prompt_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Each text as one user message, with the generation prompt."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    encoded: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True
    )
    return encoded["input_ids"]


@torch.no_grad()
def generate(
    model: Any, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task], samples: int = 0
) -> Rows:
    """Token ids of `samples` responses to each prompt at temperature 1, or of the greedy one for 0; an end of turn that was made stays."""
    rows: Rows = []
    sampling: Facts = {"do_sample": False}
    if samples:
        sampling = {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "num_return_sequences": samples,
        }
    for start in range(0, len(tasks), 150):
        ids = prompt_ids(tokenizer, [task.prompt for task in tasks[start : start + 150]])
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        made = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, **sampling)[
            :, batch["input_ids"].shape[1] :
        ].tolist()
        trimmed = [_until_end(row, tokenizer) for row in made]
        rows += [trimmed[i : i + max(samples, 1)] for i in range(0, len(trimmed), max(samples, 1))]
    return rows


def _until_end(row: list[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    end = tokenizer.eos_token_id
    return row[: row.index(end) + 1] if end in row else row


def decode(tokenizer: PreTrainedTokenizerFast, rows: Rows) -> list[list[str]]:
    return [tokenizer.batch_decode(group, skip_special_tokens=True) for group in rows]


def accuracy(tasks: Sequence[Task], texts: list[list[str]]) -> Facts:
    """Share of right responses, over all and by skill."""
    hits: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    for task, group in zip(tasks, texts, strict=True):
        hits[task.skill] += [exact_match(text, task.answer) for text in group]
    return {
        "all": _mean([hit for group in hits.values() for hit in group]),
        **{skill: _mean(group) for skill, group in hits.items()},
    }


def abilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task], seed: int
) -> tuple[Facts, Rows]:
    """Accuracy greedy and sampled at temperature 1, how varied and how long the samples are; and the samples themselves."""
    torch.manual_seed(seed)
    greedy, sampled = generate(model, tokenizer, tasks), generate(model, tokenizer, tasks, SAMPLES)
    texts = decode(tokenizer, sampled)
    flat = [row for group in sampled for row in group]
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "greedy_accuracy": accuracy(tasks, decode(tokenizer, greedy)),
        "sampled_accuracy": accuracy(tasks, texts),
        "distinct": _mean([len(set(group)) for group in texts]),
        "mean_tokens": _mean([len(row) for row in flat]),
        "ended_greedy": _mean([group[0][-1] == tokenizer.eos_token_id for group in greedy]),
        "ended_sampled": _mean([row[-1] == tokenizer.eos_token_id for row in flat]),
    }
    return facts, sampled


def sampled_pairs(tasks: Sequence[Task], texts: list[list[str]]) -> list[tuple[Task, str, str]]:
    """(task, right, wrong): the first right and the first wrong sample of each prompt that has both."""
    pairs = []
    for task, group in zip(tasks, texts, strict=True):
        right = [text for text in group if exact_match(text, task.answer)]
        wrong = [text for text in group if not exact_match(text, task.answer)]
        if right and wrong:
            pairs.append((task, right[0], wrong[0]))
    return pairs


def slip_pairs(tasks: Sequence[Task], seed: int) -> list[tuple[Task, str, str]]:
    """(task, right, wrong) with one of the generator's own mistakes."""
    rng = random.Random(seed)
    return [(task, task.response, rng.choice(task.slips)) for task in tasks]


def choices(
    teacher: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[Task, str, str]],
) -> Facts:
    """How often the teacher picks the right one of two by its letter, asked once or in both orders, and how often by its log-prob reward.

    `position_bias` is the mean probability of the letter A, renormalised over A and B, less the half that an unbiased reader gives:
    every pair is asked in both orders.
    """
    questions = [
        choice_question(task.prompt, order)
        for task, right, wrong in pairs
        for order in ((right, wrong), (wrong, right))
    ]
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    log_probs = torch.tensor(
        next_token_logprobs(teacher, prompt_ids(tokenizer, questions), letters), dtype=torch.float64
    )
    a_first, a_second = (
        log_probs.softmax(-1)[:, 0].view(-1, 2).unbind(-1)
    )  # P(A) with the right one as A, as B
    end = tokenizer.eos_token
    ids = [
        tokenizer([right + end, wrong + end], add_special_tokens=False)["input_ids"]
        for _, right, wrong in pairs
    ]
    rewards = torch.tensor(
        score_responses(teacher, prompt_ids(tokenizer, [task.prompt for task, _, _ in pairs]), ids)
    )
    return {
        "pairs": len(pairs),
        "accuracy_one_order": (
            (a_first > 0.5).double().mean() + (a_second < 0.5).double().mean()
        ).item()
        / 2,
        "accuracy_both_orders": (a_first > a_second).double().mean().item(),
        "position_bias": (a_first.mean() + a_second.mean()).item() / 2 - 0.5,
        "letter_mass": log_probs.exp().sum(-1).mean().item(),
        "accuracy_of_reward": (rewards[:, 0] > rewards[:, 1]).double().mean().item(),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
