"""The public losses: options, masks, groups, dtypes and errors; the ops under them; the modules on top."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch.autograd import gradcheck

from pad_fast import budget, chunked, functional, preference_ops
from pad_fast.group_walk import Groups
from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.modules import LinearPADLoss, PADLoss, linear_preference_loss

from . import oracles

KINDS = ["jsd", "kl", "reverse_kl", "vpd"]
NAN = float("nan")


def rewards(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = 0.3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return student.requires_grad_(), teacher


def preference_loss(kind: str, student: torch.Tensor, teacher: torch.Tensor, **options) -> torch.Tensor:
    if kind == "vpd":
        return vanilla_preference_loss(student, teacher, **options)
    return probabilistic_preference_loss(student, teacher, divergence=kind, **options)


def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]


# Values and options


@pytest.mark.parametrize("kind", KINDS)
def test_equals_enumeration_in_every_reduction(kind: str) -> None:
    student, teacher = rewards(5, 4)
    expected, expected_grad = oracles.value_and_gradient(student, teacher, kind)
    for reduction, value, scale in (("none", expected, 1), ("sum", expected.sum(), 1), ("mean", expected.mean(), 5)):
        loss = preference_loss(kind, student, teacher, reduction=reduction)
        torch.testing.assert_close(loss.detach(), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient(loss, student), expected_grad / scale, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(preference_loss(kind, student, teacher), expected.mean(), rtol=1e-12, atol=0)  # the default


@pytest.mark.parametrize("kind", KINDS[:3])
def test_each_side_has_its_beta(kind: str) -> None:
    student, teacher = rewards(3, 4)
    got = preference_loss(kind, student, teacher, beta=3.0, teacher_beta=8.0, reduction="none")
    torch.testing.assert_close(got, oracles.preference_loss(student, teacher, kind, 3.0, 8.0), rtol=1e-12, atol=0)
    default = preference_loss(kind, student, teacher, beta=3.0, reduction="none")
    torch.testing.assert_close(default, oracles.preference_loss(student, teacher, kind, 3.0, 3.0), rtol=1e-12, atol=0)


def test_vanilla_of_two_is_simpo_without_margin() -> None:
    student, teacher = rewards(6, 2)
    best, worst = student.gather(1, teacher.argsort(1, descending=True)).unbind(1)
    expected = -torch.nn.functional.logsigmoid(10 * (best - worst))
    torch.testing.assert_close(vanilla_preference_loss(student, teacher, reduction="none"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    student, teacher = rewards(3, 5)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False], [False, False, False, True, False]])
    for options in ({}, {"mask": mask}, {"group_size": 2, "reduction": "none"}, {"mask": mask, "group_size": 2, "group_reduction": "sum"}):
        assert gradcheck(lambda s: preference_loss(kind, s, teacher, beta=4.0, **options), student)  # noqa: B023 (called at once)


@pytest.mark.parametrize("kind", KINDS)
def test_any_upstream_gradient_and_no_second_derivative(kind: str) -> None:
    student, teacher = rewards(3, 4)
    loss = preference_loss(kind, student, teacher, reduction="none")
    upstream = torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    once = torch.autograd.grad(loss, student, upstream, create_graph=True)[0]
    each = oracles.value_and_gradient(student, teacher, kind)[1]
    torch.testing.assert_close(once.detach(), upstream[:, None] * each, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        once.sum().backward()


def test_teacher_is_a_constant() -> None:
    student, teacher = rewards(3, 4)
    teacher.requires_grad_()
    probabilistic_preference_loss(student, teacher).backward()
    assert teacher.grad is None
    assert not probabilistic_preference_loss(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    student, teacher = rewards(4, 4)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    loss = preference_loss(kind, student, teacher)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert student.grad.dtype == dtype
    exact, grad = oracles.value_and_gradient(student.double(), teacher.double(), kind)
    torch.testing.assert_close(loss.double(), exact.mean(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(student.grad.double(), grad / 4, rtol=torch.finfo(dtype).eps, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind: str) -> None:
    student, teacher = rewards(4, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = preference_loss(kind, student, teacher)
    assert torch.equal(loss, preference_loss(kind, student, teacher))


def test_vanilla_orders_by_the_teacher_in_its_own_dtype() -> None:
    student = torch.tensor([[0.0, 1.0]])
    teacher = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    torch.testing.assert_close(vanilla_preference_loss(student, teacher), torch.tensor(math.log1p(math.exp(-10))))


def test_strided_rewards_and_inference_mode() -> None:
    student, teacher = rewards(4, 12)
    for kind in KINDS:
        got = preference_loss(kind, student[:, ::2], teacher[:, ::2])
        assert torch.equal(got, preference_loss(kind, student[:, ::2].contiguous(), teacher[:, ::2].contiguous()))
    preference_ops.rankings.lattice.cache_clear()
    with torch.inference_mode():
        inside = preference_loss("kl", student, teacher)
    outside = preference_loss("kl", student, teacher)  # with tables that were made inside
    outside.backward()
    assert torch.equal(inside, outside)


# Masks and groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [NAN, float("inf"), 1e30])
def test_masked_is_as_removed(kind: str, masked: float) -> None:
    student, teacher = rewards(6, 5)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0], mask[1], mask[2] = True, False, torch.arange(5) == 3
    student = student.detach().where(mask, masked).requires_grad_()
    loss = preference_loss(kind, student, teacher.where(mask, masked), mask=mask, reduction="none")
    grad = gradient(loss, student)
    assert not grad[~mask].any()
    for p in range(6):
        live = mask[p]
        if live.sum() < 2:
            assert loss[p] == 0
            assert not grad[p].any()
            continue
        alone, alone_grad = oracles.value_and_gradient(student[p : p + 1, live], teacher[p : p + 1, live], kind)
        torch.testing.assert_close(loss[p].detach(), alone[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad[p, live], alone_grad[0], rtol=1e-12, atol=1e-12)
    mean = preference_loss(kind, student, teacher.where(mask, masked), mask=mask)
    torch.testing.assert_close(mean, loss.sum() / (mask.sum(1) > 1).sum())  # over the live prompts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("prompts", [0, 3])
def test_nothing_live_is_a_differentiable_zero(kind: str, reduction: str, prompts: int) -> None:
    student, teacher = rewards(prompts, 4)
    mask = torch.arange(4).expand(prompts, 4) == 2
    for options in ({}, {"group_size": 2}):
        loss = preference_loss(kind, student, teacher, mask=mask, reduction=reduction, **options)
        assert loss.shape == ((prompts,) if reduction == "none" else ())
        assert not loss.any()
        assert not gradient(loss, student).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_reduction", ["mean", "sum"])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize(("num", "size"), [(6, 2), (6, 3), (7, 3), (7, 4), (5, 2)])  # even, a last group of 1, 3 and 1
def test_groups_are_consecutive_live_responses(kind: str, group_reduction: str, with_mask: bool, num: int, size: int) -> None:
    student, teacher = rewards(4, num)
    mask = torch.ones(4, num, dtype=torch.bool)
    if with_mask:
        mask = torch.rand(4, num, generator=torch.Generator().manual_seed(2)) < 0.7
        mask[0] = torch.arange(num) == 1
    options = {"group_size": size, "group_reduction": group_reduction, "mask": mask if with_mask else None}
    loss = preference_loss(kind, student, teacher, reduction="none", **options)
    expected = []
    for p in range(4):
        chunks = [chunk for chunk in mask[p].nonzero().flatten().split(size) if len(chunk) > 1]
        each = [oracles.preference_loss(student[p : p + 1, chunk], teacher[p : p + 1, chunk], kind)[0] for chunk in chunks]
        total = sum(each) if each else student.sum() * 0
        expected.append(total / len(each) if each and group_reduction == "mean" else total)
    expected = torch.stack(expected)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=1e-12, atol=1e-12)
    live = (mask.sum(1) > 1).sum()
    torch.testing.assert_close(preference_loss(kind, student, teacher, **options), expected.sum() / live)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [5, 9])
def test_one_group_of_all_is_no_groups(kind: str, size: int) -> None:
    student, teacher = rewards(3, 5)
    assert torch.equal(preference_loss(kind, student, teacher, group_size=size), preference_loss(kind, student, teacher))


# Exact or sampled


@pytest.mark.parametrize(("kind", "exact", "sampled"), [("jsd", 8, 9), ("kl", 16, 17), ("reverse_kl", 16, 17)])
def test_auto_is_exact_up_to_a_limit_and_says_once_where_it_is_not(
    kind: str, exact: int, sampled: int, caplog: pytest.LogCaptureFixture
) -> None:
    preference_ops._told.clear()
    student, teacher = rewards(1, sampled, dtype=torch.float32)
    with caplog.at_level(logging.WARNING, "pad_fast"):
        some = preference_loss(kind, student[:, :exact], teacher[:, :exact], num_samples=8)
        assert torch.equal(some, preference_loss(kind, student[:, :exact], teacher[:, :exact], method="exact"))
        assert not caplog.records
        one, two = (preference_loss(kind, student, teacher, num_samples=8, seed=seed) for seed in (1, 2))
        assert one != two
        assert torch.equal(one, preference_loss(kind, student, teacher, method="sampled", num_samples=8, seed=1))
        preference_loss(kind, student.repeat(1, 2), teacher.repeat(1, 2), num_samples=16)  # once, not once a width
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"more than {exact} responses (here {sampled})" in caplog.text
    in_groups = preference_loss(kind, student, teacher, group_size=4)
    assert torch.equal(in_groups, preference_loss(kind, student, teacher, group_size=4, method="exact"))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")  # the interpreter's dead lanes
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(("kind", "width"), [("jsd", 9), ("kl", 17), ("reverse_kl", 17)])
def test_auto_counts_the_live_and_not_the_width(kind: str, width: int, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that is masked is as one that is not there, and a wide group changes nothing for its neighbours."""
    most = width - 1
    if impl == "triton":  # small, as the interpreter is slow; the KLs' kernel takes fewer than PyTorch
        width, most = 6, 4
        monkeypatch.setitem(preference_ops.AUTO_EXACT, kind, 4 if kind == "jsd" else 5)
        monkeypatch.setattr(preference_ops, "most_responses", lambda kind, method: 4 if (method == "exact" and kind != "jsd") else 32)
    device = "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"
    student, teacher = (side.detach().to(device) for side in rewards(3, width))
    student.requires_grad_()
    mask = torch.ones(3, width, dtype=torch.bool, device=device)
    dead = torch.randperm(width, generator=torch.Generator().manual_seed(3))
    mask[0, dead[most:]] = mask[1, dead[: width - 3]] = False
    options = {"num_samples": 8, "seed": 5, "impl": impl, "reduction": "none"}
    loss = preference_loss(kind, student, teacher.where(mask, NAN), mask=mask, **options)
    grad = gradient(loss, student)
    for p in (0, 1):
        live = mask[p]
        alone = preference_loss(kind, student[p : p + 1, live], teacher[p : p + 1, live], method="exact", impl="torch", reduction="none")
        torch.testing.assert_close(loss[p], alone[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad[p], gradient(alone, student)[p], rtol=1e-10, atol=1e-12)
    sampled = preference_loss(kind, student, teacher, mask=mask, method="sampled", **options)
    assert (sampled[:2] != loss[:2]).all()
    if impl == "triton":  # whose draws go by the group's index
        assert torch.equal(loss[2], sampled[2])
        assert torch.equal(grad[2], gradient(sampled, student)[2])
    else:
        whole = preference_loss(kind, student[2:], teacher[2:], method="sampled", **options)
        assert torch.equal(loss[2:], whole)


@pytest.mark.parametrize(("kind", "limit"), [("jsd", 10), ("kl", 16)])
def test_exact_counts_the_live(kind: str, limit: int) -> None:
    student, teacher = rewards(2, limit + 1)
    response = torch.arange(limit + 1)
    mask = torch.stack([response < 3, response != 1])
    preference_loss(kind, student, teacher, mask=mask, method="exact")
    with pytest.raises(ValueError, match=f"at most {limit} responses a group for divergence='{kind}', got {limit + 1}"):
        preference_loss(kind, student, teacher, mask=torch.ones_like(mask), method="exact")
    with pytest.raises(ValueError, match=f"at most {limit} responses"):  # on a device nothing is counted
        preference_loss(kind, student.to("meta"), teacher.to("meta"), mask=mask.to("meta"), method="exact")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_sampled_takes_masks_and_groups(kind: str) -> None:
    student, teacher = rewards(64, 6)
    mask = torch.ones(64, 6, dtype=torch.bool)
    mask[::2, 1] = False
    options = {"mask": mask, "group_size": 3}
    exact = preference_loss(kind, student, teacher, **options)
    sampled = preference_loss(kind, student, teacher, method="sampled", num_samples=2000, **options)
    torch.testing.assert_close(sampled, exact, rtol=0.02, atol=0)
    assert (gradient(sampled, student) - gradient(exact, student)).norm() < 0.1 * gradient(exact, student).norm()
    assert not gradient(sampled, student)[~mask].any()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be a positive finite number, got 0.0"),
        ({"teacher_beta": -1.0}, "teacher_beta must be a positive finite number, got -1.0"),
        ({"divergence": "tv"}, "divergence must be one of jsd, kl, reverse_kl, got 'tv'"),
        ({"method": "quick"}, "method must be one of auto, exact, sampled, got 'quick'"),
        ({"num_samples": 3}, "num_samples must be at least 4, got 3"),
        ({"seed": 2**63}, r"seed must be an integer of 64 bits, from -2\*\*63 to 2\*\*63 - 1, got 9223372036854775808"),
        ({"group_size": 1}, "group_size must be None or at least 2, got 1"),
        ({"group_reduction": "max"}, "group_reduction must be one of mean, sum, got 'max'"),
        ({"reduction": "batchmean"}, "reduction must be one of mean, sum, none, got 'batchmean'"),
        ({"impl": "cuda"}, "impl must be one of auto, torch, triton, got 'cuda'"),
        ({"mask": torch.ones(2, 11)}, "mask must be bool"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask must have the shape of student_rewards, \(2, 11\), got \(2, 3\)"),
        ({"method": "exact"}, "at most 10 responses a group for divergence='jsd', got 11"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    student, teacher = rewards(2, 11)
    with pytest.raises(ValueError, match=message):
        probabilistic_preference_loss(student, teacher, **options)


@pytest.mark.parametrize("kind", ["jsd", "vpd"])
def test_bad_rewards(kind: str) -> None:
    student, teacher = rewards(2, 4)
    with pytest.raises(ValueError, match=r"teacher_rewards must have the shape of student_rewards, \(2, 4\), got \(4, 2\)"):
        preference_loss(kind, student, teacher.T)
    with pytest.raises(ValueError, match=r"at least N = 2 responses a prompt, got \(2, 1\)"):
        preference_loss(kind, student[:, :1], teacher[:, :1])
    with pytest.raises(ValueError, match=r"student_rewards must be \(P, N\)"):
        preference_loss(kind, student[0], teacher[0])
    with pytest.raises(ValueError, match="float16, bfloat16, float32 or float64, got torch"):
        preference_loss(kind, student, teacher.long())
    with pytest.raises(ValueError, match="on the device of student_rewards, cpu, got meta"):
        preference_loss(kind, student, teacher.to("meta"))


@pytest.mark.parametrize("kind", ["jsd", "vpd"])
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_live_rewards_must_be_finite(kind: str, bad: float) -> None:
    student, teacher = rewards(2, 4)
    wrong = teacher.clone()
    wrong[1, 2] = bad
    for masked in (None, torch.arange(4).expand(2, 4) > 0):
        with pytest.raises(ValueError, match=rf"teacher_rewards must be finite for every live response, got {bad} at \[1, 2\] and 1"):
            preference_loss(kind, student, wrong, mask=masked)
        with pytest.raises(ValueError, match="student_rewards must be finite"):
            preference_loss(kind, wrong, teacher, mask=masked)
    preference_loss(kind, student, wrong, check_finite=False)
    compiled = torch.compile(preference_loss, fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match="teacher_rewards must be finite"):
        compiled(kind, student, wrong)


def test_a_kernel_by_name_takes_what_fits_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = rewards(1, 33)
    for _ in range(2):
        with pytest.raises(ValueError, match="the kernel of sampled jsd takes at most 32 responses a group, and there are 33"):
            probabilistic_preference_loss(student, teacher, impl="triton")
        with pytest.raises(ValueError, match="the kernel of exact kl takes at most 12 responses a group, and there are 13"):
            probabilistic_preference_loss(student[:, :13], teacher[:, :13], divergence="kl", impl="triton")
        monkeypatch.setenv("PAD_FAST_IMPL", "triton")
    vanilla_preference_loss(student, teacher, impl="torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        vanilla_preference_loss(student, teacher)


# The ops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(kind: str, method: str, masked: bool) -> None:
    student, teacher = rewards(3, 4)
    live = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4]) if masked else None
    args = (student, teacher, live, kind, method, 10.0, 5.0, 8, 0, True, "auto")
    torch.library.opcheck(preference_ops.preference_loss, args)
    torch.library.opcheck(preference_ops.preference_loss_backward, (torch.rand(3), torch.rand(3, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole(kind: str) -> None:
    torch.compiler.reset()  # the recompilations of one kind don't count for the next

    def step(student, teacher, mask, seed):
        options = {} if kind == "vpd" else {"seed": seed}
        return preference_loss(kind, student, teacher, mask=mask, group_size=3, reduction="none", **options)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    student, teacher = rewards(4, 5)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.8
    for live in (None, mask):
        for seed in (0, 1, 2):
            loss, expected = compiled(student, teacher, live, seed), step(student, teacher, live, seed)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=1e-12, atol=1e-12)


# The modules


P, N, T, D, V = 2, 3, 6, 5, 11
LENGTHS = torch.tensor([4, 6, 2, 1, 5, 3])


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (R, T, D), weight (V, D), bias (V,), labels (R, T) and the teacher's rewards (P, N), all float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias, teacher = (
        torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((P * N, T, D), (V, D), (V,), (P, N))
    )
    labels = torch.randint(V, (P * N, T), generator=generator).where(torch.arange(T) < LENGTHS[:, None], -100)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels, teacher


def plain_loss(hidden, weight, bias, labels, teacher, temperature=1.0, mask=None, **options) -> torch.Tensor:
    """The whole computation in plain PyTorch, JSD by enumeration."""
    logps = ((hidden @ weight.T + bias) / temperature).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    live = labels != -100
    means = (logps * live).sum(1) / live.sum(1).clamp(min=1)
    return oracles.preference_loss(means.view(P, N), teacher, "jsd", **options).mean()


def test_linear_loss_equals_plain_pytorch() -> None:
    hidden, weight, bias, labels, teacher = states()
    loss = LinearPADLoss(beta=3.0, temperature=1.7)(hidden, weight, labels, teacher, bias=bias)
    expected = plain_loss(hidden, weight, bias, labels, teacher, temperature=1.7, beta=3.0)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    leaves = (hidden, weight, bias)
    for got, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"loss": "vpd", "beta": 2.0}, {"normalize": "sum", "divergence": "kl"}, {"softcap": 3.0, "logit_scale": 0.5}]
)
def test_modules_and_function_agree(options: dict) -> None:
    hidden, weight, bias, labels, teacher = states()
    loss, seen = linear_preference_loss(hidden, weight, labels, teacher, bias=bias, **options)
    from_logits = PADLoss(**options)(hidden @ weight.T + bias, labels, teacher)
    torch.testing.assert_close(from_logits, loss, rtol=1e-10, atol=1e-12)
    assert torch.equal(LinearPADLoss(**options)(hidden, weight, labels, teacher, bias=bias), loss)
    assert seen.shape == (P, N)
    assert not seen.requires_grad
    token_options = {k: v for k, v in options.items() if k in ("normalize", "softcap", "logit_scale")}
    expected = functional.linear_response_rewards(hidden, weight, labels, bias=bias, **token_options)
    assert torch.equal(seen.flatten(), expected.detach())


