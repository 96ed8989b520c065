"""Make the tiny world: a teacher, a student, and prompts in three splits, from a seed.

    python tools/make_tiny_world.py                                                          # all of it, into pad_fast/tiny_world
    python tools/make_tiny_world.py --only student --student-seed 2 --out /some/folder       # another base student

Both models start from random weights and learn from questions drawn fresh from `tiny_world/tasks.py`, none of which belongs to the
validation or the held-out split. Everything that the model card says is then measured on the held-out prompts and written beside the
models, `facts.json` for programs and `README.md` for people. One core is used; a seed gives the same bytes again with the same
versions of torch and transformers and the same kind of processor. `facts.json` has the seconds: about half an hour for the teacher
and four minutes for the student on one core of a virtual machine with two AMD EPYC cores that were shared with other work.
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
STUDENT_SLOPPY = 0.25  # share of its examples that are slips
STUDENT_TARGET = 0.57  # greedy accuracy, on prompts of the train split, at which it stops
Facts = dict[str, Any]


def make_teacher(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> tuple[LlamaForCausalLM, Facts]:
    model, start = build_model(recipe, tokenizer, seed), time.perf_counter()
    steps = list(
        tqdm(
            train(model, Teaching(tokenizer, recipe.batch), recipe, seed),
            total=recipe.steps,
            desc="teacher",
        )
    )
    return model, {
        "seed": seed,
        "steps": len(steps),
        "train_seconds": round(time.perf_counter() - start),
    }


def make_student(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> tuple[LlamaForCausalLM, Facts]:
    """Stops as soon as the target is met; more steps would leave distillation nothing to do."""
    model, start = build_model(recipe, tokenizer, seed), time.perf_counter()
    pupil = Pupil(tokenizer, recipe.batch, STUDENT_SLOPPY, seed)
    steps = 0
    for _ in tqdm(train(model, pupil, recipe, seed), total=recipe.steps, desc="student, at most"):
        steps += 1
        if steps % PROBE_EVERY == 0 and pupil.examine(model) >= STUDENT_TARGET:
            break
    return model, {
        "seed": seed,
        "steps": steps,
        "train_seconds": round(time.perf_counter() - start),
    }


def write_prompts(out: Path, seed: int) -> None:
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
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


def surroundings() -> Facts:
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
        "--out", type=Path, default=HOME, help="folder to write to (default: the package's own)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the prompts, the teacher and the measurements"
    )
    parser.add_argument("--student-seed", type=int, default=1)
    parser.add_argument(
        "--only",
        choices=["teacher", "student", "facts"],
        help="train one model, or none; one that is in OUT is kept",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        help="stop either training after so many steps (to try the script out)",
    )
    return parser.parse_args(argv)


def obtain(
    name: str, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> tuple[LlamaForCausalLM, Facts] | None:
    """The model and how it was trained: trained now if asked for, else as it lies in the folder, None if it does not."""
    make, recipe, seed = (
        (make_teacher, TEACHER, args.seed)
        if name == "teacher"
        else (make_student, STUDENT, args.student_seed)
    )
    folder = args.out / name
    if args.only in (None, name):
        model, training = make(
            tokenizer,
            replace(recipe, steps=min(recipe.steps, args.max_steps or recipe.steps)),
            seed,
        )
        save(model, tokenizer, folder)
        return model, training
    if not folder.is_dir():
        return None
    return LlamaForCausalLM.from_pretrained(folder), json.loads(
        (args.out / "facts.json").read_text()
    )[name]


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
