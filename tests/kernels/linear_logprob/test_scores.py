"""What rows keep for the backward: row_scale * scores is d log p / d logits, after one walk or two.

Rows in bfloat16 are walked over once, unless their label is too improbable or their softcap wide.
"""

import math

import pytest
import torch
from pad_fast.kernels.linear_logprob import launch, tuning

from pad_fast import linear_loss, linear_preference_loss, reference
from pad_fast.linear_logprob import memory_budget
from pad_fast.logprob.softmax import TokenOptions
from tests.kernels.linear_logprob.cases import CAPPED, DEVICE, PLAIN, WIDE, check, close, draw

TILING, LARGE = tuning.RowTiling(64, 4), tuning.RowTiling(4096, 4)
TINY = 1e-30  # below, powers of e are lost
EIGHT_BITS, FLOAT32 = 2**-8, 1e-5  # what bfloat16 rounds away of a number, and float32 before


def keep(logits, labels, options, dtype=torch.bfloat16, bias=None, tiling=TILING):
    """Scores (R, V) in ``dtype``, the scale of each row and the log-probabilities."""
    rows, vocabulary = logits.shape
    room = torch.full((rows, vocabulary + 3), torch.nan, dtype=dtype, device=DEVICE)
    row_scale, *found = (torch.full((rows,), torch.nan, device=DEVICE) for _ in range(4))
    kept = (room[:, :vocabulary], row_scale)
    launch.rows(logits, bias, labels, kept, tuple(found), TokenOptions(**options), tiling)
    assert room[:, vocabulary:].isnan().all()
    return kept[0], row_scale, found[0]


def exact(logits, labels, options):
    """d log p / d logits in float64."""
    leaf = logits.double().requires_grad_()
    logp = reference.token_logprobs(leaf, labels, **options)
    return torch.autograd.grad(logp.sum(), leaf)[0]


def assert_exact(logits, labels, options, scores, row_scale):
    """Each entry is the exact one, rounded, and after one walk the label's as exact as float32.

    All others of the row have the rounding of the label's score in addition to their own.
    """
    want = exact(logits, labels, options)
    got = scores.double() * row_scale.double().unsqueeze(1)
    once = (row_scale != 1).double().unsqueeze(1)
    size = want.abs() + TINY
    allowed = size * ((1 + once) * EIGHT_BITS + FLOAT32)
    steepest = options.get("logit_scale", 1.0) / options.get("temperature", 1.0)
    own = labels.unsqueeze(1)
    of_label = size.gather(1, own) * ((1 - once) * EIGHT_BITS + FLOAT32) + 4 * 2**-24 * steepest
    assert ((got - want).abs() <= allowed.scatter(1, own, of_label)).all()


def random_logits(rows, vocabulary, size=4.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=g) * size
    return logits.to(DEVICE), torch.randint(vocabulary, (rows,), generator=g).to(DEVICE)


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 128, 129, 300])
@pytest.mark.parametrize("options", [PLAIN, CAPPED, WIDE], ids=["plain", "capped", "wide"])
@pytest.mark.parametrize("biased", [False, True])
def test_each_entry_of_a_kept_row(vocabulary, options, biased):
    logits, labels = random_logits(4, vocabulary)
    labels[0], labels[1] = 0, vocabulary - 1
    bias = random_logits(1, vocabulary, 1.0, 1)[0][0].bfloat16() if biased else None
    whole = logits if bias is None else logits + bias.float()
    scores, row_scale, logp = keep(logits, labels, options, bias=bias)
    assert_exact(whole, labels, options, scores, row_scale)
    again, _, without = keep(logits, labels, options, torch.float32, bias)
    assert torch.equal(logp, without)  # whatever the walks, log p has the same bits
    assert (again.isfinite() & scores.isfinite()).all()


BELOW = [0.0, 5.0, 39.9, 40.1, 60.0, 87.0, 200.0, torch.inf]


@pytest.mark.parametrize("peak", [-500.0, 0.0, 80.0])
def test_a_label_may_be_far_below_the_maximum(peak):
    """Within 40 nats of it a row is walked over once; beyond, twice, and its scale is 1."""
    logits, _ = random_logits(len(BELOW), 200, 1.0)
    logits += peak - 10.0
    labels = torch.full((len(BELOW),), 70, device=DEVICE)
    logits[:, 130] = peak
    logits[:, 70] = peak - torch.tensor(BELOW, device=DEVICE)
    scores, row_scale, _ = keep(logits, labels, PLAIN)
    assert_exact(logits, labels, PLAIN, scores, row_scale)
    assert (row_scale == 1).tolist() == [below > 40 for below in BELOW]


@pytest.mark.parametrize("options", [PLAIN, CAPPED], ids=["plain", "capped"])
def test_a_label_with_almost_all_probability(options):
    logits = torch.zeros(4, 200, device=DEVICE)
    logits[:, 3] = torch.tensor([9.0, 12.0, 15.0, 18.0], device=DEVICE)
    labels = torch.full((4,), 3, device=DEVICE)
    scores, row_scale, _ = keep(logits, labels, options)
    assert_exact(logits, labels, options, scores, row_scale)


def test_masked_columns_have_a_score_of_zero():
    logits, labels = random_logits(2, 200)
    logits[:, 64:128] = -torch.inf  # a whole tile
    logits[1, :64] = -torch.inf  # and the first
    labels[:] = 150
    scores, row_scale, _ = keep(logits, labels, PLAIN)
    assert (scores[:, 64:128] == 0).all()
    assert_exact(logits, labels, PLAIN, scores, row_scale)


