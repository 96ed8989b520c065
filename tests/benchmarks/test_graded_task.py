"""The graded task: its quality, its law, and that imitating the teacher's mode is not best."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from benchmarks.evidence.graded_task import (
    SHARPNESS,
    SLOPPY_SHARPNESS,
    draw_distinct,
    law,
    lesson,
    parse,
    parts,
    quality,
    split_of,
)
from benchmarks.evidence.worlds import GRADED, TINY

PROMPT = "Which boxes: b 4, k 9, t 2, m 7"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("b4 k9 t2 m7", (1, 1, 1, 1)),
        ("t2 m7 b4 k9", (1, 1, 1, 1)),
        ("many boxes b4 k9 t2 m7", (1, 1, 1, 0)),
        ("k9 b4", (0.5, 0, 1, 1)),
        ("b4 b4", (0.25, 0, 0.5, 1)),
        ("b4 k8 t2", (0.5, 0, 2 / 3, 1)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_the_parts_of_quality(answer, expected) -> None:
    found = parts(PROMPT, answer)
    assert tuple(found.values()) == pytest.approx(expected)
    assert quality(PROMPT, answer) == pytest.approx(np.dot(expected, (0.4, 0.25, 0.15, 0.2)))


def test_the_greedy_answer_of_the_law_is_not_a_best_one() -> None:
    """Word by word, the likeliest way leads to an answer of less than the best quality."""
    shapes, weights = law(SHARPNESS)
    task = parse(PROMPT)
    mass: dict[tuple[str, ...], float] = defaultdict(float)
    for shape, weight in zip(shapes, weights, strict=True):
        words = (*task.answer(shape).split(), "<end>")
        for place in range(1, len(words) + 1):
            mass[words[:place]] += weight
    greedy: tuple[str, ...] = ()
    while not greedy or greedy[-1] != "<end>":
        following = [way for way in mass if way[:-1] == greedy]
        greedy = max(following, key=mass.__getitem__)
    assert quality(PROMPT, " ".join(greedy[:-1])) == pytest.approx(0.8)
    best = [w for s, w in zip(shapes, weights, strict=True) if quality(PROMPT, task.answer(s)) == 1]
    assert len(best) == 4
    assert min(best) == pytest.approx(max(weights))  # and yet the best answers are the likeliest


def test_the_law_prefers_by_quality() -> None:
    task = parse(PROMPT)
    for sharpness in (SHARPNESS, SLOPPY_SHARPNESS):
        shapes, weights = law(sharpness)
        assert sum(weights) == pytest.approx(1)
        grades = np.array([quality(PROMPT, task.answer(shape)) for shape in shapes])
        slope = np.polyfit(grades, np.log(weights), 1)[0]
        assert slope == pytest.approx(sharpness)


def test_splits_do_not_meet() -> None:
    drawn = {split: draw_distinct(0, split, 50) for split in ("train", "validation", "heldout")}
    for split, tasks in drawn.items():
        assert {split_of(task.prompt) for task in tasks} == {split}
        assert len({task.prompt for task in tasks}) == 50
    assert draw_distinct(0, "train", 80)[:50] == drawn["train"]
    prompt, answer = lesson(random.Random(1), SHARPNESS)
    assert split_of(prompt) == "train"
    assert quality(prompt, answer) > 0.3


def test_misread_counts_are_worse() -> None:
    grades = [
        np.mean([quality(*lesson(random.Random(i), SHARPNESS, misread)) for i in range(300)])
        for misread in (0.0, 0.5)
    ]
    assert grades[0] - grades[1] > 0.1


def test_a_world_grades_its_own_answers() -> None:
    graded = {"prompt": [{"role": "user", "content": PROMPT}]}
    assert GRADED.is_right(graded, "k9 t2 m7 b4")
    assert not GRADED.is_right(graded, "k9 t2 m7")
    assert GRADED.grade(graded, "k9 t2 m7") == pytest.approx(0.9)
    sums = {"answer": "7"}
    assert (TINY.grade(sums, "3 + 4 = 7 #### 7"), TINY.grade(sums, "8")) == (1.0, 0.0)