@pytest.mark.parametrize("shift", [False, True])
def test_packed_equals_padded(shift: bool) -> None:
    hidden, weight, _, labels, teacher = states()
    if shift:
        labels[:, 0] = -100  # the first token of each has nothing before it
        labels[3, 1] = 4  # a response must keep a token
    module = LinearPADLoss(shift=shift)
    padded = module(hidden, weight, labels, teacher)
    shuffled = torch.tensor([4, 0, 5, 2, 1, 3])  # sequences in any order, and rows that belong to none
    ids = shuffled.repeat_interleave(T)
    rows, packed_labels = hidden[shuffled].flatten(0, 1), labels[shuffled].flatten()
    strangers = torch.randn(4, D, dtype=torch.float64)
    packed = module(
        torch.cat([rows, strangers]),
        weight,
        torch.cat([packed_labels, torch.full((4,), 3)]),
        teacher,
        response_ids=torch.cat([ids, ids.new_full((4,), -1)]),
    )
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)


def test_shift_takes_hugging_face_labels() -> None:
    hidden, weight, bias, labels, teacher = states()
    logits = hidden @ weight.T + bias
    labels[3, 1] = 4
    aligned = PADLoss()(logits[:, :-1], labels[:, 1:], teacher)
    torch.testing.assert_close(PADLoss(shift=True)(logits, labels, teacher), aligned, rtol=1e-12, atol=0)


