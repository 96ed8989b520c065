"""Make the graded world from a seed: a teacher, base students, and prompts in three splits.

Usage:
    python tools/make_graded_world.py --out DIR    # all, with the student of seed 1
    python tools/make_graded_world.py --out DIR --only student --student-seed 2

The task is `benchmarks/evidence/graded_task.py`: many answers are acceptable, and a known function
says how good each is. The teacher learns answers in proportion to exp(12 * quality), a student a
nearly flat law with misread counts. `facts.json` says what both reach on held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from make_tiny_world import save
from tiny_world.lessons import answer_rows
from tiny_world.measure import decode, generate
from tiny_world.tokenizer import build
from tiny_world.train import Recipe, Row, build_model, train
from tqdm import tqdm
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evidence.graded_task import (
    MISREAD,
    SHARPNESS,
    SLOPPY_SHARPNESS,
    draw_distinct,
    lesson,
    quality,
)

SIZES = {"train": 3000, "validation": 400, "heldout": 600}
TEACHER = Recipe(hidden=96, layers=3, steps=900, batch=128, learning_rate=4e-3, decay_from=0.5)
STUDENT = Recipe(hidden=80, layers=2, steps=400, batch=96, learning_rate=3e-3, decay_from=0.5)


class Lessons:
    """Batches of prompts with answers that are drawn from a law."""

    def __init__(self, tokenizer: Any, batch: int, sharpness: float, misread: float) -> None:
        self.tokenizer, self.batch = tokenizer, batch
        self.sharpness, self.misread = sharpness, misread

    def __call__(self, rng: random.Random, step: int) -> list[list[Row]]:
        turns = [lesson(rng, self.sharpness, self.misread) for _ in range(self.batch)]
        return [answer_rows(self.tokenizer, turns)]


def make(name: str, recipe: Recipe, seed: int, out: Path) -> dict[str, Any]:
    """Train a model, save it with its tokenizer, and measure it on 100 held-out prompts."""
    tokenizer, began = build(), time.perf_counter()
    model = build_model(recipe, tokenizer, seed)
    law = (SHARPNESS, 0.0) if name == "teacher" else (SLOPPY_SHARPNESS, MISREAD)
    lessons = Lessons(tokenizer, recipe.batch, *law)
    for _ in tqdm(train(model, lessons, recipe, seed), total=recipe.steps, desc=name):
        pass
    save(model, tokenizer, out / name)
    tasks: Any = draw_distinct(seed, "heldout", 100)
    facts: dict[str, Any] = {"seed": seed, "steps": recipe.steps}
    facts["train_seconds"] = round(time.perf_counter() - began)
    torch.manual_seed(seed)
    for how, samples in (("greedy", 0), ("sampled", 8)):
        texts = decode(tokenizer, generate(model, tokenizer, tasks, samples))
        grades = [
            [quality(task.prompt, text) for text in group]
            for task, group in zip(tasks, texts, strict=True)
        ]
        facts[how] = round(sum(sum(group) / len(group) for group in grades) / len(tasks), 3)
    facts["best_of_8"] = round(sum(map(max, grades)) / len(tasks), 3)
    return facts


def write_prompts(out: Path, seed: int) -> None:
    """Write the prompts of every split as JSON lines."""
    for split, count in SIZES.items():
        rows = [
            {"prompt": [{"role": "user", "content": task.prompt}]}
            for task in draw_distinct(seed, split, count)
        ]
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts and the teacher")
    parser.add_argument("--student-seed", type=int, default=1, help="seed of the student")
    parser.add_argument("--only", choices=["teacher", "student"], help="train only this model")
    parser.add_argument("--max-steps", type=int, help="train no longer, to try the script out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    write_prompts(args.out, args.seed)
    place = args.out / "facts.json"
    facts = json.loads(place.read_text()) if place.exists() else {}
    for name, recipe, seed in (
        ("teacher", TEACHER, args.seed),
        ("student", STUDENT, args.student_seed),
    ):
        if args.only in (None, name):
            steps = min(recipe.steps, args.max_steps or recipe.steps)
            facts[name] = make(name, replace(recipe, steps=steps), seed, args.out)
    place.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
