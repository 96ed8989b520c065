"""Compare pad-fast on a real language model with plain transformers: ``--help`` lists the options.

Method:

``pad-fast sample`` and ``pad-fast score`` run on a few real prompts. Then everything in their files
that can be computed another way is: prompt ids, ends, log-probabilities, and the probabilities of
multiple-choice answers, one sequence at a time, without padding, packing or a shared prompt.
``score_responses`` is compared as well. The exit code is 1 if a difference is above its tolerance.

Needs the package gguf in addition to pad-fast's own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))

from real_model import add_arguments, make_pair, read_prompts

from pad_fast import score_responses

# A template of our own, so that the comparison does not depend on the package's default.
TEMPLATE = "{query}\n\n{options}\n\nReply only with the letter of the best answer."
# Questions of a short answer, so that some of the responses end by themselves.
SHORT = ("What is the capital of France? Reply with one word.", "What is 2 + 3?")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Two float32 evaluations differ by some 1e-6 of logits of about 20 in each of 30 layers.
# PyTorch's own attention of float64 moves by 2e-9 with the number of rows in a call.
FLOAT32, FLOAT64 = 1e-4, 1e-7

Row = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, layers=28, number=3, responses=3, tokens=24)
    return parser.parse_args()


def run_pipeline(
    options: argparse.Namespace, models: tuple[Path, Path], prompts: list[str]
) -> Path:
    """Run the commands ``sample`` and ``score``; returns the run's folder."""
    folder = options.cache / "run"
    shutil.rmtree(folder, ignore_errors=True)
    file = options.cache / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    settings = {
        "teacher": models[0].resolve(),
        "student": models[1].resolve(),
        "prompts": file.resolve(),
        "heldout_size": 0,
        "output_dir": folder.resolve(),
        "dtype": "float32",
        "num_generations": options.responses,
        "temperature": 0.7,
        "max_new_tokens": options.tokens,
        "mcq_style": "pairwise",
        "mcq_every_place": "true",
        "mcq_renormalize": "true",
        "mcq_template": json.dumps(TEMPLATE),
        "disable_tqdm": "true",
        "per_device_train_batch_size": 1,
    }
    config = options.cache / "run.yaml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    for phase in ("sample", "score"):
        subprocess.run([sys.executable, "-m", "pad_fast.cli", phase, str(config)], check=True)
    return folder


def read_shards(folder: Path) -> list[Row]:
    """The rows of all shards of a folder."""
    return [
        row for file in sorted(folder.glob("part-*")) for row in pq.read_table(file).to_pylist()
    ]


@dataclass
class Plain:
    """A model and its tokenizer as transformers loads them, one sequence at a time."""

    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def prompt_ids(self, text: str) -> list[int]:
        """A conversation of one user message, by hand: ChatML with the model's system prompt."""
        turns = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        rendered = turns + "<|im_start|>assistant\n"
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def text(self, ids: Sequence[int], end: int) -> str:
        """A response's text: all that was sampled but its end and a last character that was cut."""
        return self.tokenizer.decode([token for token in ids if token != end]).rstrip("\ufffd")

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        """(T, V) log-probabilities of what follows each of the ids, the softmax in float64."""
        return self.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)

    def sum_logprob(self, prompt: Sequence[int], response: Sequence[int]) -> float:
        """The log-probability of a response in nats."""
        rows = self.logprobs([*prompt, *response])[len(prompt) - 1 : -1]
        return float(rows.gather(1, torch.tensor(response)[:, None]).sum())

    def choice_probs(self, query: str, texts: Sequence[str]) -> list[float]:
        """How often each text is chosen over each other, in both orders, the letters' mass as 1."""
        forms = [
            {ids[0] for text in (letter, f" {letter}") if len(ids := self._encode(text)) == 1}
            for letter in "AB"
        ]
        chosen: list[list[float]] = [[] for _ in texts]
        for pair in combinations(range(len(texts)), 2):
            for first, second in (pair, pair[::-1]):
                options = f"A. {texts[first]}\nB. {texts[second]}"
                ids = self.prompt_ids(TEMPLATE.format(query=query, options=options))
                p = self.logprobs(ids)[-1].exp()
                a, b = (float(sum(p[token] for token in tokens)) for tokens in forms)
                chosen[first].append(a / (a + b))
                chosen[second].append(b / (a + b))
        return [sum(values) / len(values) for values in chosen]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class Line:
    """One line of the table: the largest difference of ``count`` numbers."""

    what: str
    count: int
    difference: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.count > 0 and self.difference <= self.tolerance


def compared(what: str, pairs: Iterable[tuple[float, float]], tolerance: float) -> Line:
    differences = [abs(a - b) for a, b in pairs]
    largest = max((d if d == d else float("inf") for d in differences), default=0.0)
    return Line(what, len(differences), largest, tolerance)


