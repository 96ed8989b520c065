"""The listwise kernels against enumeration of all rankings in float64, and never worse than it in float32. On a GPU where there is one.

Under the interpreter a program takes 10 to 500 ms, so groups are few and small; tests/test_losses.py has the options, and the
PyTorch path stands for enumeration where n! rankings are too many.
"""

import math

import oracles
import pytest
import torch
import triton
import triton.language as tl
from pad_fast.kernels.preference import launch, tuning
from pad_fast.kernels.preference.sampled import _exponential
from torch.autograd import gradcheck

from pad_fast import losses
from pad_fast.preference import op as preference_op
from pad_fast.preference import sampled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIVERGENCES = ["kl", "reverse_kl", "jsd"]
KINDS = [*DIVERGENCES, "vpd"]
BETAS = (10.0, 7.0)
SAMPLED = [(kind, "sampled") for kind in DIVERGENCES]
EVERY = [(kind, "exact") for kind in KINDS] + SAMPLED

pytestmark = [
    # NumPy tells of lanes that are computed and dropped: sets without the response, responses that are not there.
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning"),
]


def rewards(*shape, seed=0, spread=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = spread * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student.to(DEVICE, dtype), teacher.to(DEVICE, dtype)


def loss_of(
    kind,
    student,
    teacher,
    live=None,
    *,
    method="exact",
    betas=BETAS,
    samples=16,
    seed=0,
    impl="triton",
):
    """(G,), (G, n)."""
    return preference_op.preference_loss(
        student, teacher, live, kind, method, *betas, samples, seed, False, impl
    )


def enumerated(kind, student, teacher, dtype=torch.float64):
    return oracles.value_and_gradient(student.to(dtype), teacher.to(dtype), kind, *BETAS)


def near(got, wanted, tolerance=1e-12):
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)


def same(got, wanted):
    for g, w in zip(got, wanted, strict=True):
        assert torch.equal(g, w)


# Values and gradients.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4, 5])  # of JSD: halves of 1 and 1, 1 and 2, 2 and 2, 2 and 3
def test_equals_enumeration_in_float64(kind, n):
    student, teacher = rewards(2, n, seed=n)
    near(loss_of(kind, student, teacher), enumerated(kind, student, teacher))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_float32_is_as_good_as_enumeration_in_float32(kind, spread):
    student, teacher = rewards(3, 4, spread=spread, dtype=torch.float32)
    truth, eager = (
        enumerated(kind, student, teacher),
        enumerated(kind, student, teacher, torch.float32),
    )
    for value, plain, exact in zip(loss_of(kind, student, teacher), eager, truth, strict=True):
        assert value.dtype == torch.float32
        slack = 1e-6 * exact.abs().max().clamp(min=1)
        assert (value - exact).abs().max() <= 2 * (plain - exact).abs().max() + slack


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("kl", 8),
        ("reverse_kl", 8),
        ("jsd", 6),
        ("reverse_kl", 10),
        ("kl", 11),
        ("kl", 12),
        ("reverse_kl", 12),
    ],
)
def test_equals_the_pytorch_path_where_rankings_are_too_many(kind, n):
    """10 and more take another form in the kernel: their softmaxes are worked out again in each pass."""
    student, teacher = rewards(1, n)
    near(loss_of(kind, student, teacher), loss_of(kind, student, teacher, impl="torch"), 1e-11)


@pytest.mark.slow
def test_jsd_of_eight():
    student, teacher = rewards(1, 8, dtype=torch.float32)
    loss, grad = loss_of("jsd", student, teacher)
    exact = loss_of("jsd", student.double(), teacher.double(), impl="torch")
    near((loss.double(), grad.double()), exact, 3e-6)


