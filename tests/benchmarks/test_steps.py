"""Whole steps of whole models: every way to do them gives the same rewards."""

import json
from dataclasses import replace

import pytest
from measured import CPU, ROOFS

from benchmarks import steps, tables
from benchmarks.contestants import NAIVE, OURS
from benchmarks.step_cases import StepCase
from benchmarks.suites import SUITES


@pytest.mark.parametrize("case", SUITES["steps-smoke"].cases, ids=lambda case: case.label)
def test_every_way_of_a_whole_step_is_right_or_says_why_not(case):
    records = steps.run_step_case(replace(case, rounds=1), steps.STEP_CONTESTANTS, CPU, ROOFS)
    names = [contestant.name for contestant in steps.STEP_CONTESTANTS]
    assert [record["contestant"] for record in records] == names
    for record in records:
        assert json.loads(json.dumps(record)) == record
        if record["status"] == "ok":
            assert record["error"]["results"] < 1e-5
            assert record["peak_bytes"] > 0
            assert record["tokens_per_second"] > 0
        else:
            assert (record["status"], bool(record["reason"])) == ("absent", True)
    ran = {record["contestant"] for record in records if record["status"] == "ok"}
    assert ran >= {NAIVE, steps.OURS_UNSHARED, OURS}
    assert "| **pad_fast** |" in tables.full({case.label: records})
    assert case.label in tables.summary({case.label: records})


def test_the_longest_response_is_found():
    asked = []

    def fits(length: int) -> bool:
        asked.append(length)
        return length <= 5000

    assert 4750 <= steps.search(fits, 256, 1 << 18) <= 5000
    assert len(asked) < 15
    assert steps.search(lambda length: False, 256, 1 << 18) == 0
    assert steps.search(lambda length: True, 256, 1024) == 1024
    case = StepCase("longest response", "tiny", 3, 12, 4)
    records = steps.longest_response(case, CPU, most=8)
    found = [(record["contestant"], record["tokens"]) for record in records]
    assert found == [(NAIVE, 8), (OURS, 8)]
    assert "longest response: 8 tokens" in tables.full({case.label: records})
