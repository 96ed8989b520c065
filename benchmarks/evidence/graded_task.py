"""An open-ended task: many answers are acceptable, and a known function says how good each is.

Quality:
    A prompt names items with their counts. A good answer reports all of them (coverage) in the
    prompt's order, beginning at any item and going round (order), none twice or wrong (length), and
    without an opening (form). So N items have N best answers, one for each that comes first.
    Answers of the law report N items, some of them twice: rewards are means over tokens, and where
    lengths differ much the mean, and not the quality, decides between answers.

Teacher:
    It is taught answers in proportion to exp(SHARPNESS * quality), so its likelihood of an answer
    rises with the quality. Its greedy answer is not a best one: the openings share their first
    word, which is likelier than any single item, and each of the best answers begins with another.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from dataclasses import dataclass
from functools import cache

ITEMS = 4  # a prompt names so many
LETTERS = "abcdefghkmnprstuvwxz"
WEIGHTS = {"coverage": 0.4, "order": 0.25, "length": 0.15, "form": 0.2}
FILLERS = ("boxes", "units", "tens", "Then", "does", "have", "now", "left", "up", "down")
OPENINGS = tuple(f"many {word} " for word in FILLERS)
SHARPNESS = 12.0  # the teacher's law
SLOPPY_SHARPNESS = 1.0  # base students are taught a nearly flat law
MISREAD = 0.03  # the share of counts that base students are taught wrong
ENTRY = re.compile(r"([a-z])(\d)")
BODY = re.compile(r"[a-z]\d(?: [a-z]\d)*")
Shape = tuple[str, tuple[int, ...]]  # an opening, and the places of the items that follow it


@dataclass(frozen=True)
class GradedTask:
    """A prompt: letters, and a count of one digit for each."""

    items: tuple[tuple[str, str], ...]

    @property
    def prompt(self) -> str:
        """What the user asks."""
        return "Which boxes: " + ", ".join(f"{name} {count}" for name, count in self.items)

    def answer(self, shape: Shape) -> str:
        """The answer of a shape."""
        opening, places = shape
        return opening + " ".join("".join(self.items[place]) for place in places)


def parse(prompt: str) -> GradedTask:
    """The task of a prompt."""
    return GradedTask(tuple(re.findall(r"([a-z]) (\d)", prompt.partition(":")[2])))


def parts(prompt: str, answer: str) -> dict[str, float]:
    """The four parts of an answer's quality, each from 0 to 1."""
    items = parse(prompt).items
    found = ENTRY.findall(answer)
    right = [items.index(entry) for entry in found if entry in items]
    steps = list(itertools.pairwise(right))
    follows = sum((after - before) % len(items) == 1 for before, after in steps)
    return {
        "coverage": len(set(right)) / len(items),
        "order": follows / len(steps) if steps else 0.0,
        "length": len(set(right)) / len(found) if found else 0.0,
        "form": float(BODY.fullmatch(answer.strip()) is not None),
    }


def quality(prompt: str, answer: str) -> float:
    """How good an answer is, from 0 to 1: the weighted sum of its parts.

    Args:
        prompt: what was asked.
        answer: any text.

    Example:
        >>> from benchmarks.evidence.graded_task import quality
        >>> prompt = "Which boxes: b 4, k 9, t 2, m 7"
        >>> quality(prompt, "t2 m7 b4 k9"), round(quality(prompt, "many boxes t2 m7 b4 k9"), 2)
        (1.0, 0.8)
    """
    found = parts(prompt, answer)
    return sum(weight * found[name] for name, weight in WEIGHTS.items())


@cache
def law(sharpness: float) -> tuple[tuple[Shape, ...], tuple[float, ...]]:
    """All shapes of answers, and their probabilities in proportion to exp(sharpness * quality)."""
    task = GradedTask(tuple(zip("abcd", "1234", strict=True)))
    shapes = tuple(
        (opening, places)
        for opening in ("", *OPENINGS)
        for places in itertools.product(range(ITEMS), repeat=ITEMS)
    )
    weights = [math.exp(sharpness * quality(task.prompt, task.answer(s))) for s in shapes]
    return shapes, tuple(weight / sum(weights) for weight in weights)


def split_of(prompt: str) -> str:
    """The split of a prompt, by its hash: 70% train, 12% validation, 18% held out."""
    share = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:2], "big") / 65536
    return "train" if share < 0.70 else "validation" if share < 0.82 else "heldout"


def draw(rng: random.Random, split: str) -> GradedTask:
    """A random prompt of a split."""
    while True:
        letters = rng.sample(LETTERS, ITEMS)
        task = GradedTask(tuple((letter, rng.choice("123456789")) for letter in letters))
        if split_of(task.prompt) == split:
            return task


def draw_distinct(seed: int, split: str, count: int) -> list[GradedTask]:
    """So many different prompts of a split; more of them begin with the same ones."""
    rng = random.Random(f"{seed}-{split}")
    found: dict[str, GradedTask] = {}
    while len(found) < count:
        task = draw(rng, split)
        found.setdefault(task.prompt, task)
    return list(found.values())


def lesson(rng: random.Random, sharpness: float, misread: float = 0.0) -> tuple[str, str]:
    """A prompt of the train split with an answer that is drawn from a law.

    Args:
        rng: draws.
        sharpness: of the law.
        misread: the probability of each count to be reported wrong.
    """
    task, (shapes, weights) = draw(rng, "train"), law(sharpness)
    answer = task.answer(rng.choices(shapes, weights)[0])
    wrong = [
        c if rng.random() >= misread or not c.isdigit() else rng.choice("123456789") for c in answer
    ]
    return task.prompt, "".join(wrong)
