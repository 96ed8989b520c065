"""``pytest benchmarks/``: the suite of this device through pytest-benchmark, a group for each case.

It gives times alone; ``python -m benchmarks`` measures memory and errors too, and a GPU's times
with its own clock. ``PAD_FAST_BENCHMARK`` names another suite, such as "smoke".
"""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.cases import Case, make_inputs
from benchmarks.contestants import Contestant, Unsupported
from benchmarks.measure import make_step
from benchmarks.suites import SUITES
from pad_fast.device import default_device, is_gpu, synchronize

DEVICE = default_device()
SUITE = SUITES[os.environ.get("PAD_FAST_BENCHMARK") or ("gpu" if is_gpu(DEVICE) else "cpu")]
SECONDS = 3.0  # for the rounds of a case, which has one at least
PAIRS = [
    (case, contestant)
    for case in SUITE.cases
    for contestant in SUITE.contestants
    if contestant.takes_part(case)
]


# A peer's warnings, such as those of deprecation, are not errors of ours.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("case", "contestant"),
    PAIRS,
    ids=[f"{contestant.name}-{case.label}" for case, contestant in PAIRS],
)
def test_step(benchmark, case: Case, contestant: Contestant) -> None:
    benchmark.group = case.label
    try:
        step = make_step(contestant, case, make_inputs(case, DEVICE))
        step()  # compiles what is compiled
        start = time.perf_counter()
        step()
        synchronize(DEVICE)
    except (ImportError, Unsupported) as error:
        pytest.skip(str(error))

    def finished() -> None:
        step()
        synchronize(DEVICE)

    rounds = int(SECONDS / (time.perf_counter() - start))
    benchmark.pedantic(finished, rounds=max(1, min(case.rounds, 5, rounds)))
