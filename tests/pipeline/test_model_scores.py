"""Which implementation scores in a run, and how the run says so."""

from __future__ import annotations

import json

import pytest
from worlds import changed_config, run_config

from pad_fast import cli
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.score import model_scores
from pad_fast.pipeline.score.model_scores import ModelScores


# Triton's interpreter computes exp of the lowest float32 in NumPy, which warns.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_the_asked_implementation_scores(world):
    """Both implementations give the same scores, and each is recorded once."""
    model = Checkpoint("teacher", str(world / "teacher")).model
    recorded: list[str] = []
    found = {}
    for impl in ("torch", "triton"):
        scores = ModelScores(run_config(world), "mean", impl, recorded.append)
        found[impl] = (
            scores.rewards(model, [[7, 8]], [[[9], [10, 11]]])[0],
            scores.logps(model, [[7, 8]], [[[9], [10, 11]]])[0],
            scores.next_tokens(model, [[7, 8]], [9, 10])[0],
        )
    assert recorded == ["torch", "triton"]
    for ours, others in zip(found["torch"], found["triton"], strict=True):
        assert ours == pytest.approx(others, abs=1e-5)
    rewards, logps, next_tokens = found["torch"]
    assert rewards == pytest.approx([logps[0], logps[1] / 2])
    assert next_tokens[0] == pytest.approx(logps[0], abs=1e-5)


@pytest.mark.usefixtures("no_report")
def test_impl_reaches_everything_that_scores(world, tmp_path, monkeypatch):
    """Student, teacher and evaluation take the run's impl; the manifest names what it became."""
    asked: dict[str, set[str]] = {}

    def spied(function):
        def call(model, *args, impl, **options):
            asked.setdefault(str(model.name_or_path), set()).add(impl)
            return function(model, *args, impl=impl, **options)

        return call

    for name in ("score_responses", "next_token_logprobs"):
        monkeypatch.setattr(model_scores, name, spied(getattr(model_scores, name)))
    monkeypatch.setenv("PAD_FAST_IMPL", "triton")  # which "auto" would follow
    config = changed_config(world, tmp_path, num_generations=2, impl="torch")
    assert cli.main(["run", str(config)]) == 0
    run = tmp_path / "run"
    models = {str(world / "student"), str(world / "teacher"), str(run / "round-01" / "student")}
    assert asked == {path: {"torch"} for path in models}
    assert json.loads((run / "run.json").read_text())["implementations"] == ["torch"]
