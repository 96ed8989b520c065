"""How questions are put to a model, and what becomes of its thinking."""

from __future__ import annotations

import dataclasses
import json

import benchmark_files
import pytest
import worlds

from pad_fast.evaluation.benchmarks.answer_check import check_answers
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.pipeline.benchmark.answering import NO_ROOM, Answering, answers_of
from pad_fast.pipeline.benchmark.asking import Asking, thinks, without_thinking
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Engine, Sample, unseen

MT = BENCHMARKS["mt_bench"]


class Scripted(Engine):
    """Says what it is given, whatever it is asked."""

    def __init__(self, checkpoint: Checkpoint, texts: list[str]) -> None:
        super().__init__(checkpoint)
        self.texts, self.asked = texts, []

    identity = "scripted"

    def sample(self, prompts, n, how, seed, progress=unseen, tokens=unseen):
        self.asked += [(how, self.checkpoint.tokenizer.decode(prompt)) for prompt in prompts]
        end = self.checkpoint.eos_token_ids[0]
        encode = self.checkpoint.chat.encoder.ids
        progress(len(prompts))
        return [[Sample([*encode(self.texts.pop(0)), end], "stop")] for _ in prompts]

    def logps(self, *_):
        raise AssertionError

    choices = logps


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """A model whose tokenizer spells blocks of thinking."""
    tokenizer = worlds.character_tokenizer([*worlds.CHARACTERS, "<", ">", "/", "*", "#"])
    folder = worlds.save_model(tmp_path_factory.mktemp("m") / "model", 0, tokenizer=tokenizer)
    return Checkpoint("model", str(folder))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>so</think>\n\nYes.", "Yes."),
        ("so</think> Yes.", "Yes."),  # the template opened the block
        ("<think>a</think>b</think> c", "c"),
        ("<think>never closed", ""),
        ("I think so.", "I think so."),
        ("", ""),
    ],
)
def test_thinking(text, kept):
    assert without_thinking(text) == kept
    assert thinks(text) == (text != kept)


@pytest.mark.parametrize("strip", [True, False])
def test_thinking_is_stripped_by_option_and_never_silently(checkpoint, tmp_path, caplog, strip):
    question = benchmark_files.read_questions(tmp_path, "mt_bench")[0]
    engine = Scripted(checkpoint, ["<think>a</think>One.", "<think>b</think>Two."])
    asking = Asking(MT, strip_thinking=strip)
    answering = Answering(engine, asking, tmp_path / "s", 2, quiet=True)
    rows = answering.answer([question], "")
    (answer,) = answers_of(asking, [question], rows, len)
    second = engine.asked[1][1]
    if strip:
        assert answer.turns == ("One.", "Two.")
        assert "<think>" not in second  # the conversation goes on without it
        assert "thinking removed from 2 of 2 turns" in caplog.text
    else:
        assert answer.turns == ("<think>a</think>One.", "<think>b</think>Two.")
        assert "2 of 2 turns hold a block of thinking" in caplog.text
    # What was generated is kept as it was.
    assert rows[0]["responses"] == ["<think>a</think>One.", "<think>b</think>Two."]


def test_system_prompt_and_suffix(checkpoint, tmp_path):
    questions = benchmark_files.read_questions(tmp_path, "arena_hard")
    asking = Asking(
        BENCHMARKS["arena_hard"], system_prompt="Be kind.", suffix=" Now.", max_new_tokens=9
    )
    engine = Scripted(checkpoint, ["**a**"] * 3)
    rows = Answering(engine, asking, tmp_path / "s", 2, quiet=True).answer(questions, "")
    how, prompt = engine.asked[0]
    assert "Be kind." in prompt
    assert prompt.index("Be kind.") < prompt.index("Solve") < prompt.index("Now.")
    assert (how.max_new_tokens, how.temperature) == (9, 0.0)
    answers = answers_of(asking, questions, rows, len)
    path = benchmark_files.write_answers(tmp_path, BENCHMARKS["arena_hard"].form(None), answers)
    assert check_answers(path, questions).faults == []
    row = json.loads(path.read_text().splitlines()[0])
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][1]["content"] == "Solve a1."  # the question is untouched
    assert row["metadata"]["bold_count"]["**"] == 1
    assert row["metadata"]["token_len"] == 5


def test_the_window_limits_the_answer(checkpoint, tmp_path, caplog):
    """A prompt that leaves less room gets less, and one that fills the window an empty answer."""
    question = benchmark_files.read_questions(tmp_path, "mt_bench")[0]
    long = dataclasses.replace(question, turns=("a" * 200, "b" * 200))
    engine = Scripted(checkpoint, ["one"])
    asking = Asking(MT, max_new_tokens=100)
    rows = Answering(engine, asking, tmp_path / "s", 1, quiet=True).answer([long], "")
    assert engine.asked[0][0].max_new_tokens == 256 - 200 - 2
    assert rows[0]["finish_reasons"] == ["stop", NO_ROOM]
    (answer,) = answers_of(asking, [long], rows, len)
    assert answer.turns == ("one", "")
    assert "1 of 2 turns are empty, as their prompt fills the model's window" in caplog.text


def test_only_gsm8k_has_examples(tmp_path):
    shots = benchmark_files.read_questions(tmp_path, "gsm8k")
    with pytest.raises(ValueError, match="only gsm8k has them"):
        Asking(MT, shots=shots)


def test_temperatures_are_the_benchmarks_own(tmp_path):
    writing, math, other = benchmark_files.read_questions(tmp_path, "mt_bench")
    asking = Asking(MT)
    assert [asking.temperature_of(q) for q in (writing, math, other)] == [0.7, 0.0, 0.7]
    assert Asking(MT, temperature=0.3).temperature_of(math) == 0.3
    assert asking.longest == 1024