def test_empty_responses_are_masked() -> None:
    hidden, weight, _, labels, teacher = states()
    live = torch.ones(P, N, dtype=torch.bool)
    live[0, 1] = False
    masked = LinearPADLoss()(hidden, weight, labels, teacher, mask=live)
    labels[1] = -100
    teacher[0, 1] = NAN
    assert torch.equal(LinearPADLoss()(hidden, weight, labels, teacher), masked)
    by_hand = torch.arange(P * N).view(P, N) != N  # beside it, with the empty response live
    both = LinearPADLoss()(hidden, weight, labels, teacher, mask=by_hand)
    assert both != masked
    assert torch.equal(both, LinearPADLoss()(hidden, weight, labels, teacher, mask=by_hand & live))


def test_a_call_can_replace_options() -> None:
    hidden, weight, _, labels, teacher = states()
    module = LinearPADLoss(method="sampled", num_samples=8)
    one, two = (module(hidden, weight, labels, teacher, seed=seed) for seed in (1, 2))
    assert one != two
    assert torch.equal(one, module(hidden, weight, labels, teacher, seed=1))
    assert "num_samples=8" in repr(module)


def test_modules_refuse_what_does_not_fit() -> None:
    hidden, weight, _, labels, teacher = states()
    with pytest.raises(ValueError, match="loss must be one of ppd, vpd, got 'dpo'"):
        PADLoss("dpo")
    with pytest.raises(ValueError, match="loss='vpd' has no option 'divergence'; it has beta, group_size"):
        PADLoss("vpd", divergence="kl")
    with pytest.raises(ValueError, match=r"labels must have P \* N = 4 rows for teacher_rewards \(2, 2\)"):
        LinearPADLoss()(hidden, weight, labels, teacher[:, :2])
    with pytest.raises(ValueError, match=r"teacher_rewards must be \(P, N\), got \(6,\)"):
        LinearPADLoss()(hidden, weight, labels, teacher.flatten())
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 3\), got torch.bool \(3,\)"):
        LinearPADLoss()(hidden, weight, labels, teacher, mask=torch.ones(3, dtype=torch.bool))


