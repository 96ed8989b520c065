"""The fused kernel, which scores hidden states without logits in memory."""

from dataclasses import replace

import pytest
import torch
from pad_fast.kernels.linear_logprob import launch, tuning

from pad_fast import reference
from pad_fast.logprob.softmax import TokenOptions
from tests.kernels.linear_logprob.cases import DTYPES, OPTIONS, WIDE, draw, ours

pytestmark = pytest.mark.usefixtures("small_tiles")


@DTYPES
@OPTIONS
@pytest.mark.parametrize(
    ("vocabulary", "width"), [(300, 24), (1, 16), (31, 40), (256, 64), (257, 33)]
)
@pytest.mark.parametrize("described", [False, True])
def test_fused_scores(monkeypatch, dtype, options, vocabulary, width, described):
    tiling = tuning.ScoringTiling(16, 32, 64, 4, 2, described=described)
    plain = replace(tiling, described=False)
    tilings = tuning.ScoringTilings(aligned=tiling, odd=plain, float32=plain)
    monkeypatch.setattr(launch, "scoring_of", lambda device: tilings)
    check_scores(options, rows=18, width=width, vocabulary=vocabulary, dtype=dtype)


def check_scores(options, **sizes):
    hidden, weight, bias, labels, _ = draw(**sizes)
    with torch.no_grad():
        logps = ours(hidden, weight, labels, bias=bias, memory_budget=0, **options)
        eager, exact = (
            reference.linear_token_logprobs(
                hidden.to(kind), weight.to(kind), labels, bias=bias.to(kind), **options
            )
            for kind in (torch.float32, torch.float64)
        )
    slack = 3e-6 * exact.abs().clamp(min=1)
    assert ((logps - exact).abs() <= 2 * (eager - exact).abs().amax() + slack).all()


def test_fused_scores_of_a_softcap_whose_rows_need_their_maximum():
    check_scores(WIDE, rows=18)


@pytest.mark.parametrize("level", [-500.0, 500.0])
def test_fused_scores_far_from_zero(level):
    hidden, weight, bias, labels, _ = draw()
    bias += level
    with torch.no_grad():
        logps = ours(hidden, weight, labels, bias=bias, memory_budget=0)
        exact = reference.linear_token_logprobs(
            hidden.double(), weight.double(), labels, bias=bias.double()
        )
    torch.testing.assert_close(logps.double(), exact, rtol=2e-6, atol=1e-4)


def test_fused_scores_have_the_same_bits_in_any_company():
    hidden, weight, bias, labels, _ = draw(rows=20)
    labels = labels.clamp(min=0)
    with torch.no_grad():
        logps = ours(hidden, weight, labels, bias=bias, memory_budget=0)
        assert torch.equal(
            ours(hidden[7:9], weight, labels[7:9], bias=bias, memory_budget=0), logps[7:9]
        )


def test_fused_scoring_writes_no_logits(traffic):
    """It writes three numbers for each row and part of the vocabulary, and nothing else."""
    hidden, weight, bias, labels, _ = draw(rows=20)
    launch.score(hidden, weight, bias, labels, TokenOptions())
    assert traffic.stored == 4 * 20 * 3 * (tuning.SPLITS + 1)


def test_scoring_takes_the_fused_kernel_where_memory_is_short(monkeypatch):
    hidden, weight, bias, labels, _ = draw()
    monkeypatch.setattr(launch, "rows", None)  # the launcher of the other way
    with torch.no_grad():
        ours(hidden, weight, labels, bias=bias, memory_budget=4 * 4 * 320 - 1)
        with pytest.raises(TypeError):
            ours(hidden, weight, labels, bias=bias, memory_budget=4 * 4 * 320)
        with pytest.raises(TypeError):
            ours(hidden, weight, labels, bias=bias)
