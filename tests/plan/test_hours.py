"""The seconds of a run's pieces by hand, where each kind of work takes a given time."""

from __future__ import annotations

import pytest
from planned_runs import config_of, estimator
from worlds import write_prompts

from pad_fast.plan.estimate import Estimator
from pad_fast.plan.work import Work


class Given:
    """Speeds that are easily added up: see pad_fast.plan.speeds.Speeds."""

    def sampling(self, role, n, prompts):
        return 1.0, 0.5

    def scoring(self, role, n, prompts):
        return 2.0 * prompts

    def trying(self, role, n, prompts):
        return 0.25

    def asking(self, n, questions):
        return 0.125 * questions

    def micro_batch(self, settings):
        return 4.0

    def step(self, settings):
        return 16.0

    def answers(self, prompts):
        return 64.0

    def loading(self, role):
        return 0.0


class NoPeaks:
    """Nobody looks at the memory here, whose count takes seconds."""

    def __init__(self, peaks):
        self.prompts_of_batch = peaks.prompts_of_batch

    def load(self, role):
        return 0

    def score(self, *work):
        return 0

    def sample(self, *work):
        return 1, 0

    ask = sample
    train = train_answers = load


# A round has 8 prompts with 3 responses of 6 tokens; a shard holds 2 of them, and a step 4.
PARTS = {
    "sample": 4 * (1.0 + 5 * 0.5) + 8 * 2.0 + 0.25,  # with the student's own rewards
    "teacher: score": 8 * 2.0,  # the first scores, which try the layouts, are the held-out ones
    "teacher: calibrate": 8 * 6 * 0.125,
    "train": 2 * (4.0 + 16.0),
}


def seconds(world, folder, **changes: object) -> dict[str, float]:
    """The seconds of the pieces of all rounds, by the words after "round 1/1"."""
    changes = {"sample_batch_tokens": 10**6, "score_batch_tokens": 10**6, **changes}
    found = estimator(config_of(world, folder, **changes))
    timed = Estimator(found.case, NoPeaks(found.peaks), Given())
    pieces = {one.title.partition(" · ")[2]: one for one in timed.pieces() if "round" in one.title}
    assert pieces["train"].seconds == pieces["train"].count * timed.step().seconds
    return {name: piece.seconds for name, piece in pieces.items()}


def test_a_rounds_seconds_by_hand(world, tmp_path):
    assert seconds(world, tmp_path) == pytest.approx(PARTS)


class Batches(Given):
    """Keeps how many prompts of each model and how many questions are timed together."""

    def __init__(self):
        self.found = []

    def scoring(self, role, n, prompts):
        self.found.append((role, prompts))
        return super().scoring(role, n, prompts)

    def asking(self, n, questions):
        self.found.append(("questions", questions))
        return super().asking(n, questions)


@pytest.mark.parametrize("shard_size", [2, 4, 100])
def test_no_batch_is_larger_than_a_shard(world, tmp_path, shard_size):
    limits = {"sample_batch_tokens": 10**6, "score_batch_tokens": 10**6}
    found = estimator(config_of(world, tmp_path, shard_size=shard_size, **limits))
    speeds, peaks, shown = Batches(), NoPeaks(found.peaks), []
    peaks.ask = lambda n, prompts, *_: (shown.append(prompts), (1, 0))[1]
    for piece in Work(found.config, found.case.counts).pieces():
        if piece.titles[0].startswith("round"):
            Estimator(found.case, peaks, speeds).piece(piece)
    prompts = min(shard_size, 8)
    together = [("student", prompts), ("teacher", prompts), ("questions", prompts * 6)]
    assert speeds.found == together
    assert shown == [prompts]


def test_twice_the_rounds(world, tmp_path):
    """The scores of each further round, for which the teacher is loaded anew, try the layouts."""
    twice = {name: 2 * part for name, part in PARTS.items()}
    twice["teacher: score"] += 0.25
    found = seconds(world, tmp_path, rounds=2, baseline="seqkd")
    assert found.pop("seqkd") == 4 * 64.0  # as many steps as both rounds
    assert found == pytest.approx(twice)


def test_twice_the_prompts(world, tmp_path):
    twice = {name: 2 * part for name, part in PARTS.items()}
    twice["sample"] -= 0.25  # one trial
    prompts = str(write_prompts(tmp_path / "sixteen.jsonl", 16))
    assert seconds(world, tmp_path, prompts=prompts) == pytest.approx(twice)


@pytest.mark.parametrize(
    ("changes", "name", "wanted"),
    [
        ({"max_new_tokens": 12}, "sample", 4 * (1.0 + 11 * 0.5) + 8 * 2.0 + 0.25),
        ({"num_generations": 4}, "teacher: calibrate", 8 * 12 * 0.125),
        ({"score_batch_tokens": 500}, "teacher: calibrate", 8 * 6 * 0.125),  # in several batches
        ({"num_train_epochs": 2.0}, "train", 4 * (4.0 + 16.0)),
        ({"gradient_accumulation_steps": 2}, "train", 1 * (2 * 4.0 + 16.0)),
        ({"shard_size": 4}, "sample", 2 * (1.0 + 5 * 0.5) + 8 * 2.0 + 0.25),
    ],
)
def test_what_each_setting_adds(world, tmp_path, changes, name, wanted):
    assert seconds(world, tmp_path, **changes)[name] == pytest.approx(wanted)
