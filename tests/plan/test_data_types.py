"""A plan counts models in the data type that the run loads them in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planned_runs import config_of, estimator
from worlds import in_bfloat16

from pad_fast.footprint.fakes import count_parameters, sharing_problem
from pad_fast.plan.work import STUDENT, TEACHER


@pytest.fixture(scope="module")
def narrow(world, tmp_path_factory) -> Path:
    """The world's student, stored in bfloat16."""
    return in_bfloat16(world / "student", tmp_path_factory.mktemp("narrow") / "student")


def test_auto_is_planned_as_the_stored_data_type(world, narrow, tmp_path):
    """Whether prompts can be shared is asked of a model in float32, which changes no setting."""
    path = config_of(world, tmp_path, student=str(narrow))
    found = []
    for flags in (["--dtype", "auto"], ["--dtype", "bfloat16"]):
        planned = estimator(path, *flags)
        case, before = planned.case, planned.case.student.config.to_dict()
        assert case.can_share
        assert sharing_problem(case.student.config, "eager") is None
        shape = case.shape(8)
        peaks = planned.peaks
        parts = [part.peak for part in peaks.sampled(STUDENT, shape)]
        parts.append(peaks.scored(STUDENT, 2, shape, 4096, case.reading(STUDENT, True)).peak)
        found.append([case.dtype(STUDENT), *parts])
        assert case.student.config.to_dict() == before
    assert found[0] == found[1]
    assert found[0][0] == torch.bfloat16
    assert case.dtype(TEACHER) == torch.bfloat16  # as the last flags say


def test_a_trained_student_is_read_from_a_file_as_wide_as_it_was_trained(world, narrow, tmp_path):
    """On a CPU its float32 is mapped while its weights are converted to the run's data type."""
    loads = []
    for name in ("float32", "bfloat16"):
        path = config_of(world, tmp_path, student=str(narrow), train_dtype=name)
        found = estimator(path)
        loads.append(found.peaks.load(STUDENT))
    weights = count_parameters(found.case.student.config)
    assert loads[0] - loads[1] == 4 * weights
