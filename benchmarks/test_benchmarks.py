"""``pytest benchmarks/``: the CPU suite through pytest-benchmark, a group for each case.

Times alone: memory, error and a GPU's figures are ``python -m benchmarks``'s affair.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import Case, make_inputs
from benchmarks.contestants import Contestant, Unsupported
from benchmarks.measure import make_step
from benchmarks.registry import CONTESTANTS, SUITES

PAIRS = [(case, contestant) for case in SUITES["cpu"] for contestant in CONTESTANTS if case.job in contestant.jobs]


@pytest.mark.parametrize(("case", "contestant"), PAIRS, ids=[f"{contestant.name}-{case.label}" for case, contestant in PAIRS])
def test_step(benchmark, case: Case, contestant: Contestant) -> None:
    benchmark.group = case.label
    try:
        step = make_step(contestant, case, make_inputs(case, torch.device("cpu")))
        step()
    except (ImportError, Unsupported) as error:
        pytest.skip(str(error))
    benchmark.pedantic(step, rounds=min(case.rounds, 5))
