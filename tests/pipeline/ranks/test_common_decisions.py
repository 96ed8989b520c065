"""What depends on files is decided once: a rank does as rank 0 does, whatever it sees itself."""

from __future__ import annotations

import pytest

from pad_fast.evaluation import model_names
from pad_fast.pipeline import rounds
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.evaluate import heldout, validation
from pad_fast.pipeline.evaluate.benchmarks import RunBenchmarks
from pad_fast.pipeline.ranks import Ranks
from pad_fast.pipeline.run import RunContext


class Second(Ranks):
    """Rank 1 of two, of which rank 0 saw what is given here."""

    def __init__(self, *seen: object) -> None:
        super().__init__(1, 2)
        self.seen = list(seen)

    def agree(self, value: object) -> object:
        return self.seen.pop(0)

    def wait(self, meanwhile: object = None) -> None:
        """Rank 0 is there."""


@pytest.fixture
def run(finished) -> RunContext:
    """A run of two rounds and the baseline, of which all files are there."""
    return RunContext(parse_settings("run", [str(finished / "config.yaml")]))


@pytest.mark.parametrize(
    ("phase", "seen", "message"),
    [
        (rounds.score, True, "round 1 is not sampled yet"),
        (rounds.train, True, "round 1 is not scored yet"),
        (rounds.evaluate, False, "round 1 is not trained yet"),
    ],
)
def test_what_is_not_there_yet_is_so_for_all_ranks(run, phase, seen, message):
    run.ranks = Second(seen)
    with pytest.raises(ValueError, match=message):
        phase(run, 1)


def test_the_baseline_follows_the_round_that_is_rank_0s_last_one(run, monkeypatch):
    asked = []
    monkeypatch.setattr(rounds, "sample_answers", lambda run, last: asked.append(last))
    run.ranks = Second(False, False, True, False)
    rounds.train(run, 1)
    monkeypatch.setattr(validation, "validate", lambda run, round: None)
    monkeypatch.setattr(
        heldout, "evaluate", lambda run, models: asked.extend(model.name for model in models)
    )
    run.ranks = Second(True, True)
    rounds.evaluate(run, 1)
    assert asked == [1, model_names.TEACHER, "student-00", "student-01", model_names.SEQKD]
    assert not run.ranks.seen


def test_benchmarks_are_asked_before_the_baseline_of_a_round_that_stops_the_run(run, monkeypatch):
    """It is trained when the round is gone through again as the last one."""
    asked = []
    monkeypatch.setattr(
        validation,
        "validate",
        lambda *_: monkeypatch.setattr(validation, "last_round", lambda _: 1),
    )
    monkeypatch.setattr(heldout, "evaluate", lambda run, models: None)
    monkeypatch.setattr(
        RunBenchmarks, "do", lambda self, models: asked.extend(model.name for model in models)
    )
    rounds.evaluate(run, 1)
    assert asked == [model_names.TEACHER, "student-00", "student-01"]
