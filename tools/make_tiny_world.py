"""Make the tiny world from a seed: a teacher, a student, and prompts in three splits.

Usage:
    python tools/make_tiny_world.py    # everything, into pad_fast/tiny_world
    python tools/make_tiny_world.py --only student --student-seed 2 --out DIR    # another student

Both models start from random weights. They learn from questions that `tiny_world/tasks.py` draws
anew, and none of these belongs to the validation or the held-out split. The model card's figures
are then measured on the held-out prompts and written next to the models, as `facts.json` for
programs and `README.md` for people.

The script uses one core, about half an hour for the teacher and four minutes for the student. A
seed gives the same bytes again with the same versions of torch and transformers on the same kind of
processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_world import measure
from tiny_world.card import model_card
from tiny_world.lessons import PROBE_EVERY, Pupil, Teaching
from tiny_world.tasks import SPLITS, draw_distinct
from tiny_world.tokenizer import build
from tiny_world.train import Recipe, build_model, train
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

HOME = Path(__file__).resolve().parents[1] / "pad_fast" / "tiny_world"
SIZES = {"train": 3000, "validation": 402, "heldout": 600}
TEACHER = Recipe(hidden=96, layers=4, steps=1600, batch=192, learning_rate=4e-3, decay_from=0.6)
STUDENT = Recipe(hidden=80, layers=3, steps=1500, batch=128, learning_rate=2e-3, decay_from=1.0)
STUDENT_SLOPPY = 0.25  # share of the student's examples that are slips
STUDENT_TARGET = 0.57  # greedy accuracy on prompts of the train split at which training stops
Facts = dict[str, Any]


def make_teacher(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> tuple[LlamaForCausalLM, Facts]:
    """Train a teacher; the model, and the facts about its training."""
    model, start = build_model(recipe, tokenizer, seed), time.perf_counter()
    lesson = Teaching(tokenizer, recipe.batch)
    steps = list(tqdm(train(model, lesson, recipe, seed), total=recipe.steps, desc="teacher"))
    return model, _training(seed, len(steps), start)


def make_student(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> tuple[LlamaForCausalLM, Facts]:
    """Train a student until it meets the target. A better one would leave nothing to distil."""
    model, start = build_model(recipe, tokenizer, seed), time.perf_counter()
    pupil = Pupil(tokenizer, recipe.batch, STUDENT_SLOPPY, seed)
    steps = 0
    for _ in tqdm(train(model, pupil, recipe, seed), total=recipe.steps, desc="student, at most"):
        steps += 1
        if steps % PROBE_EVERY == 0 and pupil.examine(model) >= STUDENT_TARGET:
            break
    return model, _training(seed, steps, start)


def _training(seed: int, steps: int, start: float) -> Facts:
    seconds = round(time.perf_counter() - start)
    return {"seed": seed, "steps": steps, "train_seconds": seconds}


def write_prompts(out: Path, seed: int) -> None:
    """Write the prompts of every split as JSON lines."""
    for split in SPLITS:
        rows = [
            {
                "prompt": [{"role": "user", "content": task.prompt}],
                "answer": task.answer,
                "skill": task.skill,
            }
            for task in draw_distinct(seed, split, SIZES[split])
        ]
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only


def surroundings() -> Facts:
    """The versions and the machine, on which the bytes of the models depend."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"one {platform.machine()} core",
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=HOME, help="folder to write to (default: the package's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the prompts, the teacher and the measurements"
    )
    parser.add_argument("--student-seed", type=int, default=1, help="seed of the student")
    parser.add_argument(
        "--student-width",
        type=int,
        default=STUDENT.hidden,
        help="hidden size of the student, a multiple of 8 (default: the package's)",
    )
    parser.add_argument(
        "--only",
        choices=["teacher", "student", "facts"],
        help="train only this model, or none; another model that is in OUT is kept",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        help="stop the training of either model after so many steps, to try the script out",
    )
    given = parser.parse_args(argv)
    if given.student_width < 8 or given.student_width % 8:  # 4 heads of an even size
        parser.error(f"--student-width must be a multiple of 8, got {given.student_width}")
    return given


def obtain(
    name: str, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> tuple[LlamaForCausalLM, Facts] | None:
    """A model and how it was trained: trained now if the arguments ask for it, else read from the
    folder; None if it is not there."""
    folder = args.out / name
    if args.only in (None, name):
        make, recipe, seed = (
            (make_teacher, TEACHER, args.seed)
            if name == "teacher"
            else (make_student, replace(STUDENT, hidden=args.student_width), args.student_seed)
        )
        steps = min(recipe.steps, args.max_steps or recipe.steps)
        model, training = make(tokenizer, replace(recipe, steps=steps), seed)
        save(model, tokenizer, folder)
        return model, training
    if not folder.is_dir():
        return None
    facts = json.loads((args.out / "facts.json").read_text())
    return LlamaForCausalLM.from_pretrained(folder), facts[name]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, heldout = build(), draw_distinct(args.seed, "heldout", SIZES["heldout"])
    write_prompts(args.out, args.seed)
    facts: Facts = {"surroundings": surroundings()}
    found = {
        name: pair
        for name in ("teacher", "student")
        if (pair := obtain(name, tokenizer, args)) is not None
    }
    samples = {}
    for name, (model, training) in found.items():
        abilities, samples[name] = measure.abilities(model, tokenizer, heldout, args.seed)
        facts[name] = {**training, **abilities}
    if len(found) == 2:
        texts = measure.decode(tokenizer, samples["student"])
        pairs = {
            "student_samples": measure.sampled_pairs(heldout, texts),
            "slips": measure.slip_pairs(heldout, args.seed),
        }
        facts["choices"] = {
            name: measure.choices(found["teacher"][0], tokenizer, chosen)
            for name, chosen in pairs.items()
        }
        (args.out / "README.md").write_text(model_card(facts, SIZES))
    (args.out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
