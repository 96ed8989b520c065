"""Plans of small runs, with times by the rates of this machine."""

from __future__ import annotations

from pathlib import Path

import worlds

from pad_fast.pipeline.arguments import parse_with
from pad_fast.plan.estimate import Estimate, Estimator
from pad_fast.plan.forecast import Forecast, make_case, make_forecast
from pad_fast.plan.options import PlanOptions
from pad_fast.plan.peaks import Peaks
from pad_fast.plan.speeds import Roofline
from pad_fast.plan.work import Work

BY_RATES = ("--trials", "false")  # tests/plan/test_trials.py tries the work


def config_of(world: Path, folder: Path, **changes: object) -> Path:
    given = {role: str(world / role) for role in ("student", "teacher")}
    given |= {"prompts": str(world / "train.jsonl"), "heldout": str(world / "heldout.jsonl")}
    return worlds.write_config(folder, **{**given, **changes}, models=False)


def planned(path: Path, *flags: str) -> Forecast:
    return make_forecast(*parse_with("plan", [str(path), *flags, *BY_RATES], PlanOptions))


def estimator(path: Path, *flags: str) -> Estimator:
    case = make_case(*parse_with("plan", [str(path), *flags, *BY_RATES], PlanOptions))
    peaks = Peaks(case)
    return Estimator(case, peaks, Roofline(case, peaks))


def piece(estimator: Estimator, kind: str, tokens: int | None = None) -> Estimate:
    """The estimate of the first round's piece of a kind, or of a training step."""
    if kind == "train":
        return estimator.step()
    found = Work(estimator.config, estimator.case.counts).pieces()
    return next(
        estimator.piece(one, tokens)
        for one in found
        if one.kind == kind and one.titles[0].startswith("round")
    )
