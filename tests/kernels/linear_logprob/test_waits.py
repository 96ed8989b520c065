"""How often the host waits for the device in a loss from hidden states."""

import pytest
import torch

import pad_fast
from pad_fast import linear_loss
from pad_fast.linear_logprob import memory_budget
from tests.kernels.linear_logprob.cases import DEVICE
from tests.launches import counted

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counts on tensors of the CPU")
ROWS, READ = "aten.nonzero", "aten._local_scalar_dense"


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_host_waits_for_live_rows_and_for_sizes_of_prompts(chunks, packed, monkeypatch):
    """By steps it waits once, for the rows; reading their number, which is on the host, is free."""
    monkeypatch.setattr(linear_loss, "may_take_chunks", lambda problem: chunks)
    monkeypatch.setattr(linear_loss, "fits_in_chunks", lambda problem, rows: chunks)
    monkeypatch.setattr(memory_budget, "rows_at_a_time", lambda *_: 6)
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 3, 5).requires_grad_(), torch.randn(7, 5).requires_grad_()
    labels, teacher = torch.randint(7, (4, 3)), torch.randn(2, 2)
    labels[1, 2] = -100
    ids = {"response_ids": torch.arange(4).repeat_interleave(3)} if packed else {}
    states = (hidden.view(-1, 5), weight, labels.view(-1)) if packed else (hidden, weight, labels)

    def go(**more):
        loss, _ = pad_fast.linear_preference_loss(
            *states, teacher, loss="vpd", impl="triton", **ids, **more
        )
        return torch.autograd.grad(loss, (hidden, weight), torch.tensor(1.0))

    go()
    with counted(monkeypatch) as launches:
        go()
    assert launches.waited == ([ROWS, "tolist"] if chunks else [ROWS, READ])
    if not chunks:
        rows = (labels.flatten() != -100).nonzero().squeeze(1)
        with counted(monkeypatch) as launches:
            go(live_rows=rows)
        assert launches.waited == []
