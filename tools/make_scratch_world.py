"""Make a teacher of the tiny world whose answers are long scratch work.

Usage:
    python tools/make_scratch_world.py --out DIR    # about ten minutes of one core

The embedded teacher is trained on: most of its answers to the same questions then repeat the
question, work it out twice, and end with ``#### answer``, in five times as many tokens. The rest
stay short, so that it still tells good short answers from bad ones. Prompts and students are those
of the tiny world: a narrow student cannot write like this. `facts.json` says what the teacher
reaches on held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from make_tiny_world import HOME, TEACHER, save
from tiny_world import measure
from tiny_world.lessons import answer_rows
from tiny_world.tasks import SKILLS, Task, draw, draw_distinct
from tiny_world.tokenizer import build
from tiny_world.train import Recipe, Row, train
from tqdm import tqdm
from transformers import LlamaForCausalLM
from transformers.utils import logging

RECIPE = replace(TEACHER, steps=400, batch=96, learning_rate=1.5e-3, decay_from=0.3)
LONG = 0.85  # share of the answers that are scratch work
LONGEST = 96  # tokens of an answer
MEASURED = 200  # held-out prompts


def scratch_work(task: Task) -> str:
    """The long answer to a task: the question, its working, the same again, and the answer."""
    working = task.response.partition(" ####")[0]
    both = f"{task.prompt} {working}"
    return f"{both} and {both} Then answer is #### {task.answer}"


class Lessons:
    """Batches of right answers, most of them scratch work."""

    def __init__(self, tokenizer: Any, batch: int) -> None:
        self.tokenizer, self.batch = tokenizer, batch

    def __call__(self, rng: random.Random, step: int) -> list[list[Row]]:
        tasks = [draw(rng, rng.choice(list(SKILLS)), "train") for _ in range(self.batch)]
        turns = [
            (task.prompt, scratch_work(task) if rng.random() < LONG else task.response)
            for task in tasks
        ]
        return [answer_rows(self.tokenizer, turns)]


def make(recipe: Recipe, seed: int, out: Path) -> dict[str, Any]:
    """Train the teacher, save it with its tokenizer, and measure it on held-out prompts."""
    tokenizer, began = build(), time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(HOME / "teacher")
    lessons = Lessons(tokenizer, recipe.batch)
    for _ in tqdm(train(model, lessons, recipe, seed), total=recipe.steps, desc="teacher"):
        pass
    save(model, tokenizer, out / "teacher")
    seconds = round(time.perf_counter() - began)
    tasks = draw_distinct(seed, "heldout", MEASURED)
    rows = measure.generate(model, tokenizer, tasks, most=LONGEST)
    return {
        "seed": seed,
        "steps": recipe.steps,
        "train_seconds": seconds,
        "greedy_accuracy": measure.accuracy(tasks, measure.decode(tokenizer, rows)),
        "mean_tokens": round(sum(len(row) for (row,) in rows) / len(rows), 1),
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the lessons")
    parser.add_argument("--only", choices=["teacher"], help="the one model that it makes")
    parser.add_argument("--max-steps", type=int, help="train no longer, to try the script out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPE, steps=min(RECIPE.steps, args.max_steps or RECIPE.steps))
    facts = {"teacher": make(recipe, args.seed, args.out)}
    (args.out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
