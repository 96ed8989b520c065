"""The line before a benchmark starts: turns, tokens, and the time by a trial."""

from __future__ import annotations

import benchmark_files
import pytest
import worlds

from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.pipeline.benchmark.answering import Answering
from pad_fast.pipeline.benchmark.asking import Asking
from pad_fast.pipeline.benchmark.cost import duration, longest_seconds, tokens_line
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Engine, Sample, unseen

PROMPT, TOKEN = 0.5, 0.125  # seconds of a call and of each of its tokens


class Timed(Engine):
    """Takes a known time, on a clock of its own."""

    identity = "timed"

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.now = 0.0

    def sample(self, prompts, n, how, seed, progress=unseen, tokens=unseen):
        self.now += PROMPT + TOKEN * how.max_new_tokens
        progress(len(prompts))
        return [[Sample([9] * how.max_new_tokens, "length")] for _ in prompts]

    def logps(self, *_):
        raise AssertionError

    choices = logps


def test_the_trial_tells_the_time_of_all_calls(tmp_path, monkeypatch):
    """MT-Bench's shards are sampled by temperature, which makes several calls of a turn."""
    path = worlds.save_model(tmp_path / "model", 0, window=2048)
    questions = benchmark_files.read_questions(tmp_path, "mt_bench") * 3
    asking = Asking(BENCHMARKS["mt_bench"], max_new_tokens=40)
    engine = Timed(Checkpoint("m", str(path)))
    answering = Answering(engine, asking, tmp_path / "s", 3, quiet=True)
    monkeypatch.setattr("time.perf_counter", lambda: engine.now)
    estimate = longest_seconds(answering, questions)
    start = engine.now
    answering.answer(questions, "")
    took = engine.now - start
    assert took == 12 * (PROMPT + 40 * TOKEN)  # two temperatures and two turns in three shards
    # In the second turn the time of the prompt is taken to grow with the answer before it.
    together = answering.prompts([questions[0], questions[2]])
    grows = 40 * 2 / sum(map(len, together))
    assert estimate == pytest.approx(took + 6 * (PROMPT + TOKEN) * grows)


def test_a_few_shards_are_not_tried(tmp_path):
    path = worlds.save_model(tmp_path / "model", 0)
    questions = benchmark_files.read_questions(tmp_path, "mt_bench")
    asking = Asking(BENCHMARKS["mt_bench"])
    answering = Answering(Timed(Checkpoint("m", str(path))), asking, tmp_path, 2, quiet=True)
    assert longest_seconds(answering, questions) is None


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "mt_bench",
            "mt_bench: 3 questions, 6 turns; 9 tokens of prompts in the first turns, at "
            "most 6,144 new tokens (1,024 a turn)",
        ),
        (
            "gsm8k",
            "gsm8k: 4 questions; 9 tokens of prompts in the first turns, at most 1,024 new "
            "tokens (256 a turn)",
        ),
    ],
)
def test_tokens(tmp_path, name, line):
    questions = benchmark_files.read_questions(tmp_path, name)
    assert tokens_line(Asking(BENCHMARKS[name]), questions, [[1, 2, 3], [1] * 6]) == line


def test_durations():
    assert [duration(s) for s in (0.4, 99, 100, 5999, 6000)] == [
        "0 s",
        "99 s",
        "2 min",
        "100 min",
        "1.7 h",
    ]
