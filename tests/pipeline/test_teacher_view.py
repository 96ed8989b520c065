"""Responses as a teacher of another tokenizer reads them, and as SeqKD trains on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import worlds
from made_tokenizers import SPECIAL, chat_tokenizer
from transformers import AutoModelForCausalLM
from worlds import response_logp, run_config

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.sample.generate import Sampler, generate
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.asked_questions import make_quiz
from pad_fast.pipeline.score.cache import ScoreCache
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.score.scorer import Scorer
from pad_fast.pipeline.score.teacher_view import teacher_view
from pad_fast.pipeline.train.seqkd import example

PROMPT = [{"role": "user", "content": "Say A or B."}]


@pytest.fixture(scope="module", params=["metaspace, first", "legacy", "unigram", "byte-level"])
def teacher(request, tmp_path_factory) -> Checkpoint:
    tokenizer = chat_tokenizer(request.param)
    tokenizer.pad_token = "<unk>"
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    return Checkpoint("teacher", str(worlds.save_model(folder, seed=3, tokenizer=tokenizer)))


def row(texts: list[str], reasons: list[str]) -> Row:
    return {
        "prompt_id": "p",
        "prompt": PROMPT,
        "prompt_ids": [0],
        "completions": texts,
        "completion_ids": [[1]] * len(texts),
        "finish_reasons": reasons,
    }


def rendered_ids(checkpoint: Checkpoint, text: str) -> list[int]:
    """The ids after the prompt in the rendered conversation, up to the end of the turn."""
    messages = [*PROMPT, {"role": "assistant", "content": text}]
    tokenizer = checkpoint.tokenizer
    prompt, whole = (
        tokenizer.apply_chat_template(said, add_generation_prompt=more, return_dict=False)
        for said, more in ((PROMPT, True), (messages, False))
    )
    assert whole[: len(prompt)] == prompt
    after = whole[len(prompt) :]
    return after[: after.index(tokenizer.eos_token_id) + 1]


def test_the_teacher_reads_the_rendered_conversation(teacher):
    texts = ["A", " A", "Hello there", "B"]
    view = teacher_view(teacher, row(texts, ["stop"] * 3 + ["length"]), reuse_ids=False)
    wanted = [rendered_ids(teacher, text) for text in texts]
    assert view.responses == [*wanted[:3], wanted[3][:-1]]
    found = example(teacher, row(["Hello there"], ["stop"]))
    assert found["input_ids"] == view.prompt + wanted[2]


def test_its_scores_are_those_of_the_rendered_conversation(teacher, world, tmp_path):
    config = run_config(world, mcq_style="none")
    student = Checkpoint("student", str(world / "student"))
    engine = TransformersEngine(teacher, ModelScores(config, "mean"))
    scorer = Scorer(teacher, student, config, engine, ScoreCache(tmp_path / "cache"))
    write_rows(tmp_path / "samples" / "part-00000.parquet", [row(["A", "B"], ["stop", "stop"])])
    scorer.score_shards(tmp_path / "samples", tmp_path / "scores", 2, title="")
    (found,) = read_rows(tmp_path / "scores")
    model = AutoModelForCausalLM.from_pretrained(teacher.path)
    for text, logp in zip("AB", found["teacher_logps"], strict=True):
        wanted = response_logp(model, teacher.prompt_ids(PROMPT), rendered_ids(teacher, text))
        assert logp == pytest.approx(wanted, abs=1e-4)


def test_what_a_student_spells_ends_no_turn_of_the_teachers(teacher, world):
    said = ["B</s>\n<|user|>\nA", "A"]
    view = teacher_view(teacher, row(said, ["stop", "stop"]), reuse_ids=False)
    tokens = teacher.tokenizer.convert_ids_to_tokens(view.responses[0])
    assert [token for token in tokens if token in SPECIAL[1:]] == ["</s>"]
    assert tokens[-1] == "</s>"
    quiz = make_quiz(teacher, run_config(world), row(said, ["stop", "stop"]), view)
    for ids in quiz.prompts:
        tokens = teacher.tokenizer.convert_ids_to_tokens(ids)
        control = [token for token in tokens if token in SPECIAL[1:]]
        assert control == ["<|user|>", "</s>", "<|assistant|>"]


def test_control_tokens_that_a_student_samples_are_in_its_text(teacher, tmp_path: Path):
    """A student that samples any token alike, so that control tokens stand within its responses."""
    model = AutoModelForCausalLM.from_pretrained(teacher.path)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    student = Checkpoint("student", str(tmp_path))
    config = run_config(tmp_path, num_generations=64, max_new_tokens=12, temperature=1.0)
    prompt = {"prompt_id": "p", "prompt": PROMPT, "prompt_ids": student.prompt_ids(PROMPT)}
    engine = TransformersEngine(student, ModelScores(config, "mean"))
    (found,) = generate(engine, [prompt], Sampler(config, 64), 0, lambda count: None)
    inner = set(student.tokenizer.all_special_ids) - {student.tokenizer.eos_token_id}
    seen = 0
    for text, ids in zip(found["completions"], found["completion_ids"], strict=True):
        for token in inner.intersection(ids):
            seen += 1
            assert student.tokenizer.convert_ids_to_tokens(token) in text
        assert not text.endswith("</s>")
    assert seen
