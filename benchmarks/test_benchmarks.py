"""``pytest benchmarks/``: the suite of the device that is there through pytest-benchmark, a group for each case.

Times alone: memory, error and a GPU's figures are ``python -m benchmarks``'s affair.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.contestants import Contestant, Unsupported
from benchmarks.measure import make_step
from benchmarks.suites import CONTESTANTS, SUITES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAIRS = [
    (case, contestant)
    for case in SUITES["gpu" if DEVICE.type == "cuda" else "cpu"]
    for contestant in CONTESTANTS
    if case.job in contestant.jobs
]


@pytest.mark.parametrize(
    ("case", "contestant"),
    PAIRS,
    ids=[f"{contestant.name}-{case.label}" for case, contestant in PAIRS],
)
def test_step(benchmark, case: Case, contestant: Contestant) -> None:
    benchmark.group = case.label
    try:
        step = make_step(contestant, case, make_inputs(case, DEVICE))
        step()
    except (ImportError, Unsupported) as error:
        pytest.skip(str(error))

    def finished() -> None:
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(finished, rounds=min(case.rounds, 5))
