"""Arena-Hard: a line for each answer, in the form of v0.1 and v2.0 or in the one before that.

arena-hard-auto changed its answer files in April 2025 and converted those of v0.1 too. ``LEGACY``
is the form before, which published results of 2024 and the papers of that time have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pad_fast.evaluation.benchmarks.records import (
    Answer,
    Question,
    Row,
    json_line,
    read_rows,
    text_of,
    unique,
)
from pad_fast.evaluation.benchmarks.shapes import Object, faults
from pad_fast.evaluation.benchmarks.style_counts import style_counts

SOURCE = (
    "https://raw.githubusercontent.com/lmarena/arena-hard-auto/"
    "196f6b826783b3da7310e361a805fa36f0be83f3/data/arena-hard-v2.0/question.jsonl"
)
FORMS = ("v2", "legacy")
CURRENT, LEGACY = FORMS

_STYLE = {
    "token_len": int,
    "header_count": Object({f"h{level}": int for level in range(1, 7)}),
    "list_count": Object({"ordered": int, "unordered": int}),
    "bold_count": Object({"**": int, "__": int}),
}
_ASSISTANT = Object({"thought": str, "answer": str}, optional=frozenset({"thought"}))


def _messages(value: Any, at: str) -> Iterator[str]:
    """A system prompt if there is one, the user's question, and the answer as an object."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        yield f"{at} must be a list of objects, got {value!r:.60}"
        return
    roles = [item.get("role") for item in value]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        yield f"{at} must be messages of user and assistant, got the roles {roles}"
        return
    for place, item in enumerate(value):
        content = _ASSISTANT if item["role"] == "assistant" else str
        # Files that pandas has written have content first.
        shape = Object({"role": str, "content": content}, ordered=False)
        yield from faults(item, shape, f"{at}[{place}]")


SHAPE = Object(
    {
        "uid": str,
        "ans_id": str,
        "model": str,
        "messages": _messages,
        "tstamp": float,
        "metadata": Object(_STYLE),
    },
    optional=frozenset({"metadata"}),  # answers to v0.1 that were converted have none
)
_LEGACY_TURN = Object({"content": str, "token_len": int}, optional=frozenset({"token_len"}))
LEGACY_SHAPE = Object(
    {
        "question_id": str,
        "answer_id": str,
        "model_id": str,
        "choices": [Object({"index": int, "turns": [_LEGACY_TURN]})],
        "tstamp": float,
        "conv_metadata": Object(_STYLE),
    },
    optional=frozenset({"conv_metadata"}),
)


def read_questions(path: Path) -> list[Question]:
    """The questions of v2.0, of v0.1, or of v0.1 in its older form."""
    return unique([(place, _question(place, row)) for place, row in read_rows(path)])


def _question(place: str, row: Row) -> Question:
    turns = row.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        prompt = text_of(f"{place}, turns[0]", turns[0], "content")
    else:
        prompt = text_of(place, row, "prompt")
    category = row.get("subcategory") or row.get("category") or ""
    return Question(text_of(place, row, "uid", "question_id"), str(category), (prompt,))


def answer_row(answer: Answer, model: str) -> Row:
    """A line of ``data/arena-hard-v2.0/model_answer/MODEL.jsonl``, or of v0.1's."""
    text = answer.turns[0]
    system = [{"role": "system", "content": answer.system}] if answer.system else []
    return {
        "uid": answer.question.id,
        "ans_id": answer.id(model),
        "model": model,
        "messages": [
            *system,
            {"role": "user", "content": answer.question.turns[0]},
            {"role": "assistant", "content": {"answer": text}},
        ],
        "tstamp": answer.time,
        "metadata": {"token_len": answer.tokens, **style_counts(text)},
    }


def legacy_row(answer: Answer, model: str) -> Row:
    """A line in the form before April 2025."""
    text = answer.turns[0]
    return {
        "question_id": answer.question.id,
        "answer_id": answer.id(model),
        "model_id": model,
        "choices": [{"index": 0, "turns": [{"content": text, "token_len": answer.tokens}]}],
        "tstamp": answer.time,
        "conv_metadata": {"token_len": answer.tokens, **style_counts(text)},
    }


def answer_text(answers: Sequence[Answer], model: str) -> str:
    """The file that arena-hard-auto reads, sorted by uid as its own are."""
    ordered = sorted(answers, key=lambda answer: answer.question.id)
    return "".join(json_line(answer_row(answer, model)) for answer in ordered)


def legacy_text(answers: Sequence[Answer], model: str) -> str:
    """The same in the form before April 2025."""
    ordered = sorted(answers, key=lambda answer: answer.question.id)
    return "".join(json_line(legacy_row(answer, model)) for answer in ordered)


def read_turns(row: Row) -> tuple[str, ...]:
    """The texts that a row of an answer file answers with, in either form."""
    if "messages" in row:
        return (row["messages"][-1]["content"]["answer"],)
    return tuple(turn["content"] for turn in row["choices"][0]["turns"])
