"""Settings that come before any import, and fixtures of all tests.

Without a GPU, kernels run in Triton's interpreter. Nothing uses the network. PyTorch takes one
thread: these tensors are so small that a second one only waits for the first.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the processes that tests start

import atexit
import gc
import logging
import signal

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A tokenizer that was used would warn in each later fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")


from tests.card import card  # noqa: F401 (a fixture, which needs the settings above)

# A shell that starts the tests in the background has Ctrl-C ignored, by them and by all they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LEFT_BY_ARGUMENTS = ("ACCELERATE_", "FSDP_")


@pytest.fixture(autouse=True)
def environment_as_before():
    """Remove what transformers leaves in the environment where arguments ask for FSDP, say."""
    before = {name for name in os.environ if name.startswith(LEFT_BY_ARGUMENTS)}
    yield
    for name in [name for name in os.environ if name.startswith(LEFT_BY_ARGUMENTS)]:
        if name not in before:
            del os.environ[name]


@pytest.fixture(autouse=True)
def warnings_said_as_before():
    """Restore the level of the package's log, which commands of the benchmarks raise."""
    log = logging.getLogger("pad_fast")
    before = log.level
    yield
    log.setLevel(before)


atexit.register(gc.unfreeze)  # or nanobind's modules report leaks


@pytest.fixture(autouse=True, scope="module")
def imports_left_alone():
    """Take modules and tests out of the collections that runs make when they free a model.

    Nearly all of the time of a small run went into looking through those objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that each loop over rows and columns repeats, the last tile being shorter."""
    from pad_fast.linear_logprob import memory_budget
    from pad_fast.logprob import torch_impl as logits_torch

    monkeypatch.setattr(memory_budget, "CPU_ROWS", 2)
    monkeypatch.setattr(logits_torch, "LOGITS_ENTRIES", 32)  # at least two rows of 16 columns
    monkeypatch.setattr(logits_torch, "TILE_COLUMNS", 16)


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of a dozen words, with a chat template."""
    from students import word_tokenizer

    return word_tokenizer()
