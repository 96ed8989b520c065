"""The multiple-choice questions about a row of responses."""

from __future__ import annotations

from dataclasses import dataclass

from pad_fast.conversation import conversation_text
from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.config import RunConfig
from pad_fast.pipeline.multiple_choice import Question, choice_question, questions
from pad_fast.pipeline.score.teacher_view import TeacherView


@dataclass(frozen=True)
class Quiz:
    """The questions about one row.

    Args:
        asked: the responses that each question shows, as positions in ``TeacherView.readable``.
        prompts: the teacher's token ids of each question.
    """

    asked: list[Question]
    prompts: list[list[int]]


def configured_questions(config: RunConfig, n: int) -> list[Question]:
    """The questions about ``n`` responses that a run asks."""
    if not config.asks:
        return []
    return questions(n, config.mcq_style, bool(config.mcq_every_place), config.mcq_opponents)


def make_quiz(teacher: Checkpoint, config: RunConfig, row: Row, view: TeacherView) -> Quiz:
    """The questions about the responses that the teacher can read.

    There are none if one of them is longer than the teacher's window: with some of the questions
    alone, the responses' probabilities would not be comparable.
    """
    query = conversation_text(row["prompt"])
    texts = [teacher.chat.quoted(row["completions"][index]) for index in view.readable]
    asked = configured_questions(config, len(texts))
    prompts = []
    for shown in asked:
        candidates = [texts[position] for position in shown]
        text = choice_question(query, candidates, config.mcq_template)
        prompts.append(teacher.prompt_ids([{"role": "user", "content": text}]))
    if teacher.window is not None and any(len(ids) >= teacher.window for ids in prompts):
        return Quiz([], [])
    return Quiz(asked, prompts)
