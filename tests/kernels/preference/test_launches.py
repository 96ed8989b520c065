"""What a listwise loss launches: one kernel for masks, scaling, loss and gradient, and no waiting.

This is the structure that a CUDA graph needs: after a first call nothing comes from the host, and
no value is read there. Allocations are not counted, since a graph takes them from a pool of its own
when it is captured. Losses without a kernel are PyTorch's operations, which are not looked at.
"""

import pytest
import torch
from pad_fast.kernels.preference import launch

import pad_fast
from pad_fast.preference import op as preference_op
from pad_fast.preference.likelihood import LIKELIHOODS
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.preference.op import most_responses
from pad_fast.preference.plackett_luce import RankingOptions
from tests.kernels.preference.cases import DEVICE, KINDS, loss_of, near, rewards
from tests.launches import counted

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counts on tensors of the CPU")

N = 3
JOBS = {
    "jsd": ("ppd", {}),
    "kl": ("ppd", {"divergence": "kl"}),
    "reverse_kl": ("ppd", {"divergence": "reverse_kl"}),
    "sampled": ("ppd", {"method": "sampled", "num_samples": 4}),
    "vpd": ("vpd", {}),
}
KERNELS = {"kl": "preference_kl", "reverse_kl": "preference_kl", "sampled": "preference_sampled"}
# One that takes both kernels, one with groups in a prompt, and one with the likelihood too.
OTHERS = {
    "wide": ("ppd", {"num_samples": 4}, 9, 22),
    "groups": ("vpd", {"group_size": 2}, N, 36),
    "likelihood": ("vpd", {"likelihood_weight": 0.1}, N, 30),
}
WITH_A_KERNEL = [
    name for name, loss in LOSSES.items() if most_responses(loss.kinds[0].name, "exact") != 0
]
FURTHER = [
    {"group_size": 2},
    *({"likelihood_weight": 0.1, "likelihood_on": on} for on in LIKELIHOODS),
]


def batch(n=N):
    """Student and teacher rewards, a mask and numbers of tokens of 2 prompts."""
    student, teacher = rewards(2, n, dtype=torch.float32)
    mask = torch.tensor([[True] * n, [True, False] + [True] * (n - 2)])
    lengths = torch.arange(2 * n).view(2, n).remainder(n) + 1
    lengths[0, 0] = 0
    return student, teacher, mask, lengths


def step(loss, student, teacher, **options):
    """Value and gradient, with an upstream gradient that no launch has to make."""
    leaf, upstream = student.clone().requires_grad_(), torch.tensor(0.5)

    def go():
        value = pad_fast.preference_loss(loss, leaf, teacher, impl="triton", **options)
        return value, torch.autograd.grad(value, leaf, upstream)[0]

    return go


@pytest.mark.parametrize("masks", ["none", "mask", "lengths", "both"])
@pytest.mark.parametrize("job", JOBS)
def test_masks_scaling_loss_and_gradient_are_one_launch(job, masks, monkeypatch):
    """The mean is another launch, and what the backward multiplies with takes two."""
    loss, options = JOBS[job]
    student, teacher, mask, lengths = batch()
    options |= {"mask": mask} if masks in ("mask", "both") else {}
    options |= {"lengths": lengths} if masks in ("lengths", "both") else {}
    go = step(loss, student, teacher, **options)
    go()
    with counted(monkeypatch) as launches:
        go()
    kernel = KERNELS.get(job, f"preference_{job}")
    assert launches.launched == {kernel: 1, "preference_reduce": 1, "div": 1, "mul": 1}
    assert not launches.waited
    assert not launches.from_host


@pytest.mark.parametrize("job", OTHERS)
def test_other_losses_wait_for_nothing_either(job, monkeypatch):
    loss, options, n, most = OTHERS[job]
    student, teacher, mask, lengths = batch(n)
    # The interpreter is slow: groups of up to 3 are those that the exact kernel takes.
    few = {"exact": 3, "sampled": 32}
    monkeypatch.setattr(preference_op, "most_responses", lambda kind, method: few[method])
    go = step(loss, student, teacher, mask=mask, lengths=lengths, **options)
    go()
    with counted(monkeypatch) as launches:
        go()
    assert not launches.waited
    assert not launches.from_host
    assert launches.total <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", WITH_A_KERNEL)
def test_nothing_comes_from_the_host_in_any_loss(loss, dtype, monkeypatch):
    """With and without what masks, groups, likelihoods, an anchor and a wider teacher add."""
    student, teacher, mask, lengths = batch()
    own = torch.tensor([[True] + [False] * (N - 1)] * 2)
    own_options = {"anchor_rewards": student / 2} if LOSSES[loss].needs_anchor else {}
    own_options |= {"divergence": "kl"} if loss == "ppd" else {}  # the quickest to interpret
    for further in ({}, *FURTHER):
        column = {"from_teacher": own} if further.get("likelihood_on") == "teacher" else {}
        for masks in ({}, {"mask": mask, "lengths": lengths}):
            options = further | column | own_options | masks
            go = step(loss, student, teacher.to(dtype), **options)
            go()
            with counted(monkeypatch) as launches:
                go()
            assert (launches.from_host, launches.waited) == ([], []), options
            assert launches.total >= 4


