"""The embedded pair and its prompts: right answers, an exact tokenizer, a teacher that is good and a student that is not."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import re
import string
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pad_fast
from pad_fast.evaluation.answers import exact_match
from pad_fast.models.scoring import next_token_logprobs
from pad_fast.pipeline.multiple_choice import choice_question, letter_token_ids

WORLD = Path(pad_fast.__file__).parent / "tiny_world"
TOOLS = Path(__file__).resolve().parents[2] / "tools"
SPLITS = ("train", "validation", "heldout")
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 7 * 86400}
METRES = {"mm": 1, "cm": 10, "m": 1000, "km": 10**6}
GRAMS, LITRES = {"g": 1, "kg": 1000}, {"ml": 1, "l": 1000}


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (WORLD / f"{split}.jsonl").read_text().splitlines()]


def prompts(split: str) -> list[str]:
    return [row["prompt"][0]["content"] for row in rows(split)]


def tokenizer_of(name: str) -> Any:
    return AutoTokenizer.from_pretrained(WORLD / name)


def solve(prompt: str) -> tuple[str, str]:
    """(skill, answer), worked out from the text alone and in another way than the generator's."""
    numbers = [int(n) for n in re.findall(r"\d+", prompt)]
    words = prompt.split()
    if words[0] == "Add" or " + " in prompt:
        return "addition", str(sum(numbers))
    if words[0] == "Subtract" or " - " in prompt:
        return "subtraction", str(abs(numbers[0] - numbers[1]))
    if words[0] == "Sort":
        return "sorting", " ".join(
            map(str, sorted(numbers) if words[-1] == "up." else sorted(numbers)[::-1])
        )
    if '"' in prompt:
        text = prompt.split('"')[1]
        return "string_edit", "".join(reversed(text)) if words[
            0
        ] == "Reverse" else f"{text[-1]}{text[1:-1]}{text[0]}"
    if words[0] == "Convert" or words[3:4] == ["are"]:
        source, target = (
            (words[2], words[4][:-1]) if words[0] == "Convert" else (words[5][:-1], words[2])
        )
        sizes = next(sizes for sizes in (SECONDS, METRES, GRAMS, LITRES) if source in sizes)
        result, rest = divmod(numbers[0] * sizes[source], sizes[target])
        assert rest == 0
        sign, factor = (
            ("*", sizes[source] // sizes[target])
            if result > numbers[0]
            else ("/", sizes[target] // sizes[source])
        )
        return "conversion", f"{numbers[0]} {sign} {factor} = {result} {target}"
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


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    rooms = {
        name: importlib.import_module(f"tiny_world.{name}")
        for name in ("tasks", "tokenizer", "lessons", "train", "card")
    }
    return SimpleNamespace(make=importlib.import_module("make_tiny_world"), **rooms)


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


def test_tokenizer_gives_every_text_back(tools: Any) -> None:
    tokenizer = tokenizer_of("teacher")
    rng = random.Random(1)
    tasks = [make(rng) for make in tools.tasks.SKILLS.values() for _ in range(50)]
    texts = [text for split in SPLITS for text in prompts(split)] + [
        row["answer"] for split in SPLITS for row in rows(split)
    ]
    texts += [text for task in tasks for text in (task.response, *task.slips)]
    texts += [choice_question(task.prompt, [task.response, *task.slips]) for task in tasks]
    texts += [
        "",
        string.digits + string.ascii_letters + string.punctuation + " \n",
        "  Two  spaces\n\nand unknownwords! ",
    ]
    for text, ids in zip(
        texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True
    ):
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids


def test_tokenizer_spells_as_intended() -> None:
    teacher, student = tokenizer_of("teacher"), tokenizer_of("student")
    assert teacher.get_vocab() == student.get_vocab()
    assert teacher.tokenize("units 12 #### 125", add_special_tokens=False) == [
        "units",
        " 1",
        "2",
        " ####",
        " 1",
        "2",
        "5",
    ]
    assert teacher.tokenize("A. qxa", add_special_tokens=False) == ["A", ".", " ", "q", "x", "a"]
    assert teacher("7")["input_ids"] == [
        teacher.bos_token_id,
        *teacher("7", add_special_tokens=False)["input_ids"],
    ]
    assert teacher("né", add_special_tokens=False)["input_ids"][-1] == teacher.unk_token_id
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "7?"},
        {"role": "assistant", "content": "8"},
    ]
    text = teacher.apply_chat_template(chat, tokenize=False)
    assert text == "<s><|system|>S<|end|><|user|>7?<|end|><|assistant|>8<|end|>"
    assert (
        teacher.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
        == text[: -len("8<|end|>")]
    )
    assert teacher.decode(teacher.apply_chat_template(chat, return_dict=True)["input_ids"]) == text
    assert [len(ids) for ids in letter_token_ids(teacher, 26)] == [1] * 26


def load(name: str) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(WORLD / name), tokenizer_of(name)


def greedy(name: str, chosen: list[dict[str, Any]]) -> tuple[float, float]:
    """(share that is right, share that ended its turn)."""
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
    assert (
        abs(teacher - facts["teacher"]["greedy_accuracy"]["all"]) < 0.06
    )  # 150 of the 600 that were measured
    assert abs(student - facts["student"]["greedy_accuracy"]["all"]) < 0.15


def test_teacher_chooses_better_than_chance(tools: Any) -> None:
    model, tokenizer = load("teacher")
    tasks = tools.tasks.draw_distinct(0, "heldout", 120)
    asked = [
        choice_question(t.prompt, pair)
        for t in tasks
        for pair in ((t.response, t.slips[0]), (t.slips[0], t.response))
    ]
    chats = [[{"role": "user", "content": question}] for question in asked]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    letters = [forms[0] for forms in letter_token_ids(tokenizer, 2)]
    log_probs = torch.tensor(next_token_logprobs(model, ids, letters)).view(
        -1, 2, 2
    )  # (pair, order, letter)
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


def test_prompts_and_tokenizer_are_what_the_script_makes(tools: Any, tmp_path: Path) -> None:
    tools.make.write_prompts(tmp_path, seed=0)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (WORLD / f"{split}.jsonl").read_bytes()
    tools.tokenizer.build().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (
        WORLD / "student" / "tokenizer.json"
    ).read_bytes()


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
