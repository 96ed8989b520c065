"""GSM8K: problems in words with one number as the answer, asked and scored as lm-eval does.

The wording, the stops, the two filters and the comparison are those of EleutherAI's task ``gsm8k``
(version 3.0, in lm-eval 0.4.13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pad_fast.evaluation.answers import extract_flexible, extract_strict, without_ignored
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

HUB = ("openai/gsm8k", "main")
SOURCE = "https://huggingface.co/datasets/openai/gsm8k"
SHOTS = 5
STOPS = ("Question:", "</s>", "<|im_end|>")
NOTHING = "[invalid]"  # what lm-eval's filter gives where it finds no number
FILTERS: Mapping[str, Callable[[str], str | None]] = {
    "strict-match": extract_strict,
    "flexible-extract": extract_flexible,
}
Z = 1.959963984540054  # the 97.5% quantile of the normal distribution
SHAPE = Object({"question": str, "solution": str, "output": str, "generator": str})


@dataclass(frozen=True)
class Share:
    """A share of right answers.

    Args:
        right: the number of right answers.
        count: the number of answers, at least 1.
    """

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.count

    @property
    def standard_error(self) -> float:
        """lm-eval's: the sample's standard deviation over the root of the count."""
        if self.count < 2:
            return math.nan
        return math.sqrt(self.value * (1 - self.value) / (self.count - 1))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval, which is no point where none or all are right."""
        spread = Z * Z / self.count
        middle = (self.value + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (self.value * (1 - self.value) + spread / 4)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)


def read_questions(path: Path) -> list[Question]:
    """The problems of a file of JSON lines with ``question`` and ``answer``."""
    return from_rows(read_rows(path))


def from_rows(rows: Sequence[tuple[str, Row]]) -> list[Question]:
    """The problems of rows, each with its place for messages."""
    return unique([(place, _question(place, row, n)) for n, (place, row) in enumerate(rows)])


def _question(place: str, row: Row, number: int) -> Question:
    solution = text_of(place, row, "answer")
    if extract_strict(solution) is None:
        raise ValueError(f"{place}: answer must end with #### and a number, got {solution!r:.80}")
    return Question(number, "", (text_of(place, row, "question"),), solution)


def asked(problem: str) -> str:
    """The wording of a problem."""
    return f"Question: {problem}\nAnswer:"


def shot_messages(shots: Sequence[Question], suffix: str = "") -> list[dict[str, str]]:
    """Solved problems as turns of user and assistant, each problem with a suffix."""
    found = []
    for shot in shots:
        found.append({"role": "user", "content": asked(shot.turns[0]) + suffix})
        found.append({"role": "assistant", "content": shot.solution})
    return found


def until_stop(text: str) -> str:
    """A response up to where lm-eval would have stopped it."""
    for stop in STOPS:
        text = text.partition(stop)[0]
    return text


def is_right(text: str, solution: str, name: str) -> bool:
    r"""Whether lm-eval's task calls a response right.

    Args:
        text: what the model wrote, up to :func:`until_stop`.
        solution: the expected solution, which ends with ``#### NUMBER``.
        name: the filter, a key of :data:`FILTERS`.

    Example:
        >>> is_right("He has 18 in all.", "9 * 2 = 18\n#### 18", "flexible-extract")
        True
        >>> is_right("He has 18 in all.", "9 * 2 = 18\n#### 18", "strict-match")
        False
    """
    found = FILTERS[name](text)
    return without_ignored(NOTHING if found is None else found) == without_ignored(solution)


def shares(pairs: Sequence[tuple[str, str]]) -> dict[str, Share]:
    """The share of right responses by each filter.

    Args:
        pairs: a response and the expected solution, for each of one problem or more.
    """
    return {
        name: Share(sum(is_right(text, solution, name) for text, solution in pairs), len(pairs))
        for name in FILTERS
    }


def answer_text(answers: Sequence[Answer], model: str) -> str:
    """The responses as JSON lines, to read and to check; lm-eval writes samples of its own."""
    return "".join(
        json_line(
            {
                "question": answer.question.turns[0],
                "solution": answer.question.solution,
                "output": answer.turns[0],
                "generator": model,
            }
        )
        for answer in answers
    )


def read_turns(row: Row) -> tuple[str, ...]:
    """The texts that a row of an answer file answers with."""
    return (row["output"],)
