"""The kernels of response rewards have the bits of PyTorch's path in any order and packing."""

import pytest
import torch
from pad_fast.kernels.logprob import launch, responses

from pad_fast.logprob import response_op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

IMPLS = ("triton", "torch")


def rewards_of(impl, logps, labels, ids=None, count=None, mean=True, ignore_index=-100):
    return response_op.response_sums(
        logps, labels, ids, len(logps) if count is None else count, ignore_index, mean, impl
    )


def tokens(*shape, seed=0):
    """Log-probabilities and labels; half lie in the middle of two multiples of STEP."""
    g = torch.Generator().manual_seed(seed)
    logps = -torch.rand(*shape, generator=g) * 20
    logps[..., ::2] = -(torch.randint(2**22, logps[..., ::2].shape, generator=g) * 2 + 1) * 2.0**-31
    labels = torch.randint(50, shape, generator=g)
    labels.view(-1)[::7] = -100
    return logps.masked_fill(labels == -100, 0).to(DEVICE), labels.to(DEVICE)


def test_the_grid_is_one():
    """Host and kernel round to the same step."""
    assert responses.STEP.value == response_op.STEP


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(
    "rows", [1, 5, launch.ROWS - 1, launch.ROWS, launch.ROWS + 1, 2 * launch.ROWS + 1]
)
def test_sums_have_the_bits_of_pytorch(rows, mean):
    logps, labels = tokens(3, rows)
    labels[1] = -100  # a response without tokens
    got, want = (rewards_of(impl, logps, labels, mean=mean) for impl in IMPLS)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[1], (labels != -100).sum(1))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed_sums_have_the_bits_of_pytorch_in_any_order(dtype, mean):
    logps, labels = tokens(2 * launch.ROWS + 1)
    ids = (torch.arange(len(logps), device=DEVICE) % 7 - 1).to(dtype)  # -1 belongs to no response
    ids[ids == 4] = 0  # a response without rows
    expected = rewards_of("torch", logps, labels, ids, 6, mean)
    for seed in range(3):
        order = torch.randperm(len(logps), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        got = rewards_of("triton", logps[order], labels.to(dtype)[order], ids[order], 6, mean)
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("packed", [False, True])
def test_sums_keep_what_is_far_or_not_finite(packed):
    values = torch.tensor(
        [[0.0, -torch.inf], [torch.nan, -1.0], [-1e30, -1e30], [-8e6, -0.5], [-4e6, 2.0**-31]],
        device=DEVICE,
    )
    labels, ids = (
        torch.ones(5, 2, dtype=torch.int64, device=DEVICE),
        torch.arange(5, device=DEVICE).repeat_interleave(2),
    )
    arguments = (values.view(-1), labels.view(-1), ids, 5) if packed else (values, labels)
    got, want = (rewards_of(impl, *arguments, mean=False)[0] for impl in IMPLS)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got[1].isnan()
    assert got[0] == -torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_id_past_the_last_response_shows_and_writes_nowhere(dtype):
    """All rewards become NaN, as on a GPU, where the values of ids are not checked."""
    logps, labels = tokens(6)
    logps = logps.to(dtype)
    ids = torch.tensor([0, 1, 1, 2, 2**31 + 1, 0], device=DEVICE)
    rewards, lengths = launch.sums(logps, labels, ids, 3, -100, True)
    assert rewards.isnan().all()
    assert lengths.sum() == (labels[ids < 3] != -100).sum()


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_nothing(shape, dtype):
    logps, labels = (torch.zeros(shape, dtype=kind, device=DEVICE) for kind in (dtype, torch.int64))
    empty = labels.view(-1)[:0]
    for got in (
        rewards_of("triton", logps, labels),
        rewards_of("triton", logps.view(-1)[:0], empty, empty, shape[0]),
    ):
        assert got[0].tolist() == [0.0] * shape[0]
        assert got[1].tolist() == [0] * shape[0]


def test_sums_of_float64_are_not_rounded():
    logps, labels = tokens(2, launch.ROWS + 1)
    ids = torch.arange(2, device=DEVICE).repeat_interleave(launch.ROWS + 1)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    logps = logps.double() + 1e-13
    exact = rewards_of("torch", logps, labels)
    for got in (
        rewards_of("triton", logps, labels),
        rewards_of("triton", logps.view(-1)[order], labels.view(-1)[order], ids[order], 2),
    ):
        torch.testing.assert_close(got[0], exact[0], rtol=1e-14, atol=0)
        assert torch.equal(got[1], exact[1])


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_sums(packed, mean):
    logps, labels = tokens(3, 5)
    labels[1], weights = -100, torch.tensor([1.0, -2.0, 0.5], device=DEVICE)
    ids = torch.arange(3, device=DEVICE).repeat_interleave(5)
    ids[4] = -1
    arguments = (labels.view(-1), ids, 3) if packed else (labels,)
    leaf = (logps.view(-1) if packed else logps).requires_grad_()
    (rewards_of("triton", leaf, *arguments, mean=mean)[0] * weights).sum().backward()
    own = ids >= 0 if packed else ids >= -1
    lengths = torch.stack(
        [
            ((labels.view(-1) != -100) & own & (torch.arange(15, device=DEVICE) // 5 == r)).sum()
            for r in range(3)
        ]
    )
    each = (weights / lengths.clamp(min=1) if mean else weights).repeat_interleave(5)
    torch.testing.assert_close(leaf.grad.view(-1), each.where(own, 0))


@pytest.mark.parametrize("packed", [False, True])
def test_traffic_of_sums(traffic, packed):
    """Log-probabilities, labels and ids are read once, and two numbers a response are written."""
    logps, labels = tokens(2, 3000)
    ids = torch.arange(2).repeat_interleave(3000)
    launch.sums(
        *((logps.view(-1), labels.view(-1), ids) if packed else (logps, labels, None)),
        2,
        -100,
        True,
    )
    size = logps.nbytes + labels.nbytes + ids.nbytes * packed
    assert size <= traffic.loaded <= 1.02 * size
    assert traffic.stored == 2 * (4 + 8)


def test_opcheck_of_sums():
    logps, labels = tokens(2, 3)
    ids = torch.tensor([0, 2, -1, 2, 0, 1], device=DEVICE)
    torch.library.opcheck(
        response_op.response_sums.library,
        (logps.clone().requires_grad_(), labels, None, 2, -100, True, "triton"),
    )
    packed = (
        logps.view(-1).clone().requires_grad_(),
        labels.view(-1),
        ids,
        3,
        -100,
        True,
        "triton",
    )
    torch.library.opcheck(response_op.response_sums.library, packed)
