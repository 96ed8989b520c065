"""The forms in which other projects keep responses, and what each says of a row.

docs/elsewhere.md has them in a table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pad_fast.pipeline.whole_files import Row

TEXTS = ("completions", "responses", "generations", "candidates")
SCORES = ("teacher_rewards", "rewards", "scores", "ratings")
TEXT_KEYS = ("response", "text", "content", "completion")
SCORE_KEYS = ("overall_score", "fine-grained_score", "score", "rating", "reward")
PAIR = ("chosen", "rejected")
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
# What repeats the responses in other words, and is no part of a prompt.
BESIDES_A_PAIR = ("messages", "conversations")
NONE = ("", "n/a", "na", "none", "null", "nan")  # how files write that there is no score
LARGEST = 3.4e38  # float32's
TURN = re.compile(r"\n\nHuman:|\n\nAssistant:")
ROLES = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


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
    if all(row.get(name) is not None for name in PAIR):
        return _pair(row)
    column = next((name for name in TEXTS if row.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"no responses: needs one of the columns {', '.join(TEXTS)}, or chosen and rejected; "
            f"got only {', '.join(map(str, row)) or 'none'}"
        )
    items = _list(column, row[column])
    nested = bool(items) and all(isinstance(item, Mapping) for item in items)
    texts = [
        _text(f"{column}[{i}]", _of(item, TEXT_KEYS) if nested else item)
        for i, item in enumerate(items)
    ]
    name = next((name for name in SCORES if row.get(name) is not None), None)
    scores = None
    if name is not None:
        scores = [_score(f"{name}[{i}]", value) for i, value in enumerate(_list(name, row[name]))]
    elif nested and any(_rated(item) for item in items):
        name, scores = (
            column,
            [_nested_score(f"{column}[{i}]", item) for i, item in enumerate(items)],
        )
    reasons = _list("finish_reasons", row.get("finish_reasons") or ["stop"] * len(texts))
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
    sides = [_conversation(name, row[name]) for name in PAIR]
    (chosen_prompt, chosen), (rejected_prompt, rejected) = sides
    if chosen_prompt != rejected_prompt:
        raise ValueError("chosen and rejected: must answer one prompt, and begin differently")
    scores = None
    for names in PAIR_SCORES:
        values = [_score(name, row.get(name)) for name in names]
        scores = values if scores is None and values != [None, None] else scores
    dropped = {*PAIR, *BESIDES_A_PAIR, *(name for names in PAIR_SCORES for name in names)}
    prompt = {key: row[key] for key in row if key not in dropped}
    if chosen_prompt:
        prompt["prompt"] = chosen_prompt
    return Given(prompt, [chosen, rejected], scores, ["stop", "stop"], pair=True)


def _conversation(name: str, value: Any) -> tuple[list[Row], str]:
    """The messages before the response, if they stand with it, and the response."""
    if isinstance(value, str):
        marks = TURN.findall(value)
        if not value.startswith("\n\nHuman:") or not marks[-1].endswith("Assistant:"):
            return [], value
        messages: list[Row] = [  # Anthropic's HH-RLHF
            {"role": ROLES[mark], "content": text.strip()}
            for mark, text in zip(marks, TURN.split(value)[1:], strict=True)
        ]
    else:
        messages = _list(name, [value] if isinstance(value, Mapping) else value)
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise ValueError(
            f"{name}: must be a text, or messages of which the last is the assistant's, got "
            f"{value!r:.80}"
        )
    return list(messages[:-1]), _text(name, last.get("content"))


def _of(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: must be a list, got {value!r:.80}")
    return list(value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    if isinstance(value, Mapping) and value.get("role") == "assistant":
        value = value.get("content")
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be a text or one assistant message, got {value!r:.80}")
    return value


def _rated(item: Mapping[str, Any]) -> bool:
    return _of(item, SCORE_KEYS) is not None or bool(item.get("annotations"))


def _nested_score(name: str, item: Mapping[str, Any]) -> float | None:
    """A score of its own, else the mean of the ratings in the annotations."""
    for key in SCORE_KEYS:
        if (found := _score(f"{name}.{key}", item.get(key))) is not None:
            return found
    ratings = []
    for aspect, annotation in (item.get("annotations") or {}).items():
        rating = annotation.get("Rating") if isinstance(annotation, Mapping) else None
        ratings.append(_score(f"{name}.annotations.{aspect}", rating))
    known = [rating for rating in ratings if rating is not None]
    return math.fsum(known) / len(known) if known else None


def _score(name: str, value: Any) -> float | None:
    """A number, also as text; None where a file says that there is none, as by NaN."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NONE):
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
