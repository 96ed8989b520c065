"""Listwise losses on a GPU: repeated bits, unbiased draws, waiting, CUDA graphs.

The interpreter cannot show these. ``make gpu-checks`` runs the tests.
"""

import pytest
import torch

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.preference import op as preference_op
from pad_fast.preference.plackett_luce import RankingOptions
from tests.card import DEVICE, NEEDS_A_CARD, generator, sized

pytestmark = [*NEEDS_A_CARD, pytest.mark.usefixtures("card")]


@pytest.fixture(autouse=True)
def poison():
    """Memory is not poisoned here: deterministic algorithms wait for the device and take memory."""


GROUPS = sized(64, 6)
LISTWISE = [
    ("kl", "exact", sized(8, 3)),
    ("kl", "exact", sized(12, 4)),
    ("reverse_kl", "exact", sized(12, 4)),
    ("jsd", "exact", sized(8, 3)),
    ("jsd", "exact", sized(10, 4)),
    ("vpd", "exact", sized(200, 5)),
    *((kind, "sampled", sized(16, 3)) for kind in ("kl", "reverse_kl", "jsd")),
]


def listwise_inputs(kind, n):
    g = generator(1)
    student, teacher = 0.1 * torch.randn(2, GROUPS, n, generator=g, device=DEVICE)
    live = torch.rand(GROUPS, n, generator=g, device=DEVICE) < 0.8
    live[:2] = torch.arange(n, device=DEVICE) < torch.tensor([[n], [1]], device=DEVICE)
    return student, teacher, live


def listwise(kind, method, student, teacher, live=None, impl="triton", seed=0):
    return preference_op.preference_loss(
        *(student, teacher, live, None, kind, method, False, impl, "none"),
        *RankingOptions(10.0, 8.0, 256, seed),
    )[:2]


@pytest.mark.parametrize(("kind", "method", "n"), LISTWISE)
@pytest.mark.parametrize("masked", [False, True])
def test_listwise_values_repeat_and_do_not_depend_on_company(kind, method, n, masked):
    student, teacher, live = listwise_inputs(kind, n)
    live = live if masked else None
    loss, grad = listwise(kind, method, student, teacher, live)
    if method == "exact":
        exact, dexact = listwise(
            kind, method, student.double(), teacher.double(), live, impl="torch"
        )
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(grad.double(), dexact, rtol=1e-4, atol=2e-5)
        alone = listwise(kind, method, student[5:6], teacher[5:6], live[5:6] if masked else None)
        assert torch.equal(alone[0], loss[5:6])
        assert torch.equal(alone[1], grad[5:6])
    for _ in range(sized(20, 2)):
        again = listwise(kind, method, student, teacher, live)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], grad)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd"])
def test_sampled_losses_are_unbiased_on_the_device(kind):
    student, teacher = 0.1 * torch.randn(2, 1, 6, generator=generator(2), device=DEVICE)
    copies = sized(20_000, 60)
    loss, grad = listwise(kind, "sampled", student.expand(copies, 6), teacher.expand(copies, 6))
    exact, dexact = listwise(kind, "exact", student.double(), teacher.double(), impl="torch")
    for draws, expected in ((loss[:, None].double(), exact), (grad.double(), dexact[0])):
        assert ((draws.mean(0) - expected).abs() <= 4.5 * draws.std(0) / copies**0.5 + 1e-5).all()


@pytest.mark.parametrize(("kind", "method", "n"), LISTWISE)
@pytest.mark.parametrize("masked", [False, True])
def test_listwise_losses_never_wait_and_fit_into_a_graph(kind, method, n, masked):
    student, teacher, live = listwise_inputs(kind, n)
    student.requires_grad_()
    options = {"mask": live if masked else None, "group_size": None if n in (8, 16) else n}

    def step():
        if kind == "vpd":
            loss = vanilla_preference_loss(student, teacher, **options)
        else:
            loss = probabilistic_preference_loss(
                student, teacher, divergence=kind, method=method, **options
            )
        return loss.detach(), *torch.autograd.grad(loss, student)

    expected = step()  # compiles kernels and makes tables, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for _ in range(2):
        graph.replay()
        for value, wanted in zip(got, expected, strict=True):
            assert torch.equal(value, wanted)
