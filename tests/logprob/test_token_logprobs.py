"""Token log-probabilities of given logits in PyTorch, against the float64 reference."""

import pytest
import torch
from logprobs import CAPPED, ROUNDING, Largest, close, draw, gradients, watch

from benchmarks.memory import allocated_peak
from pad_fast import functional, reference
from pad_fast.logprob import op as logprob_op
from pad_fast.logprob import torch_impl as logits_torch
from pad_fast.logprob.softmax import TokenOptions


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_from_logits(small_tiles, dtype, options):
    hidden, weight, _, labels, grad = draw()
    logits = (hidden @ weight.T).to(dtype)
    logps, (dlogits,) = gradients(
        functional.token_logprobs, [logits], labels, grad, impl="torch", **options
    )
    exact, (dexact,) = gradients(
        reference.token_logprobs, [logits.double()], labels, grad, **options
    )
    assert logps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dlogits.dtype == dtype
    close(logps, exact, torch.promote_types(dtype, torch.float32))
    close(dlogits, dexact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_rows_that_do_not_follow_one_another(small_tiles, dtype, options):
    """Every other row is ignored, so that no tile of rows is a slice."""
    hidden, weight, _, labels, grad = draw()
    labels.view(-1)[:] = torch.arange(8)
    labels.view(-1)[1::2] = -100
    logits = (hidden @ weight.T).to(dtype)
    before = logits.clone()
    logps, (dlogits,) = gradients(
        functional.token_logprobs, [logits], labels, grad, impl="torch", **options
    )
    exact, (dexact,) = gradients(
        reference.token_logprobs, [logits.double()], labels, grad, **options
    )
    close(logps, exact, torch.float32)
    close(dlogits, dexact, dtype)
    assert logits.equal(before)


@pytest.mark.parametrize("level", [-500.0, 500.0])
def test_levels_and_infinities(small_tiles, level):
    _, _, _, labels, grad = draw()
    logits = torch.randn(2, 4, 45, generator=torch.Generator().manual_seed(1)) + level
    logits[0, 0, :20] = -torch.inf  # more than a tile
    labels[0, 0] = 30
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, impl="torch")
    exact, (dexact,) = gradients(reference.token_logprobs, [logits.double()], labels, grad)
    close(logps, exact, torch.float32)
    close(dlogits, dexact, torch.float32)


def test_confident_label_keeps_its_gradient(small_tiles):
    logits = torch.full((1, 1, 45), 400.0)
    logits[..., 3] = 415.0
    labels, grad = torch.tensor([[3]]), torch.ones(1, 1)
    logps, (dlogits,) = gradients(functional.token_logprobs, [logits], labels, grad, impl="torch")
    exact, (dexact,) = gradients(reference.token_logprobs, [logits.double()], labels, grad)
    torch.testing.assert_close(logps.double(), exact, rtol=0.02, atol=0)
    torch.testing.assert_close(dlogits.double(), dexact, rtol=0.02, atol=0)


def test_slice_along_tokens_is_not_copied(monkeypatch):
    logits = torch.randn(4, 33, 8192)
    labels = torch.zeros(4, 32, dtype=torch.int64)
    largest = Largest(logits)
    watch(monkeypatch, largest, (logits_torch, "logits_forward"))
    functional.token_logprobs(logits[:, :-1], labels, impl="torch")
    assert largest.bytes
    assert largest.bytes <= 4 * logits_torch.LOGITS_ENTRIES < logits.nbytes / 4


@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_a_tile_is_held_once(options):
    """A tile in the forward, and in the backward none where nothing is computed from z alone."""
    logits = torch.randn(256, 4096, requires_grad=True)
    labels, grad = torch.zeros(256, dtype=torch.int64), torch.ones(256)
    device, tile = logits.device, 4 * logits_torch.LOGITS_ENTRIES

    def forward():
        return (functional.token_logprobs(logits, labels, impl="torch", **options),)

    peak, (logps,) = allocated_peak(forward, device)
    assert 0.9 < peak / tile < 1.1
    peak, _ = allocated_peak(lambda: torch.autograd.grad(logps, logits, grad), device)
    assert (peak - logits.nbytes) / tile < (1.1 if options else 0.1)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("vocabulary", [1, 300, 50_257, 128_256, 256_000, 1_000_000])
def test_a_tile_is_bounded_and_never_a_single_row(monkeypatch, threads, vocabulary):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows, columns = logits_torch.logits_tile(vocabulary)
    assert rows >= 2
    assert rows % threads == 0  # as many for each
    assert columns == vocabulary or columns > 100_000
    most = logits_torch.LOGITS_ENTRIES
    assert rows * columns <= max(most, threads * most / 2)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("beside", [1, 2, 3])
def test_bits_follow_neither_threads_nor_neighbours(two_threads, beside):
    """A row by itself would be added up in as many parts as there are threads."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, 6, 70_001, generator=generator)
    labels = torch.randint(70_001, (1, 6), generator=generator)
    options = TokenOptions()
    torch.set_num_threads(1)
    whole = logits_torch.logits_forward(logits, labels, options)
    torch.set_num_threads(2)
    for rows in logits_torch.tiles(6, beside):
        some = labels.clone()
        some[:, : rows.start] = some[:, rows.stop :] = options.ignore_index
        found = logits_torch.logits_forward(logits, some, options)
        for part, all_rows in zip(found, whole, strict=True):
            assert part[:, rows].equal(all_rows[:, rows])


def test_a_label_is_at_most_the_peak(monkeypatch):
    """Its tanh may be rounded otherwise than in the tile, and log p is never above 0."""
    above = torch.full((1,), 20.000002)
    monkeypatch.setattr(logits_torch, "_label_z", lambda *_: above)
    logits = torch.full((1, 1, 9), -20.0)
    logits[..., 3] = 20.0
    logps = functional.token_logprobs(logits, torch.tensor([[3]]), impl="torch")
    assert -1e-6 < logps.item() <= 0


def test_opcheck(small_tiles):
    options = (0.7, 30.0, 1.3, -100, "torch")
    labels = draw(rows=(1, 6), vocabulary=20)[3]
    logits = torch.randn(1, 6, 20, requires_grad=True)
    torch.library.opcheck(logprob_op.token_logprobs.library, (logits, labels, *options, False))
