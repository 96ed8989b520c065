"""Gradients of a weight that is used twice: autograd makes a third tensor for their sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pad_fast.files.process_memory import forget_peak, resident
from pad_fast.footprint.fakes import fake

ROWS, WIDTH = 50_000, 256  # 49 MiB, which the allocator gives back at once


def step(weight: Tensor) -> None:
    """A head reads what its own weight has embedded."""
    embedded = nn.functional.embedding(torch.zeros(2, 4, dtype=torch.long), weight)
    nn.functional.linear(embedded.tanh(), weight).sum().backward()


@pytest.mark.skipif(not forget_peak(), reason="the system does not say how much memory is held")
def test_a_tied_head_and_embedding_hold_three_gradients():
    size = ROWS * WIDTH * 4
    with fake() as meter:
        weight = nn.Parameter(torch.empty(ROWS, WIDTH))
        meter.restart()
        step(weight)
        counted = meter.footprint().peak - meter.footprint().start
    assert counted == pytest.approx(3 * size, rel=0.1)
    weight = nn.Parameter(torch.full((ROWS, WIDTH), 0.01))
    step(weight)  # loads libraries
    weight.grad = None
    before = resident()
    forget_peak()
    step(weight)
    assert resident("VmHWM") - before == pytest.approx(counted, rel=0.1)
