"""Batches of sampling and of scoring hold no more tokens than the settings say."""

from __future__ import annotations

import pytest
from worlds import run_config

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores

PROMPTS = [[3, 7 + place, 9, 4] + [20] * (place % 3) for place in range(8)]
RESPONSES = [[[9 + place, 10, 1], [11, 1]] for place in range(8)]
MOST = 40


@pytest.fixture
def read(world):
    """Asks an engine with given limits, and returns the shapes of what its model read."""

    def ask(question, **limits):
        student, shapes = Checkpoint("student", str(world / "student")), []
        engine = TransformersEngine(student, ModelScores(run_config(world, **limits), "mean"))
        embedding = student.model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
        question(engine)
        return shapes

    return ask


def test_a_batch_of_sampling_holds_its_limit(read):
    n, longest = 2, 3
    how = Sampling(longest, temperature=1.0)

    def sampled(**limits):
        shapes = read(lambda engine: engine.sample(PROMPTS, n, how, 0), **limits)
        return [rows * (width + longest) for rows, width in shapes if width > 1]  # the prompts

    limited = sampled(sample_batch_tokens=MOST, score_batch_tokens=10_000)
    assert max(limited) <= MOST < max(sampled(sample_batch_tokens=10_000, score_batch_tokens=MOST))
    assert len(limited) >= 4


@pytest.mark.parametrize(
    "question",
    [
        lambda engine: engine.logps(PROMPTS, RESPONSES),
        lambda engine: engine.rewards(PROMPTS, RESPONSES),
        lambda engine: engine.choices(PROMPTS, [40, 41]),
    ],
    ids=["logps", "rewards", "choices"],
)
@pytest.mark.parametrize("share", ["true", "false"])
def test_a_batch_of_scoring_holds_its_limit(read, question, share):
    def scored(**limits):
        shapes = read(question, share_prefix=share, **limits)
        return [rows * width for rows, width in shapes]

    limited = scored(score_batch_tokens=MOST, sample_batch_tokens=10_000)
    assert max(limited) <= MOST < max(scored(score_batch_tokens=10_000, sample_batch_tokens=MOST))