def test_a_whole_loss_is_ten_launches(monkeypatch):
    """Log-probabilities, rewards, the loss and its mean; then back through all of them."""
    logits, labels = torch.randn(4, 3, 8).requires_grad_(), torch.randint(8, (4, 3))
    teacher, upstream = torch.randn(1, 4), torch.tensor(1.0)
    module = pad_fast.PADLoss("ppd", impl="triton")

    def go():
        return torch.autograd.grad(module(logits, labels, teacher), logits, upstream)

    go()
    with counted(monkeypatch) as launches:
        go()
    ours = {"logprob_fwd", "response_sums", "preference_jsd", "preference_reduce", "logprob_bwd"}
    assert {name for name in launches.launched if "_" in name} == ours
    assert launches.total == 10
    assert not launches.waited
    assert not launches.from_host


def test_what_waits_is_seen(monkeypatch):
    """The mode that the tests above rely on: each of these would stop a CUDA graph."""
    x = torch.tensor([1.0, 0.0])
    with counted(monkeypatch) as launches:
        x.sum().item()
        x.nonzero()
        x[x > 0]
        x.tolist()
        (x > 0).any().item()
        torch.equal(x, x)
        bool(x[0])
    assert len(launches.waited) == 7
    assert launches.launched["sum"] == 1
    assert launches.launched["clone"] == 0
    with counted(monkeypatch) as launches:
        x.expand(3, 2).contiguous()
        torch.tensor([2.0])
    assert launches.total == 1
    assert len(launches.from_host) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_without_tokens_is_masked(kind):
    """Lengths, and lengths beside a mask, leave out the same as one mask of both."""
    student, teacher, mask, lengths = batch()
    student[0, 0] = torch.nan
    wanted = loss_of(kind, student, teacher, mask & (lengths > 0))
    rest = (kind, "exact", False, "triton", "none", *RankingOptions(10.0, 7.0, 16))
    found = preference_op.preference_loss(student, teacher, mask, lengths, *rest)
    near(found[:2], wanted, 0)
    found = preference_op.preference_loss(student, teacher, None, lengths.int(), *rest)
    near(found[:2], loss_of(kind, student, teacher, lengths > 0), 0)


@pytest.mark.parametrize("masks", ["none", "mask", "lengths", "both"])
@pytest.mark.parametrize(("groups", "n"), [(1, 2), (5, 3), (70, 40), (3, 2049)])
def test_sums_and_means_are_those_of_float64(masks, groups, n):
    generator = torch.Generator().manual_seed(groups)
    losses = torch.rand(groups, generator=generator, dtype=torch.float64)
    mask = torch.rand(groups, n, generator=generator) < 2 / n
    lengths = torch.randint(3, (groups, n), generator=generator)
    live = mask if masks in ("mask", "both") else None
    tokens = lengths if masks in ("lengths", "both") else None
    counts = torch.ones(groups, n, dtype=torch.bool)
    counts &= counts if live is None else live
    counts &= counts if tokens is None else tokens > 0
    own = counts.sum(1) >= 2
    losses = losses * own
    for name in ("sm_90", "gfx942"):
        total, none = launch.reduce(losses, live, tokens, n, False, name)
        mean, divisor = launch.reduce(losses, live, tokens, n, True, name)
        near((total, mean), (losses.sum(), losses.sum() / own.sum().clamp(min=1)), 1e-14)
        assert divisor == max(1, own.sum())
        assert none.numel() == 0


def test_a_mean_of_nothing_is_zero():
    losses, dead = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.bool)
    for given, live in ((losses, dead), (losses[:0], None)):
        mean, divisor = launch.reduce(given, live, None, 4, True)
        assert (mean, divisor) == (0, 1)


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_reduced_losses_and_gradients(kind, reduction, impl):
    """The mean is over the two prompts of three that have two responses which count."""
    student, teacher = rewards(3, N)
    mask = torch.tensor([[True] * 3, [True, False, True], [False, True, True]])
    lengths = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 0]])
    losses, gradients = loss_of(kind, student, teacher, mask & (lengths > 0), impl="torch")
    share = 0.5 if reduction == "mean" else 1.0
    leaf = student.requires_grad_()
    rest = (kind, "exact", False, impl, reduction, *RankingOptions(10.0, 7.0, 16))
    loss, *_ = preference_op.preference_loss(leaf, teacher, mask, lengths, *rest)
    found = torch.autograd.grad(loss, leaf, torch.tensor(-1.5).double())
    near((loss, *found), (share * losses.sum(), -1.5 * share * gradients), 1e-11)
