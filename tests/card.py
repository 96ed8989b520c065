"""A GPU for the tests that need one, or with PAD_FAST_REHEARSAL=1 a made-up one on the CPU.

A rehearsal runs the same tests on fewer numbers, by Triton's interpreter. It shows a fault of the
tests themselves before a card is there; of time, memory and waiting it shows nothing.
"""

import os

import pytest
import torch

REHEARSING = os.environ.get("PAD_FAST_REHEARSAL") == "1"
DEVICE = "cpu" if REHEARSING else "cuda"
# The marks of what runs where there is a GPU, or in a rehearsal.
NEEDS_A_CARD = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        not REHEARSING and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
    # NumPy warns in the interpreter of lanes that are computed and dropped.
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
    ),
)


def needs_a_card(test):
    """Mark one test as :data:`NEEDS_A_CARD` marks a module."""
    for mark in NEEDS_A_CARD:
        test = mark(test)
    return test


def sized(full: int, small: int) -> int:
    """A number of rows, columns, groups or repeats, and the one that a rehearsal takes."""
    return small if REHEARSING else full


def needs(gigabytes: float) -> None:
    """Skip a test for which the device has too little free memory."""
    if not REHEARSING and torch.cuda.mem_get_info()[0] < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GB of free device memory")


def generator(seed: int) -> torch.Generator:
    """A generator of the device."""
    return torch.Generator(DEVICE).manual_seed(seed)


@pytest.fixture
def card(monkeypatch):
    """The device of this test: in a rehearsal, what measures and waits is made up."""
    if not REHEARSING:
        yield torch.device(DEVICE)
        return
    from benchmarks.rehearsal import made_up_card

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with made_up_card():
        yield torch.device(DEVICE)
