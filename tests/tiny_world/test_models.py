"""The models: a good teacher, a student that is right in part, and their card and training."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from embedded_world import WORLD, rows, tokenizer_of
from transformers import AutoModelForCausalLM

from pad_fast.evaluation import exact_match
from pad_fast.models.scoring import next_token_logprobs
from pad_fast.pipeline.multiple_choice import choice_question, letter_token_ids


def load(name: str) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(WORLD / name), tokenizer_of(name)


def greedy(name: str, chosen: list[dict[str, Any]]) -> tuple[float, float]:
    """The share of right responses, and the share of those that ended their turn."""
    model, tokenizer = load(name)
    batch = tokenizer.apply_chat_template(
        [row["prompt"] for row in chosen],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    made = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(made, skip_special_tokens=True)
    right = [exact_match(text, row["answer"]) for text, row in zip(texts, chosen, strict=True)]
    ended = (made == tokenizer.eos_token_id).any(-1)
    return sum(right) / len(right), ended.float().mean().item()


def test_teacher_is_good_and_student_partly() -> None:
    chosen = rows("heldout")[:150]
    teacher, teacher_ended = greedy("teacher", chosen)
    student, student_ended = greedy("student", chosen)
    assert teacher >= 0.93
    assert 0.35 <= student <= 0.75
    assert teacher_ended == 1.0
    assert student_ended >= 0.97
    facts = json.loads((WORLD / "facts.json").read_text())
    # The facts were measured on 600 prompts, of which these are 150.
    assert abs(teacher - facts["teacher"]["greedy_accuracy"]["all"]) < 0.06
    assert abs(student - facts["student"]["greedy_accuracy"]["all"]) < 0.15


def test_teacher_chooses_better_than_chance(tools: Any) -> None:
    model, tokenizer = load("teacher")
    tasks = tools.tasks.draw_distinct(0, "heldout", 120)
    asked = [
        choice_question(t.prompt, pair, tools.tasks.WORDING)
        for t in tasks
        for pair in ((t.response, t.slips[0]), (t.slips[0], t.response))
    ]
    chats = [[{"role": "user", "content": question}] for question in asked]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    letters = [forms[0] for forms in letter_token_ids(tokenizer, 2)]
    found = torch.tensor(next_token_logprobs(model, ids, letters))
    log_probs = found.view(-1, 2, 2)  # (pair, order, letter)
    assert log_probs.exp().sum(-1).min() > 0.9
    favour = (log_probs[:, 0, 0] - log_probs[:, 0, 1]) + (log_probs[:, 1, 1] - log_probs[:, 1, 0])
    assert (favour > 0).float().mean() > 0.65  # 120 coin flips pass with probability 0.0006


def test_folder_is_small_and_its_card_is_what_the_facts_say(tools: Any) -> None:
    assert sum(path.stat().st_size for path in WORLD.rglob("*") if path.is_file()) < 12_000_000
    for name in ("teacher", "student"):
        config = json.loads((WORLD / name / "config.json").read_text())
        assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")
        assert (WORLD / name / "model.safetensors").is_file()
    facts = json.loads((WORLD / "facts.json").read_text())
    assert (WORLD / "README.md").read_text() == tools.card.model_card(facts, tools.make.SIZES)


def test_training_repeats_bit_for_bit(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.lessons, "CHOICE_FROM", 1)  # one step of each kind
    torch.set_num_threads(1)
    tokenizer = tools.tokenizer.build()
    recipe = replace(tools.make.TEACHER, steps=2, batch=16)
    first, again, other = (
        tools.make.make_teacher(tokenizer, recipe, seed)[0].state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert not any(torch.isnan(value).any() for value in first.values())


def test_choice_row_marks_where_a_candidate_goes_wrong(tools: Any) -> None:
    tokenizer = tokenizer_of("teacher")
    rng = random.Random(2)
    for _ in range(40):
        task = tools.tasks.draw(rng, rng.choice(list(tools.tasks.SKILLS)), "train")
        row = tools.lessons.choice_row(tokenizer, rng, task, 3)
        text = tokenizer.decode(row.ids)
        letter = text[-1]
        options = dict(re.findall(r"\n([ABC])\. ([^\n]*)", text))
        assert options[letter] == task.response
        marked = "".join(
            tokenizer.decode([i])
            for i, doubt in zip(row.ids, row.doubts, strict=True)
            if doubt != -100
        )
        assert marked == "".join(f" {option}" for option in options.values())
        doubtless = "".join(
            tokenizer.decode([i])
            for i, doubt in zip(row.ids, row.doubts, strict=True)
            if doubt == 0
        )
        assert f" {task.response}" in doubtless
