"""AlpacaEval 2.0: one JSON array with an output for each of 805 instructions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pad_fast.evaluation.benchmarks.records import (
    Answer,
    Question,
    Row,
    read_rows,
    text_of,
    unique,
)
from pad_fast.evaluation.benchmarks.shapes import Object

SOURCE = (
    "https://huggingface.co/datasets/tatsu-lab/alpaca_eval/resolve/main/"
    "alpaca_eval_gpt4_baseline.json"
)
SHAPE = Object(
    {"instruction": str, "output": str, "generator": str, "dataset": str},
    optional=frozenset({"dataset"}),
)


def read_questions(path: Path) -> list[Question]:
    """The instructions of a file: a JSON array or JSON lines with ``instruction``, ``dataset``."""
    return unique([(place, _question(place, row)) for place, row in read_rows(path)])


def _question(place: str, row: Row) -> Question:
    instruction = text_of(place, row, "instruction")
    return Question(instruction, str(row.get("dataset") or ""), (instruction,))


def answer_row(answer: Answer, model: str) -> Row:
    """An item of the array. The instruction is untouched, since rows are matched on it."""
    row = {"instruction": answer.question.turns[0], "output": answer.turns[0], "generator": model}
    return row | ({"dataset": answer.question.category} if answer.question.category else {})


def answer_text(answers: Sequence[Answer], model: str) -> str:
    """The file that ``alpaca_eval --model_outputs`` reads, in the order of the questions."""
    rows = [answer_row(answer, model) for answer in answers]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def read_turns(row: Row) -> tuple[str, ...]:
    """The texts that a row of an answer file answers with."""
    return (row["output"],)