def test_module_compiles_whole() -> None:
    hidden, weight, bias, labels, teacher = states()
    module = LinearPADLoss(group_size=2)
    loss = torch.compile(module, fullgraph=True, backend="aot_eager")(hidden, weight, labels, teacher, bias=bias)
    torch.testing.assert_close(loss, module(hidden, weight, labels, teacher, bias=bias), rtol=1e-12, atol=1e-12)


# Whole prompts at a time.


def leaves_of(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> int:
    """A budget that keeps the scores of 2 rows, in chunks of 2: fewer than a prompt has."""
    monkeypatch.setattr(budget, "CPU_ROWS", 2)
    monkeypatch.setattr(chunked, "TILE_COLUMNS", 5)
    return 2 * 4 * 2 * V + 2 * 64 * 8


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[slice, slice]]:
    """The chunks that were walked over."""
    seen: list[tuple[slice, slice]] = []
    chunks = Groups.chunks

    def told(self: Groups, most: int):
        for chunk in chunks(self, most):
            seen.append(chunk)
            yield chunk

    monkeypatch.setattr(Groups, "chunks", told)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "vpd", "beta": 2.0, "reduction": "sum"},
        {"normalize": "sum", "divergence": "kl", "temperature": 0.7},
        {"group_size": 2, "group_reduction": "sum", "softcap": 3.0, "logit_scale": 0.5},
        {"divergence": "reverse_kl", "method": "exact", "teacher_beta": 3.0},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_walking_over_groups_equals_the_two_steps(options: dict, masked: bool, room_for_two: int, walks: list) -> None:
    hidden, weight, bias, labels, teacher = states()
    mask = torch.tensor([[True, True, False], [True, False, True]]) if masked else None
    labels[5] = -100  # an empty response, the second prompt ragged
    results = []
    for budget_bytes in (0, room_for_two):
        leaves = leaves_of(hidden, weight, bias)
        loss, seen = linear_preference_loss(
            *leaves[:2], labels, teacher, bias=leaves[2], mask=mask, memory_budget=budget_bytes, **options
        )  # fmt: skip
        (loss * 0.37).backward()
        results.append((loss.detach(), seen, *(leaf.grad for leaf in leaves)))
    assert [prompts for prompts, _ in walks] == [slice(0, 1), slice(1, 2)]
    for stepped, walked in zip(*results, strict=True):
        torch.testing.assert_close(walked, stepped, rtol=1e-9, atol=1e-11)