def test_a_saturated_logit_has_no_slope():
    logits, labels = random_logits(2, 200)
    logits[0, 5], logits[1, labels[1]] = 4000.0, 4000.0
    scores, _, _ = keep(logits, labels, CAPPED)
    assert scores[0, 5] == 0
    assert scores[1, labels[1]] == 0


@pytest.mark.parametrize("options", [PLAIN, CAPPED, WIDE], ids=["plain", "capped", "wide"])
def test_a_row_with_nan_keeps_zeros(options):
    logits, labels = random_logits(3, 200)
    logits[0, 100], labels[1] = torch.nan, 200
    scores, row_scale, logp = keep(logits, labels, options)
    assert logp.isnan().tolist() == [True, True, False]
    assert not scores[:2].any()
    assert (row_scale[:2] == 1).all()
    assert_exact(logits[2:], labels[2:], options, scores[2:], row_scale[2:])


LN_2 = math.log(2)
STEEP = {"softcap": 0.01, "logit_scale": 20.0}  # its bits are few, but its polynomial out of range
HALF, WHOLE = torch.float16, torch.float32
WALKS = {
    "bfloat16": (torch.bfloat16, PLAIN, 1),
    "bfloat16, softcap": (torch.bfloat16, CAPPED, 1),
    "bfloat16, wide softcap": (torch.bfloat16, WIDE, 2),
    "bfloat16, 63.9 bits": (torch.bfloat16, {"softcap": 63.9 * LN_2}, 1),
    "bfloat16, 64.1 bits": (torch.bfloat16, {"softcap": 64.1 * LN_2}, 2),
    "bfloat16, steep softcap": (torch.bfloat16, STEEP, 2),
    "float16": (HALF, PLAIN, 2),
    "float16, softcap": (HALF, CAPPED, 2),
    "float32": (WHOLE, PLAIN, 2),
    "float32, softcap": (WHOLE, CAPPED, 2),
}


@pytest.mark.parametrize("case", WALKS)
def test_traffic_of_a_row_that_keeps_its_scores(traffic, case):
    """Logits are read once or twice, and scores written once."""
    dtype, options, walks = WALKS[case]
    logits, labels = random_logits(3, 20000, 1.0)
    keep(logits, labels, options, dtype, tiling=LARGE)
    read, written = 4 * logits.numel(), dtype.itemsize * logits.numel()
    assert walks * read <= traffic.loaded <= 1.01 * walks * read
    assert written <= traffic.stored <= 1.01 * written + 100


def test_traffic_of_a_row_whose_label_is_improbable(traffic):
    """It is read twice and written twice."""
    logits, labels = random_logits(1, 20000, 1.0)
    logits[0, labels[0]] = -50.0
    keep(logits, labels, PLAIN, tiling=LARGE)
    assert 8 * logits.numel() <= traffic.loaded <= 8.1 * logits.numel()
    assert 4 * logits.numel() <= traffic.stored <= 4.1 * logits.numel()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("bits", [20.0, 63.9])
def test_gradients_of_any_size(size, bits):
    """A scale of a row, times a tiny or a huge upstream gradient, stays in range."""
    hidden, weight, bias, labels, grad = draw(dtype=torch.bfloat16)
    check(hidden, weight, bias, labels, grad * size, softcap=bits * LN_2)
    # Rows whose logits are all at two thirds of their softcap have the largest sums there are.
    check(hidden * 0, weight, bias * 0 + 2 / 3 * bits, labels, grad * size, softcap=bits * LN_2)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_chunks_of_whole_prompts_multiply_by_the_scale(softcap, monkeypatch):
    """A loss by chunks has the gradients of float64, as by two steps."""
    monkeypatch.setattr(linear_loss, "may_take_chunks", lambda problem: True)
    monkeypatch.setattr(linear_loss, "fits_in_chunks", lambda problem, rows: True)
    monkeypatch.setattr(memory_budget, "rows_at_a_time", lambda *_: 6)
    hidden, weight, _, labels, _ = draw(rows=12, dtype=torch.bfloat16, scale=0.3)
    teacher = torch.tensor([[-1.0, -2.0], [-1.5, -0.5]], device=DEVICE)
    found = []
    for leaves, impl in (
        ((hidden, weight), "triton"),
        ((hidden.double(), weight.double()), "torch"),
    ):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        loss, _ = linear_preference_loss(
            leaves[0].view(4, 3, -1),
            leaves[1],
            labels.view(4, 3),
            teacher.to(leaves[0].dtype if impl == "torch" else torch.float32),
            loss="vpd",
            softcap=softcap,
            impl=impl,
        )
        found.append(torch.autograd.grad(loss, leaves))
    for got, want in zip(*found, strict=True):
        close(got, want, 8e-3)


@pytest.mark.parametrize("options", [PLAIN, CAPPED], ids=["plain", "capped"])
def test_one_walk_is_more_exact_than_two(options, monkeypatch):
    """A label's score is as large as all others together, and only one walk keeps it exactly."""
    logits, labels = random_logits(16, 500, 2.0)
    want, errors = exact(logits, labels, options), []
    for once in (True, False):
        monkeypatch.setattr(launch, "_hold_early_scores", lambda dtype, options, once=once: once)
        scores, row_scale, _ = keep(logits, labels, options)
        errors.append((scores * row_scale.double().unsqueeze(1) - want).square().mean())
    assert errors[0] < 0.5 * errors[1]
