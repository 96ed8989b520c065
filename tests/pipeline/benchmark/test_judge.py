"""A judge by the letters' probabilities: any causal model, in both orders, in shards."""

from __future__ import annotations

import pytest
import torch
import worlds

from pad_fast.pipeline.benchmark.folder import BenchmarkFolder
from pad_fast.pipeline.benchmark.judge import (
    Judge,
    ModelJudge,
    Verdict,
    judge_matches,
    turn_matches,
)
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.multiple_choice import DEFAULT_TEMPLATE, choice_question
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores


class LikesLong(Judge):
    """Prefers the longer option, and the first one a little."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__("likes long", "test")
        self.asked: list[str] = []
        self.fails_at = fails_at

    def ask(self, questions, progress):
        found = []
        for question in questions:
            if self.fails_at is not None and len(self.asked) >= self.fails_at:
                raise ConnectionError("gone")
            self.asked.append(question)
            options = question.split("\nA. ")[1].split("\n\nWhich")[0].split("\nB. ")
            lengths = [len(option) for option in options]
            found.append(Verdict(0.8 if lengths[0] >= lengths[1] else 0.3, 0.5))
            progress(1)
        return found


def matches(count: int = 5):
    return [
        match
        for n in range(count)
        for match in turn_matches(n, "math", [f"Q{n}?"], ["long answer" * n], ["medium one"])
    ]


def test_both_orders_are_asked(tmp_path):
    judge = LikesLong()
    games, facts = judge_matches(
        judge, matches(3), BenchmarkFolder(tmp_path), 2, title="t", quiet=True
    )
    assert len(judge.asked) == 6
    # Question 0: the model's answer is empty and loses in both orders.
    assert (games[0].first, games[0].second) == (0.3, pytest.approx(0.2))
    assert (games[2].first, games[2].second) == (0.8, pytest.approx(0.7))
    assert (games[2].model_length, games[2].baseline_length) == (22, 10)
    assert facts == {"unjudged": 0, "letter_mass": 0.5}


def test_finished_shards_are_not_asked_again(tmp_path):
    folder = BenchmarkFolder(tmp_path)
    dying = LikesLong(fails_at=5)
    with pytest.raises(ConnectionError, match="gone"):
        judge_matches(dying, matches(), folder, 2, title="t", quiet=True)
    judge = LikesLong()
    games, _ = judge_matches(judge, matches(), folder, 2, title="t", quiet=True)
    assert len(judge.asked) == 6  # three matches are left, in both orders
    whole = LikesLong()
    again, _ = judge_matches(
        whole, matches(), BenchmarkFolder(tmp_path / "other"), 2, title="t", quiet=True
    )
    assert games == again


def test_a_model_is_asked_by_its_own_probabilities(tmp_path):
    """The verdict equals one that is computed with transformers alone."""
    path = worlds.save_model(tmp_path / "judge", 5)
    checkpoint = Checkpoint("judge", str(path), dtype="float64")
    config = worlds.run_config(tmp_path)
    judge = ModelJudge(TransformersEngine(checkpoint, ModelScores(config, "mean")))
    question = choice_question("Why?", ["because", "so"], DEFAULT_TEMPLATE)
    (verdict,) = judge.ask([question], lambda count: None)
    assert verdict is not None
    tokenizer = checkpoint.tokenizer
    text = f"<|user|>{question}<|assistant|>"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        share = checkpoint.model(input_ids=ids).logits[0, -1].softmax(-1)
    a, b = (share[tokenizer.convert_tokens_to_ids(letter)].item() for letter in "AB")
    assert verdict.first == pytest.approx(a / (a + b), rel=1e-9)
    assert verdict.mass == pytest.approx(a + b, rel=1e-9)


def test_what_is_longer_than_the_window_is_left_out(tmp_path, caplog):
    path = worlds.save_model(tmp_path / "judge", 5, window=200)
    checkpoint = Checkpoint("judge", str(path))
    judge = ModelJudge(
        TransformersEngine(checkpoint, ModelScores(worlds.run_config(tmp_path), "mean"))
    )
    rows = [
        *turn_matches("short", "", ["Why?"], ["a"], ["b"]),
        *turn_matches("long", "", ["Why?"], ["a" * 300], ["b"]),
    ]
    games, facts = judge_matches(
        judge, rows, BenchmarkFolder(tmp_path / "out"), 4, title="t", quiet=True
    )
    assert [game.question for game in games] == ["short"]
    assert facts["unjudged"] == 1
    assert "1 of 2 matches are left out" in caplog.text
    with pytest.raises(ValueError, match="too short a window to read any"):
        judge_matches(judge, rows[1:], BenchmarkFolder(tmp_path / "no"), 4, title="t", quiet=True)


def test_a_later_turn_shows_what_came_before():
    first, second = turn_matches(7, "math", ["What?", "Why?"], ["a1", "a2"], ["b1", "b2"])
    assert (first.query, first.model, first.baseline) == ("What?", "a1", "b1")
    assert second.query == "user: What?\nuser: Why?"
    assert "a1" in second.model
    assert "a2" in second.model
    assert "b2" not in second.model
    assert (first.question, second.question) == (7, 7)