def test_walking_over_rows_in_any_order(room_for_two: int, walks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    order = torch.randperm(P * N * T, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(P * N).repeat_interleave(T)[order]
    ids[3] = -1
    own = labels.flatten()[order]
    module = LinearPADLoss(divergence="kl", memory_budget=room_for_two)
    results = []
    for options in ({"memory_budget": 0}, {}):
        leaves = leaves_of(hidden.flatten(0, 1)[order], weight)
        loss = module(*leaves, own, teacher, response_ids=ids, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert len(walks) == P
    for stepped, walked in zip(*results, strict=True):
        torch.testing.assert_close(walked, stepped, rtol=1e-9, atol=1e-11)


def test_walking_in_bfloat16_under_autocast(room_for_two: int, walks: list) -> None:
    hidden, weight, bias, labels, teacher = (x.float() if x.is_floating_point() else x for x in states())
    results = []
    for budget_bytes in (0, room_for_two // 4):
        leaves = leaves_of(hidden, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = linear_preference_loss(*leaves[:2], labels, teacher, bias=leaves[2], memory_budget=budget_bytes)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    assert len(walks) == P
    for stepped, walked in zip(*results, strict=True):
        torch.testing.assert_close(walked, stepped, rtol=0.03, atol=0.01 * stepped.abs().max().item())


def test_walking_backward_twice(room_for_two: int, walks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    leaves = leaves_of(hidden, weight)
    loss = LinearPADLoss(memory_budget=room_for_two)(*leaves, labels, teacher)
    first = torch.autograd.grad(loss, leaves, torch.tensor(2.0, dtype=torch.float64), retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert walks
    for twice, once in zip(first, second, strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "options", [{"reduction": "none"}, {"method": "sampled", "num_samples": 8}, {"memory_budget": 0}, {"memory_budget": "auto"}]
)
def test_what_is_not_walked(options: dict, room_for_two: int, walks: list) -> None:
    hidden, weight, _, labels, teacher = states()
    leaves = leaves_of(hidden, weight)
    LinearPADLoss(**{"memory_budget": room_for_two, **options})(*leaves, labels, teacher).sum().backward()
    LinearPADLoss(memory_budget=room_for_two)(leaves[0], weight.detach(), labels, teacher).backward()  # frozen: 2 products as it is
    with torch.no_grad():
        LinearPADLoss(memory_budget=room_for_two)(*leaves, labels, teacher)
    assert not walks
