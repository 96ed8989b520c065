"""A part of the bad inputs in the test command; ``python tools/bad_inputs.py`` tries all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from tests.bad_inputs import CASES
from tests.bad_inputs.attempt import Case, Outcome, Worlds, attempt, faults

PAGE = Path(__file__).parents[2] / "docs" / "bad_inputs.md"
# Every fourth of those that take less than a second: they need no finished run and no weights.
QUICK = [
    case
    for case in CASES
    if not (case.started or case.reads or "never ends" in case.what or "works in it" in case.what)
][::4]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are forks")


@pytest.fixture(scope="module")
def some_worlds(tmp_path_factory) -> Worlds:
    torch.set_num_threads(1)
    from pad_fast.pipeline import rounds  # noqa: F401  imported before the forks

    return Worlds(tmp_path_factory.mktemp("bad") / "worlds")


@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.group}: {case.what}")
def test_a_bad_input_gets_a_useful_message_before_any_weight_is_read(some_worlds, case):
    assert faults(case, attempt(case, some_worlds.of(case))) == []


def test_the_table_holds_every_case():
    page = PAGE.read_text(encoding="utf-8")
    assert len(CASES) >= 60
    assert {case.group for case in CASES} == {
        "settings",
        "files",
        "models",
        "folders",
        "environment",
    }
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for case in CASES:
        what = case.what.replace("<", "&lt;").replace("*", "\\*")
        (row,) = (line for line in rows if line.startswith(f"| {what} |"))
        if case.reads == 0:
            assert row.endswith("| 0 |"), row


def test_bad_answers_are_found():
    case = Case("settings", "x", ("beta", "-1"))
    good = Outcome(2, "log\npad-fast: beta must be above 0, got -1\n", 0.1, 0)
    assert faults(case, good) == []
    for change in (
        {"code": 1},
        {"message": "beta -1\n"},
        {"message": "Traceback (most recent call last)\npad-fast: beta -1\n"},
        {"message": "pad-fast: KeyError: beta -1 (pad-fast --traceback COMMAND shows where)\n"},
        {"message": "pad-fast: beta must be above 0\n"},
        {"reads": 1},
    ):
        assert len(faults(case, dataclasses.replace(good, **change))) == 1
