"""The checker of answer files: fields, types, order, completeness and names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_fast.evaluation.benchmarks.catalogue import AnswerForm, recognised
from pad_fast.evaluation.benchmarks.records import Question, Row, is_array, read_rows
from pad_fast.evaluation.benchmarks.shapes import faults

SHOWN = 5  # ids in a message
# What the official tools write in place of an answer that their server did not give.
ERROR_OUTPUTS = ("$ERROR$", "ERROR")

Placed = Sequence[tuple[str, Row]]


@dataclass(frozen=True)
class AnswerFile:
    """An answer file that was read.

    Args:
        path: the file.
        form: its form.
        rows: its rows, each with its place for messages.
        faults: all that is wrong with it, a sentence each; empty if nothing is.
    """

    path: Path
    form: AnswerForm
    rows: Placed
    faults: list[str]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.rows[0][1].get(self.form.model))

    def turns(self) -> dict[Any, tuple[str, ...]]:
        """The texts of each answer by the id of its question.

        Raises:
            ValueError: something is wrong with the file.
        """
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            raise ValueError(f"{self.faults[0]}{more}; pad-fast benchmark check {self.path}")
        return {row[self.form.key]: self.form.turns(row) for _, row in self.rows}


def check_answers(
    path: Path, questions: Sequence[Question] | None = None, model: str | None = None
) -> AnswerFile:
    """Read an answer file and find all that an official tool would stumble over.

    Args:
        path: an answer file of any of the forms.
        questions: those that it should answer, all of them and no others; None does not look.
        model: the name that it should give the model; None takes any that is the same throughout.

    Raises:
        ValueError: the file cannot be read, or is no answer file at all.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: holds no answers")
    array = is_array(path)
    try:
        form = recognised(rows[0][1], array)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = [
        *_container_faults(path, form, array),
        *_row_faults(form, rows),
        *_name_faults(path, form, rows, model),
        *_order_faults(form, rows, questions),
    ]
    if questions is not None:
        found += _completeness_faults(path, form, rows, questions)
    return AnswerFile(path, form, rows, found)


def _container_faults(path: Path, form: AnswerForm, array: bool) -> Iterator[str]:
    if form.array != array:
        wanted = "one JSON array" if form.array else "JSON lines, an answer a line"
        yield f"{path}: {form.title} reads {wanted}"


def _row_faults(form: AnswerForm, rows: Placed) -> Iterator[str]:
    for place, row in rows:
        bad = list(faults(row, form.shape))
        for fault in bad:
            yield f"{place}: {fault}"
        if not bad:
            yield from (
                f"{place}: turn {number} is {text!r}, which stands for a failed request"
                for number, text in enumerate(form.turns(row), 1)
                if text in ERROR_OUTPUTS
            )


def _name_faults(path: Path, form: AnswerForm, rows: Placed, model: str | None) -> Iterator[str]:
    wanted = model if model is not None else rows[0][1].get(form.model)
    for place, row in rows:
        if (given := row.get(form.model)) != wanted:
            yield f"{place}: {form.model} must be {wanted!r}, got {given!r}"
    if form.named and path.stem != wanted:
        yield (
            f"{path}: must be named {wanted}.jsonl, since {form.title} takes the model's name from "
            "the file's"
        )


def _order_faults(
    form: AnswerForm, rows: Placed, questions: Sequence[Question] | None
) -> Iterator[str]:
    """Rows that repeat another, or stand in another order than the official tool's."""
    seen: dict[str, str] = {}
    keys: list[Any] = []
    for place, row in rows:
        key = row.get(form.key)
        if repr(key) in seen:
            yield f"{place}: {form.key} {key!r:.60} is answered at {seen[repr(key)]} already"
            continue
        seen[repr(key)] = place
        keys.append(key)
    if form.ordered and len({type(key) for key in keys}) == 1 and keys != sorted(keys):
        late = next(i for i in range(1, len(keys)) if keys[i] < keys[i - 1])
        yield f"{seen[repr(keys[late])]}: rows must be sorted by {form.key}"
    elif not form.ordered and questions is not None:
        wanted = [key for q in questions if repr(key := _key(form, q)) in seen]
        known = [key for key in keys if key in wanted]
        if astray := [given for given, asked in zip(known, wanted, strict=True) if given != asked]:
            yield f"{seen[repr(astray[0])]}: rows must be in the order of the questions"


def _completeness_faults(
    path: Path, form: AnswerForm, rows: Placed, questions: Sequence[Question]
) -> Iterator[str]:
    answered = {repr(row.get(form.key)): (place, row) for place, row in rows}
    asked = {repr(_key(form, question)): question for question in questions}
    if missing := [question for key, question in asked.items() if key not in answered]:
        shown = ", ".join(f"{_key(form, question)!r:.60}" for question in missing[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        yield f"{path}: {len(missing)} of {len(asked)} questions have no answer: {shown}{more}"
    for key, (place, row) in answered.items():
        if key not in asked:
            yield f"{place}: {form.key} {key:.60} is none of the questions"
        elif not list(faults(row, form.shape)):
            given, wanted = len(form.turns(row)), len(asked[key].turns)
            if given != wanted:
                yield f"{place}: must have {wanted} turns, got {given}"


def _key(form: AnswerForm, question: Question) -> Any:
    """What a row of the form calls a question."""
    return question.turns[0] if form.key in ("instruction", "question") else question.id
