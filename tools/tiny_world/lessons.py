"""What the models learn from: right answers and multiple choice, or a careless pupil's notes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from pad_fast.pipeline.multiple_choice import choice_question
from tiny_world import measure
from tiny_world.tasks import LETTERS, SKILLS, WORDING, Task, draw, draw_distinct
from tiny_world.train import IGNORED, Row

CHOICE_FROM = 300  # steps of plain questions that come first: choosing builds on answering
PROBE_EVERY = 25  # steps between two measurements of a pupil


def misprint(rng: random.Random, task: Task) -> str:
    """The right response with one digit, or one letter of an edited string, replaced."""
    text = task.response
    places = [i for i, c in enumerate(text) if c.isdigit() or task.skill == "string_edit"]
    while True:
        i = rng.choice(places)
        changed = (
            text[:i] + rng.choice("0123456789" if text[i].isdigit() else LETTERS) + text[i + 1 :]
        )
        if changed != text:
            return changed


def wrong_answer(rng: random.Random, task: Task) -> str:
    """A slip, or a misprint, which may be in the working only."""
    return rng.choice(task.slips) if rng.random() < 0.6 else misprint(rng, task)


def answer_rows(tokenizer: PreTrainedTokenizerFast, turns: Sequence[tuple[str, str]]) -> list[Row]:
    """Sequences in which the assistant's reply and its end of turn are learned.

    Args:
        tokenizer: the tokenizer of both models.
        turns: pairs of what the user says and what the assistant replies.
    """
    prompts = measure.prompt_ids(tokenizer, [question for question, _ in turns])
    replies = tokenizer(
        [reply + tokenizer.eos_token for _, reply in turns], add_special_tokens=False
    )["input_ids"]
    pairs = zip(prompts, replies, strict=True)
    return [
        Row((prompt + reply)[:-1], [IGNORED] * (len(prompt) - 1) + reply) for prompt, reply in pairs
    ]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The index of the first token that differs; the shorter length if none does."""
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))


def find(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    """The first index from ``start`` on at which ``part`` begins."""
    return next(i for i in range(start, len(ids)) if ids[i : i + len(part)] == part)


def choice_row(tokenizer: PreTrainedTokenizerFast, rng: random.Random, task: Task, n: int) -> Row:
    """A multiple-choice question with one right candidate of ``n``, in any place, and its letter.

    The row also marks from which token on each candidate is wrong.
    """
    candidates = [wrong_answer(rng, task) for _ in range(n)]
    right = rng.randrange(n)
    candidates[right] = task.response
    row = answer_rows(
        tokenizer, [(choice_question(task.prompt, candidates, WORDING), "ABCD"[right])]
    )[0]
    doubts = [IGNORED] * len(row.ids)
    truth, *options = tokenizer(
        [f" {text}" for text in (task.response, *candidates)], add_special_tokens=False
    )["input_ids"]
    place = 0
    for letter, option in zip("ABCD", options, strict=False):
        mark = tokenizer(f"\n{letter}.", add_special_tokens=False)["input_ids"]
        place = find(row.ids, mark, place) + len(mark)
        wrong_from = first_difference(option, truth)
        doubts[place : place + len(option)] = [int(i >= wrong_from) for i in range(len(option))]
    return Row(row.ids, row.labels, doubts)


class Teaching:
    """The teacher's lessons, which show right answers only.

    From step ``CHOICE_FROM`` on, half of the batch asks which of some answers is right.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch: int) -> None:
        self.tokenizer, self.batch = tokenizer, batch

    def __call__(self, rng: random.Random, step: int) -> list[list[Row]]:
        tasks = [draw(rng, rng.choice(list(SKILLS)), "train") for _ in range(self.batch)]
        if step < CHOICE_FROM:
            return [answer_rows(self.tokenizer, [(task.prompt, task.response) for task in tasks])]
        half = self.batch // 2
        choices = [
            choice_row(self.tokenizer, rng, task, rng.choice((2, 2, 2, 3, 4)))
            for task in tasks[half:]
        ]
        return [
            answer_rows(self.tokenizer, [(task.prompt, task.response) for task in tasks[:half]]),
            choices,
        ]


class Pupil:
    """The student's lessons: a share of the replies are slips, and lagging skills come more often.

    The skills differ in how fast they are learned. Every ``PROBE_EVERY`` steps, greedy accuracy is
    measured on fixed prompts of the train split, and the weight of a skill becomes
    (1.05 - accuracy)^2.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, batch: int, sloppy: float, seed: int
    ) -> None:
        self.tokenizer, self.batch, self.sloppy = tokenizer, batch, sloppy
        self.probe = draw_distinct(seed + 1000, "train", 240)
        self.weights = [1.0] * len(SKILLS)

    def __call__(self, rng: random.Random, step: int) -> list[list[Row]]:
        turns = []
        for skill in rng.choices(list(SKILLS), self.weights, k=self.batch):
            task = draw(rng, skill, "train")
            turns.append(
                (
                    task.prompt,
                    rng.choice(task.slips) if rng.random() < self.sloppy else task.response,
                )
            )
        return [answer_rows(self.tokenizer, turns)]

    def examine(self, model: LlamaForCausalLM) -> float:
        """Greedy accuracy on the probe, after which the weights follow it."""
        texts = measure.decode(self.tokenizer, measure.generate(model, self.tokenizer, self.probe))
        found = measure.accuracy(self.probe, texts)
        self.weights = [(1.05 - found[skill]) ** 2 for skill in SKILLS]
        return found["all"]
