"""What only a device shows: synchronisation, offsets past 2^31, huge grids, memory, bits from run to run. Run by ``make gpu``."""

import subprocess
import sys

import pytest
import torch

from pad_fast import functional, reference
from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.preference import op as preference_op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def poison():
    """Not here: deterministic algorithms of PyTorch wait for the device and take memory of their own."""


def needs(gigabytes: float) -> None:
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GB of free device memory")


def inputs(r, t, v, dtype=torch.bfloat16, seed=0):
    g = torch.Generator("cuda").manual_seed(seed)
    logits = torch.randn(r, t, v, generator=g, device="cuda", dtype=torch.float32).mul_(4).to(dtype)
    labels = torch.randint(v, (r, t), generator=g, device="cuda")
    return logits, labels, torch.randn(r, t, generator=g, device="cuda")


@pytest.mark.filterwarnings(
    "ignore:Synchronization debug mode is a prototype feature:UserWarning"
)  # PyTorch says so once
@pytest.mark.parametrize("inplace", [False, True])
def test_the_host_never_waits(inplace):
    logits, labels, grad = inputs(4, 8, 32001)
    labels[0] = -100
    ids = torch.arange(4, device="cuda").repeat_interleave(8)
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

    step()  # compiles, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rows_past_two_to_the_31():
    """16,500 rows of 131,072 columns are 2.16e9 logits: the last rows lie past 2^31, where a 32-bit offset would turn negative."""
    needs(11)
    rows, vocabulary = 16500, 131072
    logits = torch.zeros(1, rows, vocabulary, dtype=torch.bfloat16, device="cuda")
    few, labels, grad = inputs(1, 8, vocabulary)
    logits[:, -8:] = few
    every = torch.full((1, rows), -100, device="cuda")
    every[:, -8:] = labels
    upstream = torch.zeros(1, rows, device="cuda")
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
    logits, labels, grad = inputs(1, 65537, 64, torch.float32)
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    functional.token_logprobs(logits, labels).backward(grad)
    logps = reference.token_logprobs(exact, labels)
    logps.backward(grad.double())
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_same_bits_in_20_runs_and_in_any_company(softcap):
    logits, labels, grad = inputs(8, 16, 50257)

    def results(r):
        leaf = logits[r].clone().requires_grad_()
        rewards = functional.response_rewards(leaf, labels[r], softcap=softcap)
        rewards.backward(grad[r].sum(1))
        return rewards.detach(), leaf.grad

    rewards, gradients = results(slice(None))
    for _ in range(20):
        again, dagain = results(slice(None))
        assert torch.equal(again, rewards)
        assert torch.equal(dagain, gradients)
    for r in range(8):
        alone, dalone = results(slice(r, r + 1))
        assert torch.equal(alone, rewards[r : r + 1])
        assert torch.equal(dalone, gradients[r : r + 1])


@pytest.mark.parametrize("inplace", [False, True])
def test_memory(inplace):
    """Beyond the logits: the gradient, or nothing but a few numbers a row where it overwrites them."""
    logits, labels, grad = inputs(4, 128, 128256)
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
    logits, labels, grad = inputs(2, 8, 256000, dtype)
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
    """p -> 1 in the launched tiles: the device's multiply-adds round the label's score like its term in the sum."""
    logits = torch.full((1, 8, 32800), level, device="cuda")
    logits[0, :, label] += torch.arange(16, 24, device="cuda")
    logits, labels = logits.to(dtype).requires_grad_(), torch.full((1, 8), label, device="cuda")
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
    """Logits across the cap and around its edge, where a tile changes its branch."""
    x = (
        torch.cat([torch.linspace(-90, 90, 60000), torch.linspace(29.99, 30.01, 5536)])
        .cuda()
        .view(1, 8, -1)
    )
    labels = torch.arange(8, device="cuda").view(1, 8) * 900
    logps = functional.token_logprobs(x, labels, softcap=30.0)
    exact = reference.token_logprobs(x.double(), labels, softcap=30.0)
    torch.testing.assert_close(logps.double(), exact, rtol=3e-7, atol=6e-6)


def test_opt_in_label_check_fails_on_the_device():
    """In a process of its own: a failed assertion on the device ends the CUDA context."""
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


# Listwise losses.


