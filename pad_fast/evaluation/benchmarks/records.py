"""A question of a benchmark, a model's answer to it, and the rows of their JSON files."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_fast.files.user_files import is_json_list, json_rows

Row = dict[str, Any]

# The alphabet of the package shortuuid, which the official tools take their ids from.
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_LENGTH = 22
_NAMESPACE = uuid.UUID("6d0e8a6c-4a0c-5b57-9d0a-1a4c7b0e9f11")


@dataclass(frozen=True)
class Question:
    """A question with all of its turns.

    Args:
        id: what the benchmark knows it by: a number, a hexadecimal text, or AlpacaEval's
            instruction itself.
        category: its category there; empty if it has none.
        turns: what the user says, turn by turn.
        solution: the expected solution; empty where a judge decides.
    """

    id: str | int
    category: str
    turns: tuple[str, ...]
    solution: str = ""


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question.

    Args:
        question: what was asked.
        turns: a text for each of the question's turns.
        time: when it was generated, in seconds since 1970.
        tokens: the number of tokens of all turns in the encoding that the official tool counts in;
            0 where it does not.
        system: the system prompt that was set; empty if none.
    """

    question: Question
    turns: tuple[str, ...]
    time: float
    tokens: int = 0
    system: str = ""

    def id(self, model: str) -> str:
        """An id in the form of shortuuid's, the same whenever the same answer is written."""
        name = json.dumps([model, self.question.id, self.turns, self.time])
        number, letters = uuid.uuid5(_NAMESPACE, name).int, ""
        for _ in range(_LENGTH):
            number, digit = divmod(number, len(_ALPHABET))
            letters = _ALPHABET[digit] + letters
        return letters


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The objects in a file, a JSON array or JSON lines, each with its place for messages.

    Raises:
        ValueError: there is no such file, or a part of it is no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    found = []
    for place, value in json_rows(path):
        if not isinstance(value, dict):
            raise ValueError(f"{place}: must be a JSON object, got {type(value).__name__}")
        found.append((place, value))
    return found


def is_array(path: Path) -> bool:
    """Whether a file holds one JSON array, and not JSON lines."""
    return is_json_list(path)


def text_of(place: str, row: Row, *names: str) -> str:
    """The first text of these names that a row holds.

    Raises:
        ValueError: it holds none, or a blank one.
    """
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {' or '.join(names)} must be a text, got {value!r:.80}")
    return value


def unique(questions: Sequence[tuple[str, Question]]) -> list[Question]:
    """The questions without their places.

    Raises:
        ValueError: two have one id, or there are none.
    """
    seen: dict[str | int, str] = {}
    for place, question in questions:
        if question.id in seen:
            raise ValueError(
                f"{place}: the question {question.id!r:.60} stands at {seen[question.id]} too"
            )
        seen[question.id] = place
    if not questions:
        raise ValueError("questions: the file holds none")
    return [question for _, question in questions]


def json_line(row: Row) -> str:
    """A row as a line of a JSON lines file."""
    return json.dumps(row, ensure_ascii=False) + "\n"
