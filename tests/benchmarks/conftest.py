"""Fixtures of the benchmarks' tests: one thread, and a folder with records."""

import json

import measured
import pytest
import torch

from benchmarks.contestants import NAIVE, OURS, OURS_BUDGET_0
from benchmarks.measure import run_case
from benchmarks.suites import CONTESTANTS


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def records():
    """Records of one run of a made-up machine: a case of each picture."""
    crowd = measured.named(CONTESTANTS, OURS, OURS_BUDGET_0, NAIVE, "QuACK CE")
    cases = [measured.SMOKE[0], *(case for case in measured.SMOKE if case.curve)]
    cases.append(next(case for case in measured.SMOKE if case.job == "kl"))
    found = [run_case(case, crowd, measured.CPU, measured.ROOFS) for case in cases]
    return [measured.RUN | record for of_case in found for record in of_case]


@pytest.fixture
def results(records, tmp_path):
    """A folder with these records and those of an older run."""
    older = {"run": "2025-01-02T03:04:05+00:00", "median_ms": 987654.0}
    both = [record | older for record in records] + records
    (tmp_path / "cpu.jsonl").write_text("".join(json.dumps(record) + "\n" for record in both))
    return tmp_path
