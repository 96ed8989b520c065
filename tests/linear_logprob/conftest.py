"""Fake tensors that pass for a GPU's, on which bytes and products are counted."""

import pytest
import torch


@pytest.fixture
def wide_products() -> bool:
    """Whether the GPU keeps products of 16-bit matrices in float32; AMD's and sm_75 do not."""
    return True


@pytest.fixture
def as_on_a_gpu(wide_products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors pass for a GPU's. Kernels, which hold only their arguments, do nothing."""
    from pad_fast.kernels.linear_logprob import launch

    from pad_fast import argument_checks
    from pad_fast.footprint import meter
    from pad_fast.linear_logprob import backward, head, matmul, memory_budget, upstream

    for module in (memory_budget, backward, head, upstream):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr(matmul, "multiplies_into_float32", lambda tensor: wide_products)
    monkeypatch.setattr(memory_budget, "has_wide_products", lambda device: wide_products)
    for module, names in (
        (launch, ("rows", "tile")),
        (argument_checks, ("check_label_values", "check_live_values")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(meter.Meter, "_cost", lambda *_: (0, 0))
    # It adds in place and holds nothing; torch 2.11 cannot try that with a dtype on fake tensors.
    monkeypatch.setattr(torch, "addmm", lambda *_, out, **__: out)
