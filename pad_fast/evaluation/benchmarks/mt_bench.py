"""MT-Bench: 80 questions of two turns, and a line for each answer with both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pad_fast.evaluation.benchmarks.records import (
    Answer,
    Question,
    Row,
    json_line,
    read_rows,
    text_of,
    unique,
)
from pad_fast.evaluation.benchmarks.shapes import Object

SOURCE = (
    "https://raw.githubusercontent.com/lm-sys/FastChat/main/"
    "fastchat/llm_judge/data/mt_bench/question.jsonl"
)
# The temperatures of FastChat's llm_judge (common.py); it takes 0.7 for any other category.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
SHAPE = Object(
    {
        "question_id": int,
        "answer_id": str,
        "model_id": str,
        "choices": [Object({"index": int, "turns": [str]})],
        "tstamp": float,
    }
)


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of JSON lines with ``question_id``, ``category`` and ``turns``."""
    return unique([(place, _question(place, row)) for place, row in read_rows(path)])


def _question(place: str, row: Row) -> Question:
    number, turns = row.get("question_id"), row.get("turns")
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{place}: question_id must be a whole number, got {number!r:.80}")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise ValueError(f"{place}: turns must be a list of texts, got {turns!r:.80}")
    return Question(number, text_of(place, row, "category"), tuple(turns))


def temperature(question: Question) -> float:
    """The temperature of the question's category."""
    return TEMPERATURES.get(question.category, OTHER_TEMPERATURE)


def answer_row(answer: Answer, model: str) -> Row:
    """A line of ``data/mt_bench/model_answer/MODEL.jsonl``."""
    return {
        "question_id": answer.question.id,
        "answer_id": answer.id(model),
        "model_id": model,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": answer.time,
    }


def answer_text(answers: Sequence[Answer], model: str) -> str:
    """The file that FastChat reads, sorted by question_id as its own are."""
    ordered = sorted(answers, key=lambda answer: answer.question.id)
    return "".join(json_line(answer_row(answer, model)) for answer in ordered)


def read_turns(row: Row) -> tuple[str, ...]:
    """The texts that a row of an answer file answers with."""
    return tuple(row["choices"][0]["turns"])
