"""What must be set before anything is imported: Triton's interpreter where no GPU is, no network, and one thread.

The tensors here are so small that a second thread only waits for the first, several times over on a busy machine.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the processes that tests start

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "TOKENIZERS_PARALLELISM", "false"
)  # a tokenizer that was used warns in each later fork
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture
def small_tiles(monkeypatch):
    """Every loop of the PyTorch path over rows and columns turns several times, and ends in a rest."""
    from pad_fast.linear_logprob import memory_budget
    from pad_fast.logprob import torch_impl as logits_torch

    monkeypatch.setattr(memory_budget, "CPU_ROWS", 2)
    monkeypatch.setattr(logits_torch, "LOGITS_ROWS", 2)
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", 16)


@pytest.fixture(scope="module")
def tokenizer():
    """Of a dozen words, with a chat template."""
    from students import word_tokenizer

    return word_tokenizer()
