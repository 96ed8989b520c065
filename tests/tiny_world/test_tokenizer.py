"""The tokenizer gives every text back, and spells words and numbers as intended."""

from __future__ import annotations

import random
import string
from typing import Any

import yaml
from embedded_world import SPLITS, WORLD, prompts, rows, tokenizer_of

from pad_fast.pipeline.multiple_choice import choice_question, letter_token_ids


def test_the_demo_asks_as_the_teacher_was_taught(tools: Any) -> None:
    settings = yaml.safe_load((WORLD / "tiny.yaml").read_text())
    assert settings["mcq_template"] == tools.tasks.WORDING


def test_tokenizer_gives_every_text_back(tools: Any) -> None:
    tokenizer = tokenizer_of("teacher")
    rng = random.Random(1)
    tasks = [make(rng) for make in tools.tasks.SKILLS.values() for _ in range(50)]
    texts = [text for split in SPLITS for text in prompts(split)] + [
        row["answer"] for split in SPLITS for row in rows(split)
    ]
    texts += [text for task in tasks for text in (task.response, *task.slips)]
    texts += [
        choice_question(task.prompt, [task.response, *task.slips], tools.tasks.WORDING)
        for task in tasks
    ]
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
