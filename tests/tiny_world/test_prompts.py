"""The prompts: right answers, splits without a common prompt, and slips that are wrong."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
from embedded_world import SPLITS, WORLD, prompts, rows

from pad_fast.evaluation import exact_match

SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 7 * 86400}
METRES = {"mm": 1, "cm": 10, "m": 1000, "km": 10**6}
GRAMS, LITRES = {"g": 1, "kg": 1000}, {"ml": 1, "l": 1000}


def convert(value: int, source: str, target: str) -> str:
    sizes = next(sizes for sizes in (SECONDS, METRES, GRAMS, LITRES) if source in sizes)
    result, rest = divmod(value * sizes[source], sizes[target])
    assert rest == 0
    if result > value:
        return f"{value} * {sizes[source] // sizes[target]} = {result} {target}"
    return f"{value} / {sizes[target] // sizes[source]} = {result} {target}"


def solve(prompt: str) -> tuple[str, str]:
    """The skill and the answer, from the text alone and in another way than the generator's."""
    numbers = [int(n) for n in re.findall(r"\d+", prompt)]
    words = prompt.split()
    if words[0] == "Add" or " + " in prompt:
        return "addition", str(sum(numbers))
    if words[0] == "Subtract" or " - " in prompt:
        return "subtraction", str(abs(numbers[0] - numbers[1]))
    if words[0] == "Sort":
        return "sorting", " ".join(map(str, sorted(numbers, reverse=words[-1] != "up.")))
    if '"' in prompt:
        text = prompt.split('"')[1]
        swapped = f"{text[-1]}{text[1:-1]}{text[0]}"
        return "string_edit", "".join(reversed(text)) if words[0] == "Reverse" else swapped
    if words[0] == "Convert":
        return "conversion", convert(numbers[0], words[2], words[4][:-1])
    if words[3:4] == ["are"]:
        return "conversion", convert(numbers[0], words[5][:-1], words[2])
    have = numbers[0] * numbers[1] if " boxes of " in prompt else numbers[0] + numbers[1]
    return "word_problem", str(have - (numbers[2] if "gives" in words else 0))


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right(split: str) -> None:
    for row in rows(split):
        assert (row["skill"], row["answer"]) == solve(row["prompt"][0]["content"])


def test_splits_share_no_prompt_and_hold_every_skill() -> None:
    texts = {split: prompts(split) for split in SPLITS}
    assert [len(texts[split]) for split in SPLITS] == [3000, 402, 600]
    everything = [text for split in SPLITS for text in texts[split]]
    assert len(set(everything)) == len(everything)
    for split in SPLITS:
        counts = [
            sum(row["skill"] == skill for row in rows(split))
            for skill in {row["skill"] for row in rows(split)}
        ]
        assert len(counts) == 6
        assert len(set(counts)) == 1


def test_split_is_a_hash_of_the_prompt(tools: Any) -> None:
    for split in SPLITS:
        for prompt in prompts(split):
            share = int(hashlib.sha256(prompt.encode()).hexdigest()[:4], 16) / 2**16
            assert split == (
                "train" if share < 0.7 else "validation" if share < 0.82 else "heldout"
            )
        assert all(
            tools.tasks.split_of(tools.tasks.draw(random.Random(7), skill, split).prompt) == split
            for skill in tools.tasks.SKILLS
        )


def test_responses_are_right_and_slips_are_wrong(tools: Any) -> None:
    rng = random.Random(0)
    for make in tools.tasks.SKILLS.values():
        for task in [make(rng) for _ in range(300)]:
            assert (task.skill, task.answer) == solve(task.prompt)
            assert exact_match(task.response, task.answer)
            assert task.slips
            assert not any(exact_match(slip, task.answer) for slip in task.slips)


def test_word_problem_and_columns_read_like_this(tools: Any) -> None:
    shown = {task.prompt: task.response for task in tools.tasks.draw_distinct(0, "train", 3000)}
    for prompt, response in shown.items():
        steps = re.findall(r"(\d+) ([+*/-]) (\d+) = (\d+)", response)
        for a, sign, b, c in steps:
            assert {
                "+": int(a) + int(b),
                "-": int(a) - int(b),
                "*": int(a) * int(b),
                "/": int(a) / int(b),
            }[sign] == int(c)
        if columns := re.match(r"units (\d+), tens (\d+) #### (\d+)$", response):
            units, tens, result = map(int, columns.groups())
            carried = units // 10
            assert result == 10 * (tens - carried) + units, prompt


def test_prompts_and_tokenizer_are_what_the_script_makes(tools: Any, tmp_path: Path) -> None:
    tools.make.write_prompts(tmp_path, seed=0)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (WORLD / f"{split}.jsonl").read_bytes()
    tools.tokenizer.build().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (
        WORLD / "student" / "tokenizer.json"
    ).read_bytes()
