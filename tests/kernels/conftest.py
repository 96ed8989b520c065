"""Triton's interpreter, mended where it computes otherwise than a GPU, and what watches kernels."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated

# Folders whose tests run kernels: on a GPU, or under the interpreter where there is none.
RUN_KERNELS = ("logprob", "linear_logprob", "preference")
EXPECTED_WARNINGS = (
    # From NumPy, for lanes that are computed and dropped: columns beyond the vocabulary, the branch
    # that is not taken, sets without the response, and NaN or infinity on purpose.
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning",
    "ignore:All-NaN slice encountered:RuntimeWarning",
    # On a GPU, from PyTorch's operations under the fixture that poisons memory.
    "ignore:.*deterministic:UserWarning",
)


def pytest_collection_modifyitems(items):
    """Mark the tests that run kernels: with a GPU they belong to ``make gpu``."""
    folders = [Path(__file__).parent / name for name in RUN_KERNELS]
    for item in items:
        if item.path.parent in folders and item.path.name != "test_gpu.py":
            for warning in EXPECTED_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
            if torch.cuda.is_available():
                item.add_marker(pytest.mark.gpu)


def bfloat16_bits(values):
    """The bits of float values in bfloat16, rounded to nearest even, as a GPU rounds them."""
    exact = torch.from_numpy(np.array(values, dtype=np.float32))
    return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)


def float32_values(values, dtype):
    """What the interpreter holds as a tensor of ``dtype``, where bfloat16 is held as its bits."""
    is_bits = dtype.scalar.is_bf16()
    return (values.astype(np.uint32) << 16).view(np.float32) if is_bits else values


@pytest.fixture(autouse=True, scope="session")
def mended_interpreter():
    """Let the interpreter round to bfloat16 and multiply in bfloat16 as a GPU does.

    Its own ``_convert_float`` cuts the lower 16 bits off, which is twice the error and always
    towards zero, and its ``create_dot`` multiplies the bits of bfloat16 as integers.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton import language as tl
    from triton.runtime import interpreter

    convert, builder = interpreter._convert_float, interpreter.InterpreterBuilder
    toward_zero, dot = interpreter._ir.ROUNDING_MODE.RTZ, builder.create_dot

    def to_nearest_even(values, dtype, target, rounding_mode):
        if (dtype, target) == (tl.float32, tl.bfloat16) and rounding_mode != toward_zero:
            return bfloat16_bits(values)
        return convert(values, dtype, target, rounding_mode)

    def product(self, a, b, d, *options):
        wide = (
            interpreter.TensorHandle(float32_values(x.data, x.dtype), tl.float32)
            if x.dtype.scalar.is_bf16()
            else x
            for x in (a, b)
        )
        return dot(self, *wide, d, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", to_nearest_even)
        patch.setattr(builder, "create_dot", product)
        yield


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
