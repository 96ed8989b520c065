"""The forms in which other projects keep responses, and what each says of a row.

docs/elsewhere.md has them in a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pad_fast.conversation.pairs import (
    PAIR,
    PAIR_SCORES,
    holds_pair,
    items_of,
    pair_in,
    score_of,
    text_of,
)
from pad_fast.files.stored_rows import Row

TEXTS = ("completions", "responses", "generations", "candidates")
SCORES = ("teacher_rewards", "rewards", "scores", "ratings")
TEXT_KEYS = ("response", "text", "content", "completion")
SCORE_KEYS = ("overall_score", "fine-grained_score", "score", "rating", "reward")
# What repeats the responses in other words, and is no part of a prompt.
BESIDES_A_PAIR = ("messages", "conversations")


@dataclass(frozen=True)
class Given:
    """What a row holds.

    Args:
        prompt: the columns that the prompt is read from.
        texts: the responses.
        scores: one for each, None where there is none; None if the row has no scores.
        reasons: "stop" or "length" for each.
        pair: whether the first was preferred to the second.
    """

    prompt: Row
    texts: list[str]
    scores: list[float | None] | None
    reasons: list[str]
    pair: bool = False


def holds_responses(row: Any) -> bool:
    """Whether a row has a column of responses."""
    return isinstance(row, Mapping) and any(row.get(name) is not None for name in (*TEXTS, *PAIR))


def given_in(row: Row) -> Given:
    """The responses of a row, in whichever form they are.

    Raises:
        ValueError: they are in none, or one of them is wrong.

    Example:
        >>> given_in({"prompt": "2+2=?", "chosen": "4", "rejected": "5"}).texts
        ['4', '5']
    """
    if holds_pair(row):
        return _pair(row)
    column = next((name for name in TEXTS if row.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"no responses: needs one of the columns {', '.join(TEXTS)}, or chosen and rejected; "
            f"got only {', '.join(map(str, row)) or 'none'}"
        )
    items = items_of(column, row[column])
    nested = bool(items) and all(isinstance(item, Mapping) for item in items)
    texts = [
        text_of(f"{column}[{i}]", _of(item, TEXT_KEYS) if nested else item)
        for i, item in enumerate(items)
    ]
    name = next((name for name in SCORES if row.get(name) is not None), None)
    scores = None
    if name is not None:
        scores = [
            score_of(f"{name}[{i}]", value) for i, value in enumerate(items_of(name, row[name]))
        ]
    elif nested and any(_rated(item) for item in items):
        name, scores = (
            column,
            [_nested_score(f"{column}[{i}]", item) for i, item in enumerate(items)],
        )
    reasons = items_of("finish_reasons", row.get("finish_reasons") or ["stop"] * len(texts))
    for other, values in ((name, scores), ("finish_reasons", reasons)):
        if values is not None and len(values) != len(texts):
            raise ValueError(
                f"{other}: must hold one value for each of the {len(texts)} {column}, got "
                f"{len(values)}"
            )
    if wrong := next((reason for reason in reasons if reason not in ("stop", "length")), None):
        raise ValueError(f"finish_reasons: must be stop or length, got {wrong!r}")
    dropped = {*TEXTS, *SCORES, "finish_reasons"}
    return Given({key: row[key] for key in row if key not in dropped}, texts, scores, reasons)


def _pair(row: Row) -> Given:
    """Chosen and rejected responses, which may hold the prompt too."""
    pair = pair_in(row)
    dropped = {*PAIR, *BESIDES_A_PAIR, *(name for names in PAIR_SCORES for name in names)}
    prompt = {key: row[key] for key in row if key not in dropped}
    if pair.prompt:
        prompt["prompt"] = pair.prompt
    return Given(prompt, pair.texts, pair.scores, ["stop", "stop"], pair=True)


def _of(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _rated(item: Mapping[str, Any]) -> bool:
    return _of(item, SCORE_KEYS) is not None or bool(item.get("annotations"))


def _nested_score(name: str, item: Mapping[str, Any]) -> float | None:
    """A score of its own, else the mean of the ratings in the annotations."""
    for key in SCORE_KEYS:
        if (found := score_of(f"{name}.{key}", item.get(key))) is not None:
            return found
    ratings = []
    for aspect, annotation in (item.get("annotations") or {}).items():
        rating = annotation.get("Rating") if isinstance(annotation, Mapping) else None
        ratings.append(score_of(f"{name}.annotations.{aspect}", rating))
    known = [rating for rating in ratings if rating is not None]
    return math.fsum(known) / len(known) if known else None
