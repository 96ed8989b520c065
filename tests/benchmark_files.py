"""Small files in the forms of the benchmarks' own, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS, AnswerForm
from pad_fast.evaluation.benchmarks.records import Answer, Question

MODEL = "small-model"
QUESTION_ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
        for n in range(1, 5)
    ],
    "alpaca_eval": [
        {"instruction": text, "output": "", "generator": "none", "dataset": dataset}
        for text, dataset in (("Say hi.", "koala"), ("Why?", "vicuna"), ("Name a sea.", "koala"))
    ],
    "arena_hard": [
        {"uid": uid, "category": "hard_prompt", "subcategory": kind, "prompt": f"Solve {uid}."}
        for uid, kind in (("c3", "math"), ("a1", "coding"), ("b2", "math"))
    ],
    "mt_bench": [
        {"question_id": n, "category": kind, "turns": [f"Write about {n}.", "Shorter."]}
        for n, kind in ((81, "writing"), (82, "math"), (83, "other"))
    ],
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_questions(folder: Path, name: str) -> Path:
    """The questions of a benchmark, three or four of them."""
    return write_lines(folder / f"{name}_questions.jsonl", QUESTION_ROWS[name])


def read_questions(folder: Path, name: str) -> list[Question]:
    return BENCHMARKS[name].questions(write_questions(folder, name))


def answers_to(questions: list[Question], text: str = "**Yes**, {turn}.") -> list[Answer]:
    """An answer to each question, with its turn in it."""
    return [
        Answer(q, tuple(text.format(turn=turn) for turn in q.turns), 1700000000.5 + n, tokens=7)
        for n, q in enumerate(questions)
    ]


def write_answers(folder: Path, form: AnswerForm, answers: list[Answer]) -> Path:
    """An answer file of a form, named as the official tool wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{MODEL}.{'json' if form.array else 'jsonl'}"
    path.write_text(form.text(answers, MODEL), encoding="utf-8")
    return path
