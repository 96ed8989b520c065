"""Poisoned memory and a count of the bytes that kernels move, under Triton's interpreter."""

import os
from pathlib import Path

import pytest
import torch

from tests.interpreter import mend

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated
if os.environ.get("TRITON_INTERPRET") == "1":
    mend()

# Folders whose tests run kernels: on a GPU, or under the interpreter where there is none.
RUN_KERNELS = ("logprob", "linear_logprob", "preference", "peers")
EXPECTED_WARNINGS = (
    # From NumPy, for lanes that are computed and dropped: columns beyond the vocabulary, the branch
    # that is not taken, sets without the response, and NaN or infinity on purpose.
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning",
    "ignore:All-NaN slice encountered:RuntimeWarning",
    # On a GPU, from PyTorch's operations under the fixture that poisons memory.
    "ignore:.*deterministic:UserWarning",
)


def pytest_collection_modifyitems(items):
    """Mark the tests that run kernels: with a GPU they belong to ``make gpu-checks``."""
    folders = [Path(__file__).parent / name for name in RUN_KERNELS]
    for item in items:
        if item.path.parent in folders and item.path.name != "test_gpu.py":
            for warning in EXPECTED_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
            if torch.cuda.is_available():
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def poison():
    """torch.empty gives NaN, so that an entry which is never written shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Traffic:
    """Bytes loaded and stored by lanes that were not masked off."""

    def __init__(self):
        self.loaded = self.stored = 0


@pytest.fixture
def traffic(monkeypatch):
    """Counts the bytes of every load and store of the interpreter."""
    from triton.runtime import interpreter

    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("counts the interpreter's loads and stores")
    builder, count = interpreter.InterpreterBuilder, Traffic()
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self, pointers, mask, *rest):
        count.loaded += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return load(self, pointers, mask, *rest)

    def counted_store(self, pointers, value, mask, *rest):
        count.stored += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)
    return count
