"""Sampled responses as the teacher reads them.

Text is what student and teacher share: their tokenizers and chat templates may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint


@dataclass(frozen=True)
class TeacherView:
    """The teacher's token ids of one row.

    A response that the teacher cannot read, because it is empty or longer than its window allows,
    has no ids.
    """

    prompt: list[int]
    responses: list[list[int]]

    @property
    def readable(self) -> list[int]:
        """The indices of the responses that the teacher can read."""
        return [index for index, ids in enumerate(self.responses) if ids]

    @property
    def lengths(self) -> list[int]:
        """The tokens of the readable responses."""
        return [len(ids) for ids in self.responses if ids]

    def for_all(self, values: Sequence[float]) -> list[float | None]:
        """Values of the readable responses as values of all, with None for the others."""
        found: list[float | None] = [None] * len(self.responses)
        for index, value in zip(self.readable, values, strict=True):
            found[index] = value
        return found


def teacher_view(teacher: Checkpoint, row: Row, *, reuse_ids: bool) -> TeacherView:
    """The teacher's token ids of a row of responses.

    Args:
        teacher: the teacher.
        row: a row as sampling writes it.
        reuse_ids: take the sampled ids as they are, because both models have the same tokenizer
            and chat template. Otherwise the text is tokenized again, as it follows the prompt in
            the teacher's chat template, and the teacher's end of turn is added to the responses
            that the student ended. A prompt is read anew if the teacher has a system prompt.
    """
    reuse_prompt = reuse_ids and teacher.system_prompt is None
    prompt = row["prompt_ids"] if reuse_prompt else teacher.prompt_ids(row["prompt"])
    responses = []
    for text, ids, reason in zip(
        row["completions"], row["completion_ids"], row["finish_reasons"], strict=True
    ):
        if not reuse_ids:
            ids = teacher.response_ids(row["prompt"], text, reason)
        fits = teacher.window is None or len(prompt) + len(ids) <= teacher.window
        responses.append(ids if fits else [])
    return TeacherView(prompt, responses)
