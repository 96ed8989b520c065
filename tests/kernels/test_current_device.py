"""Every launcher makes its tensors' device current: Triton launches on the current one."""

from contextlib import contextmanager

import pytest
import torch
from pad_fast.kernels.common import trial
from pad_fast.kernels.linear_logprob import launch as linear
from pad_fast.kernels.logprob import launch as logprob
from pad_fast.kernels.preference import launch as preference

from pad_fast.logprob.softmax import TokenOptions
from pad_fast.preference.plackett_luce import RankingOptions
from tests.launches import KERNELS

CPU, OPTIONS = torch.device("cpu"), TokenOptions()
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the interpreter")


class Launcher:
    """A kernel that notes which device is current when it is launched, and does nothing."""

    def __init__(self, current: list[torch.device], noted: list[torch.device | None]) -> None:
        self.current, self.noted = current, noted

    def __getitem__(self, grid):
        return lambda *args, **options: self.noted.append(
            self.current[-1] if self.current else None
        )


def logits_backward():
    rows = torch.zeros(1, 2)
    logits, labels = torch.zeros(1, 2, 5), torch.zeros(1, 2, dtype=torch.int64)
    logprob.backward(rows, logits, labels, (rows, rows), OPTIONS, torch.empty_like(logits))


def rows_of_the_head():
    labels = torch.zeros(2, dtype=torch.int64)
    linear.rows(torch.zeros(2, 5), None, labels, None, tuple(torch.zeros(3, 2)), OPTIONS)


def tile_of_the_head():
    labels, (peak, total, grad) = torch.zeros(2, dtype=torch.int64), torch.ones(3, 2)
    linear.tile(torch.zeros(2, 5), labels, peak, total, grad, 0, torch.empty(2, 5), OPTIONS)


def scores():
    hidden, weight = torch.zeros(2, 16), torch.zeros(5, 16)
    linear.score(hidden, weight, None, torch.zeros(2, dtype=torch.int64), OPTIONS)


def sums(packed: bool, dtype: torch.dtype):
    logps, labels = torch.zeros(1, 4, dtype=dtype), torch.zeros(1, 4, dtype=torch.int64)
    rows = (logps[0], labels[0], labels[0]) if packed else (logps, labels, None)
    logprob.sums(*rows, 1, -100, mean=True)


def loss(kind: str, method: str):
    rewards = torch.zeros(2, 3)
    preference.forward(rewards, rewards, None, kind, method, RankingOptions(1.0, 1.0, 4, 0))


# What is called, and how many kernels it launches.
LAUNCHERS = {
    "logits, forward": (
        lambda: logprob.forward(
            torch.zeros(1, 2, 5), torch.zeros(1, 2, dtype=torch.int64), OPTIONS
        ),
        1,
    ),
    "logits, backward": (logits_backward, 1),
    "padded sums": (lambda: sums(False, torch.float32), 1),
    "packed sums": (lambda: sums(True, torch.float32), 2),
    "packed float64 sums": (lambda: sums(True, torch.float64), 1),
    "rows of the head": (rows_of_the_head, 1),
    "tile of the head": (tile_of_the_head, 1),
    "scores": (scores, 2),
    "vpd": (lambda: loss("vpd", "exact"), 1),
    "sampled": (lambda: loss("kl", "sampled"), 1),
    "jsd": (lambda: loss("jsd", "exact"), 1),
    "kl": (lambda: loss("kl", "exact"), 1),
    "mean": (lambda: preference.reduce(torch.zeros(2), None, None, 3, mean=True), 1),
    "the smallest": (lambda: trial.launch(CPU), 1),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_makes_the_device_of_its_tensors_current(name, monkeypatch):
    current: list[torch.device] = []
    noted: list[torch.device | None] = []

    @contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    for module, kernels in (*KERNELS, (trial, ("write_one",))):
        monkeypatch.setattr(module, "on", on)
        for kernel in kernels:
            monkeypatch.setattr(module, kernel, Launcher(current, noted))
    call, launches = LAUNCHERS[name]
    call()
    assert noted == [CPU] * launches
