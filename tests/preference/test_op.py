"""The op of the listwise losses: exact or sampled, by a kernel or not, compiled or not."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from listwise import KINDS, gradient, preference_loss, rewards

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.preference import loss_kinds
from pad_fast.preference import op as preference_op
from pad_fast.preference.options import LossOptions
from pad_fast.preference.plackett_luce import RankingOptions

NAN = float("nan")


# Exact or sampled.


@pytest.mark.parametrize(
    ("kind", "exact", "sampled"), [("jsd", 8, 9), ("kl", 16, 17), ("reverse_kl", 16, 17)]
)
def test_auto_is_exact_up_to_a_limit_and_says_once_where_it_is_not(
    kind: str, exact: int, sampled: int, caplog: pytest.LogCaptureFixture
) -> None:
    preference_op._warned.clear()
    student, teacher = rewards(1, sampled, dtype=torch.float32)
    with caplog.at_level(logging.WARNING, "pad_fast"):
        some = preference_loss(kind, student[:, :exact], teacher[:, :exact], num_samples=8)
        assert torch.equal(
            some, preference_loss(kind, student[:, :exact], teacher[:, :exact], method="exact")
        )
        assert not caplog.records
        one, two = (
            preference_loss(kind, student, teacher, num_samples=8, seed=seed) for seed in (1, 2)
        )
        assert one != two
        assert torch.equal(
            one, preference_loss(kind, student, teacher, method="sampled", num_samples=8, seed=1)
        )
        wider = (student.repeat(1, 2), teacher.repeat(1, 2))
        preference_loss(kind, *wider, num_samples=16)  # once, not once for each n
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"more than {exact} responses (here {sampled})" in caplog.text
    in_groups = preference_loss(kind, student, teacher, group_size=4)
    assert torch.equal(
        in_groups, preference_loss(kind, student, teacher, group_size=4, method="exact")
    )


# The interpreter warns of lanes whose results are masked.
@pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize(("kind", "width"), [("jsd", 9), ("kl", 17), ("reverse_kl", 17)])
def test_auto_counts_the_live_and_not_the_width(
    kind: str, width: int, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked responses count as absent, and a large group changes nothing for the others."""
    most = width - 1
    # Small limits, since the interpreter is slow. The kernel of the KLs takes fewer than PyTorch.
    if impl == "triton":
        width, most = 6, 4
        ppd = loss_kinds.LOSSES["ppd"]
        narrow = replace(ppd.kind(kind), auto_exact=4 if kind == "jsd" else 5)
        monkeypatch.setitem(loss_kinds.LOSSES, "ppd", replace(ppd, kinds=(narrow,)))
        monkeypatch.setattr(
            preference_op,
            "most_responses",
            lambda kind, method: 4 if (method == "exact" and kind != "jsd") else 32,
        )
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
        alone = preference_loss(
            kind,
            student[p : p + 1, live],
            teacher[p : p + 1, live],
            method="exact",
            impl="torch",
            reduction="none",
        )
        torch.testing.assert_close(loss[p], alone[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grad[p], gradient(alone, student)[p], rtol=1e-10, atol=1e-12)
    sampled = preference_loss(kind, student, teacher, mask=mask, method="sampled", **options)
    assert (sampled[:2] != loss[:2]).all()
    if impl == "triton":  # its draws depend on the index of the group
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
    with pytest.raises(
        ValueError,
        match=f"at most {limit} responses a group for divergence='{kind}', got {limit + 1}",
    ):
        preference_loss(kind, student, teacher, mask=torch.ones_like(mask), method="exact")
    elsewhere = (side.to("meta") for side in (student, teacher))
    with pytest.raises(ValueError, match=f"at most {limit} responses"):  # a device does not count
        preference_loss(kind, *elsewhere, mask=mask.to("meta"), method="exact")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_sampled_takes_masks_and_groups(kind: str) -> None:
    student, teacher = rewards(64, 6)
    mask = torch.ones(64, 6, dtype=torch.bool)
    mask[::2, 1] = False
    options = {"mask": mask, "group_size": 3}
    exact = preference_loss(kind, student, teacher, **options)
    sampled = preference_loss(kind, student, teacher, method="sampled", num_samples=2000, **options)
    torch.testing.assert_close(sampled, exact, rtol=0.02, atol=0)
    assert (gradient(sampled, student) - gradient(exact, student)).norm() < 0.1 * gradient(
        exact, student
    ).norm()
    assert not gradient(sampled, student)[~mask].any()


def test_a_kernel_by_name_takes_what_fits_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = rewards(1, 33)
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match="the kernel of sampled jsd takes at most 32 responses a group, and there are 33",
        ):
            probabilistic_preference_loss(student, teacher, impl="triton")
        with pytest.raises(
            ValueError,
            match="the kernel of exact kl takes at most 12 responses a group, and there are 13",
        ):
            probabilistic_preference_loss(
                student[:, :13], teacher[:, :13], divergence="kl", impl="triton"
            )
        monkeypatch.setenv("PAD_FAST_IMPL", "triton")
    vanilla_preference_loss(student, teacher, impl="torch")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        vanilla_preference_loss(student, teacher)


# The ops.


def test_an_option_that_a_loss_reads_is_passed_on() -> None:
    given = {"beta": 3.0, "teacher_beta": 4.0, "num_samples": 5, "seed": 6}
    given |= {"gamma": 0.7, "pairs": "all"}
    assert list(given) == list(RankingOptions._fields)
    assert LossOptions(**given).of_rankings() == RankingOptions(**given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(kind: str, method: str, masked: bool) -> None:
    student, teacher = rewards(3, 4)
    live = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4]) if masked else None
    lengths = torch.tensor([[1, 2, 3, 4], [5, 0, 7, 8], [1, 1, 1, 1]])
    for given, reduction in ((None, "none"), (lengths, "mean"), (None, "sum")):
        args = (student, teacher, live, given, kind, method, True, "auto", reduction)
        torch.library.opcheck(
            preference_op.preference_loss.library, (*args, *RankingOptions(10.0, 5.0, 8))
        )


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole(kind: str) -> None:
    torch.compiler.reset()  # forget the recompilations of other kinds

    def step(student, teacher, mask, seed):
        options = {} if kind == "vpd" else {"seed": seed}
        return preference_loss(
            kind, student, teacher, mask=mask, group_size=3, reduction="none", **options
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    student, teacher = rewards(4, 5)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.8
    for live in (None, mask):
        for seed in (0, 1, 2):
            loss, expected = (
                compiled(student, teacher, live, seed),
                step(student, teacher, live, seed),
            )
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(
                gradient(loss, student), gradient(expected, student), rtol=1e-12, atol=1e-12
            )
