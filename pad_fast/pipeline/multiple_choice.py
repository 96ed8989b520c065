"""Calibrating the teacher's rewards by multiple choice: the questions, what is read from them, and the mix with the reward.

The teacher is shown a query with lettered answers and asked for the letter of the best one; the probability that it selects a
response is read from its next-token distribution, so no text is generated (Gu et al., arXiv 2502.14272). The released code asks
each pair once, with the lower index always lettered A, and does not renormalise; we ask both orders by default, so that a
fondness for the letter A cancels.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Sequence
from typing import Any

DEFAULT_TEMPLATE = "{query}\n\n{options}\n\nWhich answer is best? Reply with its letter."
LETTERS = string.ascii_uppercase
ALL_PAIRS_UP_TO = 8  # responses; n = 64 would be 4,032 questions a prompt
OPPONENTS = 8  # above that each response meets so many others
PRESETS: dict[str, dict[str, Any]] = {
    "debiased": {
        "mcq_weight": 0.5,
        "mcq_floor": 1e-4,
        "mcq_both_orders": True,
        "mcq_renormalize": True,
    },
    "released": {
        "mcq_weight": 1.0,
        "mcq_floor": 1e-8,
        "mcq_both_orders": False,
        "mcq_renormalize": False,
    },
}


def choice_question(query: str, candidates: Sequence[str], template: str = DEFAULT_TEMPLATE) -> str:
    """The multiple-choice question about `candidates`, lettered A, B, ... in the order given; one user message to the teacher.

    `template` holds the fields `{query}` and `{options}`, the latter one line `A. text` a candidate. ValueError for fewer than 2
    or more than 26 candidates and for a template without exactly these fields.
    """
    if not 2 <= len(candidates) <= len(LETTERS):
        raise ValueError(
            f"candidates: between 2 and {len(LETTERS)} answers can be lettered, got {len(candidates)}"
        )
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if fields != {"query", "options"}:
        raise ValueError(
            f"template: must hold the fields {{query}} and {{options}} and no others, got {sorted(fields)}"
        )
    options = "\n".join(
        f"{letter}. {text}" for letter, text in zip(LETTERS, candidates, strict=False)
    )
    return template.format(query=query, options=options)


def query_text(messages: Sequence[dict[str, Any]]) -> str:
    """What the question asks about: the text of a single message, else the conversation, `role: content` a line."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def letter_token_ids(tokenizer: Any, count: int) -> list[list[int]]:
    """For each of the first `count` letters the ids that spell it as one token, alone or after a space.

    ValueError if a letter has no such token, or shares it with another letter.
    """
    unknown = tokenizer.unk_token_id
    forms = []
    for letter in LETTERS[:count]:
        encoded = [
            tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")
        ]
        forms.append(sorted({ids[0] for ids in encoded if len(ids) == 1 and ids[0] != unknown}))
        if not forms[-1]:
            raise ValueError(
                f"teacher: its tokenizer has no single token for the letter {letter}; set mcq_style to none"
            )
    if len({token for ids in forms for token in ids}) != sum(map(len, forms)):
        raise ValueError(
            "teacher: its tokenizer spells two of the letters with one token; set mcq_style to none"
        )
    return forms


def question_plan(
    n: int, style: str, both_orders: bool, opponents: int | None = None
) -> list[tuple[int, ...]]:
    """Which responses each question shows, in letter order, for `n` responses.

    `pairwise` gives a balanced part of all pairs, in which each response meets `opponents` others, an even number; without it all
    pairs up to 8 responses, and above that 8 opponents. `listwise` gives one question about all. With `both_orders` each comes a
    second time, reversed, directly after the first.
    """
    if n < 2:
        return []
    if style == "listwise":
        plan: list[tuple[int, ...]] = [tuple(range(n))]
    elif n <= (ALL_PAIRS_UP_TO if opponents is None else opponents + 1):
        plan = list(itertools.combinations(range(n), 2))
    else:
        # Neighbours on a circle: the responses are exchangeable draws, so which ones are neighbours carries no meaning.
        neighbours = (opponents or OPPONENTS) // 2  # on either side
        plan = [
            tuple(sorted((i, (i + step) % n)))
            for step in range(1, neighbours + 1)
            for i in range(n)
        ]
    return [
        order for shown in plan for order in ((shown, shown[::-1]) if both_orders else (shown,))
    ]


def letter_probs(
    logprobs: Sequence[float], forms: Sequence[Sequence[int]], renormalize: bool
) -> tuple[list[float], float]:
    """Probability of each letter from the log-probabilities of its forms (flat, letter by letter), and the mass of all letters.

    `renormalize` divides by that mass, in log space: letters that are all improbable still compare.
    """
    letters, start = [], 0
    for ids in forms:
        letters.append(_logsumexp(logprobs[start : start + len(ids)]))
        start += len(ids)
    total = _logsumexp(letters)
    shift = total if renormalize else 0.0
    return [math.exp(value - shift) for value in letters], math.exp(total)


def choice_probs(
    n: int, plan: Sequence[tuple[int, ...]], probs: Sequence[Sequence[float]]
) -> list[float]:
    """p_sel of each response: the mean, over the questions that show it, of the probability of its letter."""
    totals, counts = [0.0] * n, [0] * n
    for shown, letters in zip(plan, probs, strict=True):
        for response, probability in zip(shown, letters, strict=True):
            totals[response] += probability
            counts[response] += 1
    return [total / count for total, count in zip(totals, counts, strict=True)]


def calibrated_reward(reward: float, probability: float, weight: float, floor: float) -> float:
    """(1 - weight) * reward + weight * log max(probability, floor); reward in nats per token."""
    return (1.0 - weight) * reward + weight * math.log(max(probability, floor))


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return (
        top
        if top == -math.inf
        else top + math.log(math.fsum(math.exp(value - top) for value in values))
    )
