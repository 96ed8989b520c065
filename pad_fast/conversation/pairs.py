"""Pairs of a chosen and a rejected response, in the forms in which preference datasets keep them.

docs/elsewhere.md has them in a table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

PAIR = ("chosen", "rejected")
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
BY_RANK = [1.0, 0.0]  # the rewards of a pair without scores
NO_SCORE = ("", "n/a", "na", "none", "null", "nan")  # how files write that there is none
LARGEST = 3.4e38  # float32's
TURN = re.compile(r"\n\nHuman:|\n\nAssistant:")
ROLES = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


class Pair(NamedTuple):
    """What a row with ``chosen`` and ``rejected`` holds."""

    prompt: list[dict[str, Any]]  # the messages in front of both, if they stand there
    texts: list[str]  # the chosen and the rejected response
    scores: list[float | None] | None  # None for a row without scores


def holds_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row has a chosen and a rejected response."""
    return all(row.get(name) is not None for name in PAIR)


def pair_in(row: Mapping[str, Any]) -> Pair:
    """The chosen and the rejected response of a row, which may hold the prompt too.

    Raises:
        ValueError: one of them is no response, or they answer different prompts.

    Example:
        >>> pair_in({"chosen": "4", "rejected": "5", "score_chosen": 9, "score_rejected": "2"})
        Pair(prompt=[], texts=['4', '5'], scores=[9.0, 2.0])
    """
    sides = [_conversation(name, row[name]) for name in PAIR]
    (chosen_prompt, chosen), (rejected_prompt, rejected) = sides
    if chosen_prompt != rejected_prompt:
        raise ValueError("chosen and rejected: must answer one prompt, and begin differently")
    scores = None
    for names in PAIR_SCORES:
        values = [score_of(name, row.get(name)) for name in names]
        scores = values if scores is None and values != [None, None] else scores
    return Pair(chosen_prompt, [chosen, rejected], scores)


def _conversation(name: str, value: Any) -> tuple[list[dict[str, Any]], str]:
    """The messages before the response, if they stand with it, and the response."""
    if isinstance(value, str):
        marks = TURN.findall(value)
        if not value.startswith("\n\nHuman:") or not marks[-1].endswith("Assistant:"):
            return [], value
        messages: list[dict[str, Any]] = [  # Anthropic's HH-RLHF
            {"role": ROLES[mark], "content": text.strip()}
            for mark, text in zip(marks, TURN.split(value)[1:], strict=True)
        ]
    else:
        messages = items_of(name, [value] if isinstance(value, Mapping) else value)
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise ValueError(
            f"{name}: must be a text, or messages of which the last is the assistant's, got "
            f"{value!r:.80}"
        )
    return list(messages[:-1]), text_of(name, last.get("content"))


def items_of(name: str, value: Any) -> list[Any]:
    """The items of a list or a tuple; ValueError for anything else."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: must be a list, got {value!r:.80}")
    return list(value)


def text_of(name: str, value: Any) -> str:
    """A text, also in one assistant message or in a list of one; ValueError for anything else."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    if isinstance(value, Mapping) and value.get("role") == "assistant":
        value = value.get("content")
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be a text or one assistant message, got {value!r:.80}")
    return value


def score_of(name: str, value: Any) -> float | None:
    """A number, also as text; None where a file says that there is none, as by NaN.

    Raises:
        ValueError: it is neither, or not finite in float32.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in NO_SCORE):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
            raise ValueError
        found = float(value)
    except ValueError:
        raise ValueError(f"{name}: must be a number, or null for none, got {value!r:.80}") from None
    if math.isnan(found):
        return None
    if abs(found) > LARGEST:
        raise ValueError(f"{name}: must be finite in float32, got {value!r:.80}")
    return found
