"""Log-probabilities of hidden states times the head on a GPU: waiting, memory, repeated bits.

The interpreter cannot show these. ``make gpu-checks`` runs the tests.
"""

import pytest
import torch

from pad_fast import functional, reference
from tests.card import DEVICE, NEEDS_A_CARD, generator, needs, sized

pytestmark = [*NEEDS_A_CARD, pytest.mark.usefixtures("card")]


@pytest.fixture(autouse=True)
def poison():
    """Memory is not poisoned here: deterministic algorithms wait for the device and take memory."""


def head_inputs(m, d, v, dtype=torch.bfloat16, seed=0):
    g = generator(seed)
    hidden = torch.randn(m, d, generator=g, device=DEVICE, dtype=dtype)
    weight = torch.randn(v, d, generator=g, device=DEVICE, dtype=dtype).mul_(3 / d**0.5)
    labels = torch.randint(v, (m,), generator=g, device=DEVICE)
    return (
        hidden.requires_grad_(),
        weight.requires_grad_(),
        labels,
        torch.randn(m, generator=g, device=DEVICE),
    )


@pytest.mark.parametrize("budget", ["auto", 300 << 20, 0])
def test_the_host_never_waits_for_a_head_whose_rows_it_knows(budget):
    count = sized(512, 32)
    hidden, weight, labels, grad = head_inputs(count, sized(256, 16), sized(32000, 320))
    labels[::2] = -100
    rows = torch.arange(1, count, 2, device=DEVICE)

    def step():
        logps = functional.linear_token_logprobs(
            hidden, weight, labels, live_rows=rows, memory_budget=budget
        )
        torch.autograd.grad(logps, (hidden, weight), grad)
        frozen = functional.linear_token_logprobs(
            hidden, weight.detach(), labels, live_rows=rows, softcap=30.0
        )
        torch.autograd.grad(frozen, hidden, grad)
        with torch.no_grad():
            functional.linear_token_logprobs(
                hidden, weight, labels, live_rows=rows, memory_budget=budget
            )

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 30.0, "temperature": 0.7, "logit_scale": 1.3}],
    ids=["plain", "capped"],
)
@pytest.mark.parametrize("budget", ["auto", 600 << 20, 0])
def test_a_head_at_full_vocabulary(dtype, options, budget):
    needs(12)
    hidden, weight, labels, grad = head_inputs(
        sized(1500, 50), sized(256, 16), sized(50257, 257), dtype
    )
    exact_leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logps = functional.linear_token_logprobs(
        hidden, weight, labels, memory_budget=budget, **options
    )
    exact = reference.linear_token_logprobs(*exact_leaves, labels, **options)
    torch.testing.assert_close(
        logps.double(), exact, rtol=1e-5, atol=2e-4 if dtype == torch.float32 else 2e-5
    )
    with torch.no_grad():
        fused = functional.linear_token_logprobs(hidden, weight, labels, memory_budget=0, **options)
    torch.testing.assert_close(
        fused.double(), exact.detach(), rtol=1e-5, atol=2e-4 if dtype == torch.float32 else 2e-5
    )
    rounding = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 1e-4}[dtype]
    wanted = torch.autograd.grad(exact, exact_leaves, grad.double())
    for got, want in zip(torch.autograd.grad(logps, (hidden, weight), grad), wanted, strict=True):
        assert (got.double() - want).norm() <= rounding * want.norm()


@pytest.mark.parametrize("budget", ["auto", 0])
def test_a_head_repeats_its_bits(budget):
    """Gradients repeat from run to run, and log-probabilities do so in any batch."""
    count, last = sized(2500, 40), sized(2200, 30)
    hidden, weight, labels, grad = head_inputs(count, sized(512, 16), sized(32000, 320))
    first = None
    for _ in range(sized(20, 2)):
        logps = functional.linear_token_logprobs(hidden, weight, labels, memory_budget=budget)
        found = (logps.detach(), *torch.autograd.grad(logps, (hidden, weight), grad))
        first = first or found
        assert all(torch.equal(again, once) for again, once in zip(found, first, strict=True))
    order = torch.randperm(count, device=DEVICE)
    assert torch.equal(
        functional.linear_token_logprobs(
            hidden[order], weight, labels[order], memory_budget=budget
        ),
        first[0][order],
    )
    some = slice(7, last)  # a chunk of 2,048 rows and more: smaller batches have bits of their own
    assert torch.equal(
        functional.linear_token_logprobs(hidden[some], weight, labels[some], memory_budget=budget),
        first[0][some],
    )
    with torch.no_grad():
        alone = functional.linear_token_logprobs(
            hidden[some], weight, labels[some], memory_budget=budget
        )
        assert torch.equal(
            alone,
            functional.linear_token_logprobs(hidden, weight, labels, memory_budget=budget)[some],
        )


@pytest.mark.parametrize(
    ("budget", "frozen"), [(5 << 30, False), (2 << 30, False), (0, False), (0, True)]
)
def test_memory_of_a_head(budget, frozen):
    """Beyond inputs and gradients it takes at most 1.1 times the budget, or 1 GiB for 0."""
    needs(14)
    count = sized(16384, 64)
    hidden, weight, labels, grad = head_inputs(count, sized(4096, 16), sized(128256, 320))
    weight.requires_grad_(not frozen)
    leaves = (hidden,) if frozen else (hidden, weight)
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    rows = torch.arange(count, device=DEVICE)
    logps = functional.linear_token_logprobs(
        hidden, weight, labels, live_rows=rows, memory_budget=budget
    )
    gradients = torch.autograd.grad(logps, leaves, grad)
    extra = (
        torch.cuda.max_memory_allocated() - base - sum(gradient.nbytes for gradient in gradients)
    )
    assert extra <= max(1.1 * budget, 1 << 30)
