"""``pytest benchmarks/``: the suite of this device through pytest-benchmark, a group for each case.

It gives times alone; ``python -m benchmarks`` measures memory and errors too, and a GPU's times
with its own clock.
"""

from __future__ import annotations

import pytest

from benchmarks.cases import Case, make_inputs
from benchmarks.contestants import Contestant, Unsupported
from benchmarks.measure import make_step
from benchmarks.suites import SUITES
from pad_fast.device import default_device, is_gpu, synchronize

DEVICE = default_device()
SUITE = SUITES["gpu" if is_gpu(DEVICE) else "cpu"]
PAIRS = [
    (case, contestant)
    for case in SUITE.cases
    for contestant in SUITE.contestants
    if contestant.takes_part(case)
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
        synchronize(DEVICE)

    benchmark.pedantic(finished, rounds=min(case.rounds, 5))