LISTWISE = [
    ("kl", "exact", 8),
    ("kl", "exact", 12),
    ("reverse_kl", "exact", 12),
    ("jsd", "exact", 8),
    ("jsd", "exact", 10),
    ("vpd", "exact", 200),
]
LISTWISE += [(kind, "sampled", 16) for kind in ("kl", "reverse_kl", "jsd")]


def listwise_inputs(kind, n, groups=64):
    g = torch.Generator("cuda").manual_seed(1)
    student, teacher = 0.1 * torch.randn(2, groups, n, generator=g, device="cuda")
    live = torch.rand(groups, n, generator=g, device="cuda") < 0.8
    live[:2] = torch.arange(n, device="cuda") < torch.tensor([[n], [1]], device="cuda")
    return student, teacher, live


def listwise(kind, method, student, teacher, live=None, impl="triton", seed=0):
    return preference_op.preference_loss(
        student, teacher, live, kind, method, 10.0, 8.0, 256, seed, False, impl
    )


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
    for _ in range(20):
        again = listwise(kind, method, student, teacher, live)
        assert torch.equal(again[0], loss)
        assert torch.equal(again[1], grad)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "jsd"])
def test_sampled_losses_are_unbiased_on_the_device(kind):
    student, teacher = 0.1 * torch.randn(
        2, 1, 6, generator=torch.Generator("cuda").manual_seed(2), device="cuda"
    )
    copies = 20_000
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

    expected = step()  # compiles and makes tables, which may wait
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


# From hidden states and the output head.


def head_inputs(m, d, v, dtype=torch.bfloat16, seed=0):
    g = torch.Generator("cuda").manual_seed(seed)
    hidden = torch.randn(m, d, generator=g, device="cuda", dtype=dtype)
    weight = torch.randn(v, d, generator=g, device="cuda", dtype=dtype).mul_(3 / d**0.5)
    labels = torch.randint(v, (m,), generator=g, device="cuda")
    return (
        hidden.requires_grad_(),
        weight.requires_grad_(),
        labels,
        torch.randn(m, generator=g, device="cuda"),
    )


@pytest.mark.parametrize("budget", ["auto", 300 << 20, 0])
def test_the_host_never_waits_for_a_head_whose_rows_it_knows(budget):
    hidden, weight, labels, grad = head_inputs(512, 256, 32000)
    labels[::2] = -100
    rows = torch.arange(1, 512, 2, device="cuda")

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
    hidden, weight, labels, grad = head_inputs(1500, 256, 50257, dtype)
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
    """The weight's gradient from run to run, and a row's log-probability in any company, by either way of scoring."""
    hidden, weight, labels, grad = head_inputs(2500, 512, 32000)
    first = None
    for _ in range(20):
        logps = functional.linear_token_logprobs(hidden, weight, labels, memory_budget=budget)
        found = (logps.detach(), *torch.autograd.grad(logps, (hidden, weight), grad))
        first = first or found
        assert all(torch.equal(again, once) for again, once in zip(found, first, strict=True))
    order = torch.randperm(2500, device="cuda")
    assert torch.equal(
        functional.linear_token_logprobs(
            hidden[order], weight, labels[order], memory_budget=budget
        ),
        first[0][order],
    )
    assert torch.equal(
        functional.linear_token_logprobs(hidden[7:90], weight, labels[7:90], memory_budget=budget),
        first[0][7:90],
    )
    with torch.no_grad():
        alone = functional.linear_token_logprobs(
            hidden[7:90], weight, labels[7:90], memory_budget=budget
        )
        assert torch.equal(
            alone,
            functional.linear_token_logprobs(hidden, weight, labels, memory_budget=budget)[7:90],
        )


@pytest.mark.parametrize(
    ("budget", "frozen"), [(5 << 30, False), (2 << 30, False), (0, False), (0, True)]
)
def test_memory_of_a_head(budget, frozen):
    """Beyond inputs and gradients: the budget and a tenth, or 1 GiB where it is 0."""
    needs(14)
    hidden, weight, labels, grad = head_inputs(16384, 4096, 128256)
    weight.requires_grad_(not frozen)
    leaves = (hidden,) if frozen else (hidden, weight)
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    rows = torch.arange(16384, device="cuda")
    logps = functional.linear_token_logprobs(
        hidden, weight, labels, live_rows=rows, memory_budget=budget
    )
    gradients = torch.autograd.grad(logps, leaves, grad)
    extra = (
        torch.cuda.max_memory_allocated() - base - sum(gradient.nbytes for gradient in gradients)
    )
    assert extra <= max(1.1 * budget, 1 << 30)
