"""The workshop: poisoned memory, small tiles, and a count of the bytes that kernels move, all under Triton's interpreter."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated


INTERPRETED = (
    "test_logprob.py",
    "test_responses.py",
    "test_linear_logprob.py",
    "test_preference.py",
)


def pytest_collection_modifyitems(items):
    """Where a GPU is, the interpreter's tests run on it, and so belong to ``make gpu``."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.parent == Path(__file__).parent and item.path.name in INTERPRETED:
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


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 256 bytes, two a program in the backward: a short row crosses every boundary there is."""
    from pad_fast.kernels.logprob import launch, tuning

    tiling = tuning.Tiling(tile_bytes=256, num_warps=4, chunk=2)
    monkeypatch.setattr(launch, "tiling_of", lambda device: tiling)
    return tiling


class Traffic:
    """Bytes loaded and stored by lanes that were not masked off."""

    def __init__(self):
        self.loaded = self.stored = 0


@pytest.fixture
def traffic(monkeypatch):
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
