"""Log-probabilities on a GPU: offsets past 2^31, huge grids, memory, waiting, repeated bits.

The interpreter cannot show these. ``make gpu-checks`` runs the tests.
"""

import subprocess
import sys

import pytest
import torch

from pad_fast import functional, reference
from tests.card import DEVICE, NEEDS_A_CARD, REHEARSING, generator, needs, sized

pytestmark = [*NEEDS_A_CARD, pytest.mark.usefixtures("card")]


@pytest.fixture(autouse=True)
def poison():
    """Memory is not poisoned here: deterministic algorithms wait for the device and take memory."""


def inputs(r, t, v, dtype=torch.bfloat16, seed=0):
    g = generator(seed)
    logits = torch.randn(r, t, v, generator=g, device=DEVICE, dtype=torch.float32).mul_(4).to(dtype)
    labels = torch.randint(v, (r, t), generator=g, device=DEVICE)
    return logits, labels, torch.randn(r, t, generator=g, device=DEVICE)


# PyTorch warns once that this debug mode is a prototype.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("inplace", [False, True])
def test_the_host_never_waits(inplace):
    logits, labels, grad = inputs(4, 8, sized(32001, 321))
    labels[0] = -100
    ids = torch.arange(4, device=DEVICE).repeat_interleave(8)
    weights = grad.sum(1)

    def step():
        leaf = logits.clone().requires_grad_()
        padded = functional.response_rewards(
            leaf * 1, labels, softcap=30.0, inplace_backward=inplace
        )
        packed = functional.response_rewards(
            (leaf * 1).view(32, -1), labels.view(-1), response_ids=ids, num_responses=4
        )
        ((padded + packed) @ weights).backward()

    step()  # compiles the kernels, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rows_past_two_to_the_31():
    """The last rows of 16,500 x 131,072 logits lie past 2^31 elements.

    A 32-bit offset would be negative there.
    """
    needs(11)
    rows, vocabulary = sized(16500, 24), sized(131072, 256)
    logits = torch.zeros(1, rows, vocabulary, dtype=torch.bfloat16, device=DEVICE)
    few, labels, grad = inputs(1, 8, vocabulary)
    logits[:, -8:] = few
    every = torch.full((1, rows), -100, device=DEVICE)
    every[:, -8:] = labels
    upstream = torch.zeros(1, rows, device=DEVICE)
    upstream[:, -8:] = grad
    logits.requires_grad_()
    logps = functional.token_logprobs(logits, every, inplace_backward=True)
    expected = functional.token_logprobs(few.requires_grad_(), labels)
    assert torch.equal(logps[:, -8:], expected)
    logps.backward(upstream)
    expected.backward(grad)
    assert torch.equal(logits.grad[:, -8:], few.grad)
    assert not logits.grad[:, :-8].any()


def test_more_rows_than_a_grid_has_in_its_second_dimension():
    logits, labels, grad = inputs(1, sized(65537, 70), 64, torch.float32)
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    functional.token_logprobs(logits, labels).backward(grad)
    logps = reference.token_logprobs(exact, labels)
    logps.backward(grad.double())
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_same_bits_in_20_runs_and_in_any_company(softcap):
    logits, labels, grad = inputs(8, sized(16, 3), sized(50257, 257))

    def results(r):
        leaf = logits[r].clone().requires_grad_()
        rewards = functional.response_rewards(leaf, labels[r], softcap=softcap)
        rewards.backward(grad[r].sum(1))
        return rewards.detach(), leaf.grad

    rewards, gradients = results(slice(None))
    for _ in range(sized(20, 2)):
        again, dagain = results(slice(None))
        assert torch.equal(again, rewards)
        assert torch.equal(dagain, gradients)
    for r in range(8):
        alone, dalone = results(slice(r, r + 1))
        assert torch.equal(alone, rewards[r : r + 1])
        assert torch.equal(dalone, gradients[r : r + 1])


@pytest.mark.parametrize("inplace", [False, True])
def test_memory(inplace):
    """The logits' gradient is all the memory, and in place there are only a few numbers a row."""
    logits, labels, grad = inputs(4, sized(128, 4), sized(128256, 320))
    logits.requires_grad_()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    functional.token_logprobs(logits, labels, inplace_backward=inplace).backward(grad)
    extra = torch.cuda.max_memory_allocated() - base
    size = logits.numel() * logits.element_size()
    assert extra <= (0 if inplace else size) + 2**20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 30.0, "temperature": 0.7, "logit_scale": 1.3}],
    ids=["plain", "capped"],
)
def test_values_at_full_size(dtype, options):
    logits, labels, grad = inputs(2, 8, sized(256000, 600), dtype)
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    logps = functional.token_logprobs(logits, labels, **options)
    expected = reference.token_logprobs(exact, labels, **options)
    torch.testing.assert_close(logps.double(), expected, rtol=1e-6, atol=1e-5)
    logps.backward(grad)
    expected.backward(grad.double())
    rounding = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label", [5, 32799], ids=["tile", "tail"])
@pytest.mark.parametrize("level", [30.25, 500.0])
def test_confident_label_at_a_temperature(dtype, label, level):
    """As p approaches 1, multiply-adds round the label's logit like its term in the sum."""
    logits = torch.full((1, 8, 32800), level, device=DEVICE)
    logits[0, :, label] += torch.arange(16, 24, device=DEVICE)
    logits, labels = logits.to(dtype).requires_grad_(), torch.full((1, 8), label, device=DEVICE)
    exact = logits.detach().double().requires_grad_()
    logps, expected = (
        functional.token_logprobs(logits, labels, temperature=0.7),
        reference.token_logprobs(exact, labels, temperature=0.7),
    )
    assert (logps <= 0).all()
    torch.testing.assert_close(logps.double(), expected, rtol=0.01, atol=2.4e-7)
    logps.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=4e-3, atol=4e-7)


def test_tanh_polynomial_on_the_device():
    """Logits on both sides of the cap and close to it, where a tile takes another branch."""
    x = (
        torch.cat([torch.linspace(-90, 90, 60000), torch.linspace(29.99, 30.01, 5536)])
        .to(DEVICE)
        .view(1, 8, -1)
    )
    labels = torch.arange(8, device=DEVICE).view(1, 8) * 900
    logps = functional.token_logprobs(x, labels, softcap=30.0)
    exact = reference.token_logprobs(x.double(), labels, softcap=30.0)
    torch.testing.assert_close(logps.double(), exact, rtol=3e-7, atol=6e-6)


@pytest.mark.skipif(REHEARSING, reason="the assertion is the device's")
def test_opt_in_label_check_fails_on_the_device():
    """It runs in its own process, since a failed assertion on the device ends the CUDA context."""
    code = (
        "import torch; from pad_fast import token_logprobs;"
        "x = torch.zeros(2, 9, device='cuda'); y = torch.tensor([1, 9], device='cuda');"
        "assert token_logprobs(x, y).isnan().tolist() == [False, True];"
        "import os; os.environ['PAD_FAST_CHECK_LABELS'] = '1';"
        "token_logprobs(x, y); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "labels must be in 0..8" in done.stderr + done.stdout
