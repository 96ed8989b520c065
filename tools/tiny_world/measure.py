"""What the two models can do, measured on prompts that neither was trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pad_fast.evaluation.answers import exact_match
from pad_fast.models.scoring import next_token_logprobs, score_responses
from pad_fast.pipeline.multiple_choice import choice_question
from tiny_world.tasks import SKILLS, WORDING, Task

MAX_NEW_TOKENS = 32
SAMPLES = 4
Facts = dict[str, Any]
Rows = list[list[list[int]]]  # the token ids of each prompt's responses


def prompt_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text as one user message, with the generation prompt."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    encoded: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True
    )
    return encoded["input_ids"]


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    samples: int = 0,
    most: int = MAX_NEW_TOKENS,
) -> Rows:
    """The token ids of responses to each prompt, with their end of turn if there is one.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        tasks: the prompts.
        samples: how many responses to sample at temperature 1; 0 for the greedy one.
        most: tokens of a response.
    """
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
        made = model.generate(**batch, max_new_tokens=most, **sampling)
        responses = made[:, batch["input_ids"].shape[1] :].tolist()
        trimmed = [_until_end(row, tokenizer) for row in responses]
        rows += [trimmed[i : i + max(samples, 1)] for i in range(0, len(trimmed), max(samples, 1))]
    return rows


def _until_end(row: list[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    end = tokenizer.eos_token_id
    return row[: row.index(end) + 1] if end in row else row


def decode(tokenizer: PreTrainedTokenizerFast, rows: Rows) -> list[list[str]]:
    return [tokenizer.batch_decode(group, skip_special_tokens=True) for group in rows]


def accuracy(tasks: Sequence[Task], texts: list[list[str]]) -> Facts:
    """The share of right responses, over all prompts and for each skill."""
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
    """Accuracy of greedy and sampled responses, how varied and long these are; and the samples."""
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
    """The task, its first right and its first wrong sample, for each prompt that has both."""
    pairs = []
    for task, group in zip(tasks, texts, strict=True):
        right = [text for text in group if exact_match(text, task.answer)]
        wrong = [text for text in group if not exact_match(text, task.answer)]
        if right and wrong:
            pairs.append((task, right[0], wrong[0]))
    return pairs


def slip_pairs(tasks: Sequence[Task], seed: int) -> list[tuple[Task, str, str]]:
    """Each task with its right response and one of the generator's mistakes."""
    rng = random.Random(seed)
    return [(task, task.response, rng.choice(task.slips)) for task in tasks]


def choices(
    teacher: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[Task, str, str]],
) -> Facts:
    """How often the teacher prefers the right response of a pair, by its letter and by its reward.

    Every pair is asked in both orders. ``position_bias`` is the mean probability of the letter A
    among A and B, less the half that an unbiased reader would give.
    """
    questions = [
        choice_question(task.prompt, order, WORDING)
        for task, right, wrong in pairs
        for order in ((right, wrong), (wrong, right))
    ]
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    log_probs = torch.tensor(
        next_token_logprobs(teacher, prompt_ids(tokenizer, questions), letters), dtype=torch.float64
    )
    # The probability of A where the right response is A, and where it is B.
    a_first, a_second = log_probs.softmax(-1)[:, 0].view(-1, 2).unbind(-1)
    end = tokenizer.eos_token
    ids = [
        tokenizer([right + end, wrong + end], add_special_tokens=False)["input_ids"]
        for _, right, wrong in pairs
    ]
    prompts = prompt_ids(tokenizer, [task.prompt for task, _, _ in pairs])
    rewards = torch.tensor(score_responses(teacher, prompts, ids))
    one_order = (a_first > 0.5).double().mean() + (a_second < 0.5).double().mean()
    return {
        "pairs": len(pairs),
        "accuracy_one_order": one_order.item() / 2,
        "accuracy_both_orders": (a_first > a_second).double().mean().item(),
        "position_bias": (a_first.mean() + a_second.mean()).item() / 2 - 0.5,
        "letter_mass": log_probs.exp().sum(-1).mean().item(),
        "accuracy_of_reward": (rewards[:, 0] > rewards[:, 1]).double().mean().item(),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