@pytest.mark.parametrize(
    "n", [1, 7, 8, 9, 17, 130]
)  # 8 responses j at a time; two programs a group from 129 on
def test_vanilla_of_any_number(n):
    student, teacher = rewards(2, n, spread=0.1)
    teacher[1] = (4 * teacher[1]).round()  # ties
    near(loss_of("vpd", student, teacher), loss_of("vpd", student, teacher, impl="torch"), 1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_vanilla_orders_by_the_teacher_in_its_own_dtype(dtype):
    student, teacher = rewards(2, 4, dtype=torch.float32)
    teacher = (
        (1 + torch.finfo(dtype).eps * torch.arange(4, dtype=torch.float64).flip(0))
        .to(dtype)
        .repeat(2, 1)
        .to(DEVICE)
    )
    teacher[1] = teacher[1].flip(0)
    near(loss_of("vpd", student, teacher), loss_of("vpd", student, teacher, impl="torch"), 1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_teacher_of_another_dtype(kind):
    student, teacher = rewards(1, 3, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        same(
            loss_of(kind, student, teacher.to(dtype)),
            loss_of(kind, student, teacher.to(dtype).float()),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_drives_the_kernels(kind):
    """Accumulation in float64: the kernels' own arithmetic, not a tolerance, is what finite differences test."""
    student, teacher = rewards(2, 3)
    live = torch.tensor([[True, True, True], [True, False, True]], device=DEVICE)
    assert gradcheck(
        lambda s: loss_of(kind, s, teacher, live, betas=(4.0, 3.0))[0],
        student.requires_grad_(),
        fast_mode=True,
    )


def test_gradcheck_of_sampled_kl():
    """Draws come from the teacher and do not move with the student, so the estimate's gradient is its own derivative."""
    student, teacher = rewards(2, 3)
    call = lambda s: loss_of("kl", s, teacher, method="sampled", samples=6, betas=(4.0, 3.0))[0]  # noqa: E731
    assert gradcheck(call, student.requires_grad_(), fast_mode=True)


# What must not matter, and what must hold.


@pytest.mark.parametrize("kind", KINDS)
def test_shift_and_permutation(kind):
    student, teacher = rewards(1, 5)
    loss, grad = loss_of(kind, student, teacher)
    order = torch.tensor([3, 0, 4, 1, 2], device=DEVICE)
    near(
        loss_of(kind, (student - 3)[:, order], (teacher + 11)[:, order]),
        (loss, grad[:, order]),
        1e-11,
    )
    assert grad.sum().abs() < 1e-10
    assert 0 <= loss.item() <= (math.log(2) if kind == "jsd" else math.inf)


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_a_group_has_the_same_bits_in_any_company(kind, method):
    student, teacher = rewards(3, 3, dtype=torch.float32)
    live = torch.ones(3, 3, dtype=torch.bool, device=DEVICE)
    live[1, 1] = False
    loss, grad = loss_of(kind, student, teacher, live, method=method)
    same(loss_of(kind, student, teacher, live, method=method), (loss, grad))
    if method == "sampled":  # the draws are those of its index
        same(loss_of(kind, student[:2], teacher[:2], live[:2], method=method), (loss[:2], grad[:2]))
        return
    for g in range(3):
        one = slice(g, g + 1)
        same(
            loss_of(kind, student[one], teacher[one], live[one], method=method),
            (loss[one], grad[one]),
        )


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_a_mask_is_a_deletion(kind, method):
    """In one launch, whatever the sizes, 0 and 1 among them; what is masked may be anything."""
    masks = torch.tensor(
        [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]],
        dtype=torch.bool,
        device=DEVICE,
    )
    if method == "sampled":
        masks = masks[[2, 3, 4]]
    student, teacher = rewards(len(masks), 4)
    loss, grad = loss_of(
        kind, student.where(masks, math.nan), teacher.where(masks, math.inf), masks, method=method
    )
    assert not grad[~masks].any()
    for g, live in enumerate(masks):
        if live.sum() < 2:
            assert loss[g] == 0
            assert not grad[g].any()
        elif method == "exact":
            near(
                (loss[g : g + 1], grad[g : g + 1, live]),
                enumerated(kind, student[g : g + 1, live], teacher[g : g + 1, live]),
            )
    assert grad.isfinite().all()
    if method == "sampled":
        near(
            (loss, grad),
            loss_of(
                kind, student.where(masks, 0.0), teacher.where(masks, 0.0), masks, method=method
            ),
            0,
        )


@pytest.mark.parametrize(("kind", "method"), EVERY)
@pytest.mark.parametrize("beta", [1e-3, 1e3])
def test_extreme_rewards_and_ties(kind, method, beta):
    student, teacher = rewards(3, 4, spread=1e4, dtype=torch.float32)
    teacher[1, 1], student[1, 2] = teacher[1, 0], student[1, 3]
    student[2] = 0.0
    loss, grad = loss_of(kind, student, teacher, method=method, betas=(beta, beta))
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert (loss >= 0).all()
    assert kind != "jsd" or (loss <= math.log(2) + 1e-7).all()
    if method == "exact":
        exact, dexact = loss_of(
            kind, student.double(), teacher.double(), betas=(beta, beta), impl="torch"
        )
        rounding = 1e-5 + 2e-7 * exact.max()  # of differences of numbers as large as the loss
        assert ((loss - exact).abs() <= rounding).all()
        assert ((grad - dexact).abs() <= beta * rounding + 1e-5 * dexact.abs()).all()


def test_opposite_certain_rankings_reach_ln_2():
    student = torch.tensor([[0.0, 1e3, 2e3]], device=DEVICE)
    for method in ("exact", "sampled"):
        loss, grad = loss_of("jsd", student, -student, method=method)
        torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))
        assert not grad.any()


# Sampled.


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_sampled_is_unbiased(kind):
    """z-test over groups that are copies of one, 4.5 standard errors; the seed is fixed."""
    copies, n, samples = 50, 4, 16
    student, teacher = rewards(1, n, seed=3, spread=0.1)
    loss, grad = loss_of(
        kind,
        student.expand(copies, n),
        teacher.expand(copies, n),
        method="sampled",
        samples=samples,
        seed=7,
    )
    exact_loss, exact_grad = enumerated(kind, student, teacher)
    for draws, expected in ((loss[:, None], exact_loss), (grad, exact_grad[0])):
        error = draws.std(0) / copies**0.5
        assert ((draws.mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()
        assert (error < 0.25 * expected.abs().max()).all()  # the test can tell a bias


@triton.jit
def _noise(
    out_ptr, seed: tl.int64, group, side: tl.constexpr, N: tl.constexpr, DRAWS: tl.constexpr
):
    draw, response = tl.arange(0, DRAWS), tl.arange(0, N)
    noise = _exponential(seed, group, draw, response, side, tl.float64)
    tl.store(out_ptr + draw[:, None] * N + response[None, :], noise)


def drawn(x, side, seed, num):
    """The kernel's rankings (n, G, num), best first, of x (n, G)."""
    n, groups = x.shape
    noise = torch.empty(
        groups,
        triton.next_power_of_2(num),
        triton.next_power_of_2(n),
        dtype=torch.float64,
        device=DEVICE,
    )
    for group in range(groups):
        _noise[(1,)](noise[group], seed, group, side=side, N=noise.shape[2], DRAWS=noise.shape[1])
    return (x[:, :, None] - noise[:, :num, :n].permute(2, 0, 1).log()).argsort(
        dim=0, descending=True
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(
    ("n", "samples"), [(2, 4), (5, 9), (9, 11)]
)  # more than one tile of draws, and the last one short
def test_sampled_equals_the_pytorch_path_on_the_same_rankings(kind, n, samples, monkeypatch):
    sides = iter((0, 1))
    monkeypatch.setattr(sampled, "_draw", lambda x, num, generator: drawn(x, next(sides), 5, num))
    student, teacher = rewards(2, n, spread=0.1)
    expected = loss_of(kind, student, teacher, method="sampled", samples=samples, impl="torch")
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "PAIRS", 256)
        near(
            loss_of(kind, student, teacher, method="sampled", samples=samples, seed=5),
            expected,
            1e-6,
        )  # of rounded constants


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_draws_repeat_by_seed_and_differ_between_groups(kind):
    student, teacher = rewards(1, 4, spread=0.05)
    student, teacher = student.expand(2, 4), teacher.expand(2, 4)
    one, again, other, far = (
        loss_of(kind, student, teacher, method="sampled", seed=seed)
        for seed in (1, 1, 2, 1 + 2**40)
    )
    same(one, again)
    assert (one[0] != other[0]).all()
    assert (one[0] != far[0]).all()
    assert one[0][0] != one[0][1]


# The op.


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_value_and_gradient_come_out_of_one_launch(kind, method, monkeypatch):
    launches = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launches.append(grid)
            return self.kernel[grid]

    for name in ("preference_jsd", "preference_kl", "preference_vpd", "preference_sampled"):
        monkeypatch.setattr(launch, name, Counted(getattr(launch, name)))
    student, teacher = rewards(2, 3)
    loss, _ = loss_of(kind, student.requires_grad_(), teacher, method=method)
    loss.sum().backward()
    assert student.grad.any()
    assert [grid[0] for grid in launches] == [2]  # a program a group


def test_groups_and_masks_through_the_public_losses():
    student, teacher = rewards(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool, device=DEVICE)
    mask[0, 3] = mask[1, :3] = False
    for kind in KINDS:
        call = (
            losses.vanilla_preference_loss
            if kind == "vpd"
            else losses.probabilistic_preference_loss
        )
        options = {} if kind == "vpd" else {"divergence": kind}
        both = [
            call(student, teacher, group_size=3, mask=mask, reduction="none", impl=impl, **options)
            for impl in ("triton", "torch")
        ]
        near(both[:1], both[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_all_is_no_groups_and_strides_change_no_bit(kind):
    student, teacher = rewards(2, 6)
    call = losses.vanilla_preference_loss if kind == "vpd" else losses.probabilistic_preference_loss
    options = {"impl": "triton", **({} if kind == "vpd" else {"divergence": kind})}
    expected = call(student[:, ::2].contiguous(), teacher[:, ::2].contiguous(), **options)
    assert torch.equal(call(student[:, ::2], teacher[:, ::2], group_size=3, **options), expected)


def test_the_backward_scales():
    student, teacher = rewards(2, 3)
    student.requires_grad_()
    loss = losses.probabilistic_preference_loss(
        student, teacher, teacher_beta=7.0, reduction="none", impl="triton"
    )
    loss.backward(torch.tensor([2.0, -0.5], dtype=torch.float64, device=DEVICE))
    near(
        (student.grad,),
        (
            torch.tensor([[2.0], [-0.5]], device=DEVICE)
            * enumerated("jsd", student.detach(), teacher)[1],
        ),
    )


@pytest.mark.parametrize(
    ("kind", "method"), [("kl", "exact"), ("jsd", "exact"), ("jsd", "sampled"), ("vpd", "exact")]
)
def test_opcheck(kind, method):
    student, teacher = rewards(2, 3, dtype=torch.float32)
    live = torch.tensor([[True] * 3, [True, False, True]], device=DEVICE)
    args = (student.requires_grad_(), teacher, live, kind, method, 10.0, 5.0, 8, 0, True, "triton")
    torch.library.opcheck(preference_op.preference_loss, args)


def test_compiles_whole():
    student, teacher = rewards(2, 3)

    def loss(s):
        return losses.probabilistic_preference_loss(s * 2, teacher, impl="triton")

    leaf, compiled_leaf = student.clone().requires_grad_(), student.clone().requires_grad_()
    expected, got = (
        loss(leaf),
        torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled_leaf),
    )
    expected.backward()
    got.backward()
    assert torch.equal(got, expected)
    assert torch.equal(compiled_leaf.grad, leaf.grad)


@pytest.mark.parametrize(("groups", "n"), [(0, 3), (2, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind, groups, n):
    student, teacher = rewards(groups, n)
    loss, grad = loss_of(kind, student, teacher)
    assert loss.shape == (groups,)
    assert grad.shape == (groups, n)
    assert not loss.any()
    assert not grad.any()


@pytest.mark.parametrize(
    ("kind", "method", "n", "most"),
    [
        ("jsd", "exact", 11, 10),
        ("kl", "exact", 13, 12),
        ("reverse_kl", "auto", 13, 12),
        ("jsd", "auto", 33, 32),
    ],
)
def test_more_than_the_kernels_take(kind, method, n, most, monkeypatch):
    """By name it raises, also by the environment's; "auto" takes PyTorch."""
    student, teacher = rewards(1, n)
    with pytest.raises(
        ValueError, match=f"takes at most {most} responses a group, and there are {n}; use impl"
    ):
        loss_of(kind, student, teacher, method=method)
    if n != 11:  # 40 million rankings
        loss_of(kind, student, teacher, method=method, impl="auto")
    monkeypatch.setenv("PAD_FAST_IMPL", "triton")
    with pytest.raises(ValueError, match=f"at most {most} responses"):
        loss_of(kind, student, teacher, method=method, impl="auto")