def counted(what: str, right: Iterable[bool]) -> Line:
    """The number of wrong ones as the difference."""
    results = list(right)
    return Line(what, len(results), float(results.count(False)), 0.0)


def ends_right(row: Row, end: int, most: int) -> Iterable[bool]:
    """A response that stopped has one end of turn, at its end; a cut one has full length, none."""
    for ids, reason in zip(row["completion_ids"], row["finish_reasons"], strict=True):
        if reason == "stop":
            yield ids[-1] == end and ids.count(end) == 1 and len(ids) <= most
        else:
            yield reason == "length" and end not in ids and len(ids) == most


def check_files(rows: list[Row], scored: list[Row], teacher: Plain, most: int) -> list[Line]:
    """What ``sample`` and ``score`` wrote against plain transformers."""
    end = teacher.tokenizer.convert_tokens_to_ids("<|im_end|>")
    queries = [row["prompt"][-1]["content"] for row in scored]
    texts = [[teacher.text(ids, end) for ids in row["completion_ids"]] for row in scored]
    logps, choices = [], []
    for row, asked, answers in zip(scored, queries, texts, strict=True):
        prompt = teacher.prompt_ids(asked)
        for ids, found in zip(row["completion_ids"], row["teacher_logps"], strict=True):
            logps.append((found / len(ids), teacher.sum_logprob(prompt, ids) / len(ids)))
        choices += zip(
            row["teacher_choice_probs"], teacher.choice_probs(asked, answers), strict=True
        )
    same = (row["completions"] == answers for row, answers in zip(scored, texts, strict=True))
    ids = (r["prompt_ids"] == teacher.prompt_ids(q) for r, q in zip(scored, queries, strict=True))
    ends = [right for row in rows for right in ends_right(row, end, most)]
    stopped = sum(row["finish_reasons"].count("stop") for row in rows)
    return [
        counted("prompt ids (wrong prompts)", ids),
        counted(f"ends (wrong of all; {stopped} ended by themselves)", ends),
        counted("texts of responses (wrong prompts)", same),
        compared("teacher's log-probability, nats/token", logps, FLOAT32),
        compared("choice probabilities", choices, FLOAT32),
    ]


def check_scores(rows: list[Row], name: str, plain: Plain) -> list[Line]:
    """score_responses with and without sharing, in float32, and in float64 on the first prompt."""
    prompts = [row["prompt_ids"] for row in rows]
    responses = [row["completion_ids"] for row in rows]

    def expected(number: int) -> list[float]:
        pairs = zip(prompts[:number], responses[:number], strict=True)
        return [plain.sum_logprob(x, y) / len(y) for x, ys in pairs for y in ys]

    lines = []
    for dtype, tolerance, number in (
        (torch.float32, FLOAT32, len(prompts)),
        (torch.float64, FLOAT64, 1),
    ):
        plain.model.to(dtype)
        want = expected(number)
        for share in (True, False):
            groups = score_responses(
                plain.model, prompts[:number], responses[:number], share_prefix=share
            )
            found = [reward for group in groups for reward in group]
            way = "shared" if share else "alone"
            what = f"{name}'s rewards, {str(dtype)[6:]}, {way}, nats/token"
            lines.append(compared(what, zip(found, want, strict=True), tolerance))
    plain.model.to(torch.float32)
    return lines


def show(lines: list[Line]) -> bool:
    """Print the table; returns whether every line is within its tolerance."""
    print(f"{'':58}{'numbers':>8}{'largest':>11}{'tolerance':>11}")
    for line in lines:
        verdict = "" if line.right else "  WRONG" if line.count else "  NOTHING COMPARED"
        numbers = f"{line.count:8}{line.difference:11.1e}{line.tolerance:11.1e}"
        print(f"{line.what:58}{numbers}{verdict}")
    right = all(line.right for line in lines)
    print(
        "All differences are within their tolerances."
        if right
        else "Some differences are too large."
    )
    return right


def main() -> int:
    options = parse()
    models = make_pair(options.cache, options.wheel, options.layers)
    prompts = [*SHORT, *read_prompts(options.prompts, options.number)]
    folder = run_pipeline(options, models, prompts)
    rows = read_shards(folder / "round-01" / "samples")
    scored = read_shards(folder / "round-01" / "scores")
    teacher, student = Plain(models[0]), Plain(models[1])
    lines = check_files(rows, scored, teacher, options.tokens)
    lines.append(counted("prompts that the run kept", (len(rows) == len(prompts),)))
    lines += check_scores(rows, "teacher", teacher)
    lines += check_scores(rows, "student", student)
    return int(not show(lines))


if __name__ == "__main__":
    sys.exit(main())
