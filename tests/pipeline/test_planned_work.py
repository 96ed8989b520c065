"""A plan names and counts every piece of work that a run does, and the report shows both."""

from __future__ import annotations

import json

import pytest
from worlds import changed_config

from pad_fast import cli
from pad_fast.pipeline.arguments import parse_with
from pad_fast.pipeline.run_folder import RunFolder
from pad_fast.plan.forecast import make_case
from pad_fast.plan.options import PlanOptions
from pad_fast.plan.work import Work
from pad_fast.report.costs import compared, read_costs, read_plan, section

BY_RATES = ("--trials", "false")


def planned(config, *flags: str) -> dict[str, int]:
    """How many responses, questions, steps or models each title of a run has, as planned."""
    from pad_fast.plan.estimate import Estimator

    case = make_case(*parse_with("plan", [str(config), *flags, *BY_RATES], PlanOptions))
    estimator, found = Estimator(case, None, None), {}
    for piece in Work(case.config, case.counts).pieces():
        count, _ = estimator._counts(piece)
        found |= dict.fromkeys(piece.titles, count or case.steps(piece.prompts))
    return found


def taken(folder) -> dict[str, int]:
    return {row["title"]: row["count"] for row in read_costs(folder)}


def test_all_work_of_a_run_is_planned(finished):
    """Two rounds and the baseline, with held-out prompts that have answers, no validation."""
    assert planned(finished / "config.yaml") == taken(finished / "run")


@pytest.mark.usefixtures("no_report")
def test_validation_and_the_teachers_own_answers_are_planned(world, tmp_path, monkeypatch):
    """Without answers the teacher's rewards measure everybody, the teacher included."""
    checked, check = [], RunFolder.check_whole
    monkeypatch.setattr(RunFolder, "check_whole", lambda *of: (checked.append(of[2]), check(*of)))
    plain = [{"prompt": f"{n}+1=?"} for n in range(8)]
    prompts = tmp_path / "plain.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in plain))
    changes = {"teacher_response": "greedy", "validation_size": 2, "heldout_size": 2}
    places = {"prompts": str(prompts), "heldout": None}
    config = changed_config(world, tmp_path, **changes, **places, mcq_style="listwise")
    assert cli.main(["run", str(config)]) == 0
    found = taken(tmp_path / "run")
    foreseen = planned(config)
    # The trained student answers the validation as the base does, so that all scores are known.
    assert foreseen == {**found, "load teacher": found["load teacher"] + 1}
    assert found["teacher's answers"] == found["round 1/1 · sample"] / 3 == 4
    assert found["evaluate teacher: calibrate"] > 0
    assert found["validate student-01"] == 2
    case = make_case(*parse_with("plan", [str(config), *BY_RATES], PlanOptions))
    loads = {piece.title: piece for piece in Work(case.config, case.counts).pieces()}
    assert loads["load student"].trained == sum(checked) == 2
    assert loads["load teacher"].trained == 0
    (judged,) = (
        piece for title, piece in loads.items() if title.endswith(": score") and piece.n == 1
    )
    assert judged.tries == len(judged.titles) == 2  # a teacher that is loaded anew, each time


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("changes", "read"), [({}, 2), ({"loss": "dpo", "anchor": "start"}, 6)], ids=["plain", "anchor"]
)
def test_the_student_that_reads_given_responses_is_planned(world, tmp_path, changes, read):
    """It is loaded once for all shards, and not at all where no shard wants its rewards."""
    rows = [
        {"prompt": f"{n}+1=?", "completions": ["1", "2", "3"], "scores": [0, 1, n]}
        for n in range(8)
    ]
    source = tmp_path / "given.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {**changes, "responses": str(source), "heldout_size": 2, "shard_size": 2}
    config = changed_config(
        world, tmp_path, **dict.fromkeys(("prompts", "heldout", "teacher")), **changes
    )
    assert cli.main(["run", str(config)]) == 0
    found = taken(tmp_path / "run")
    assert found == planned(config)
    assert found["given responses · student"] == read * 3
    assert found["held-out responses · student"] == 2 * 3


def test_a_plan_that_is_kept_stands_in_the_report(finished, capsys):
    run = finished / "run"
    assert cli.main(["plan", str(finished / "config.yaml"), "--keep", "true", *BY_RATES]) == 0
    plan = read_plan(run)
    rows = {row.title: row for row in compared(plan, read_costs(run))}
    sample = rows["round 2/2 · sample"]
    assert sample.time_ratio == pytest.approx(sample.seconds / sample.planned_seconds)
    assert 0.5 < sample.memory_ratio < 2
    assert all(row.planned_seconds > 0 for row in rows.values())
    table = section(run)
    assert table["planned"]
    shown = {cells[0]: cells for cells in table["rows"]}
    assert shown["sample"][1] == "48 responses"  # rounds added up
    assert cli.main(["report", str(finished / "config.yaml")]) == 0
    page = (run / "report" / "index.html").read_text()
    assert '<tr class="took"><th>sample</th><td>48 responses</td>' in page
    assert "Planned memory" in page
    (run / "plan.json").unlink()
    assert section(run)["columns"][-1] == "Peak memory"


def test_a_part_of_the_work_is_compared_with_its_part_of_the_plan(tmp_path):
    piece = {"titles": ["a 1", "a 2"], "seconds": 8.0, "peak": 100, "count": 20}
    row = {"title": "a 2", "unit": "response", "count": 5, "tokens": 50, "seconds": 3.0, "peak": 90}
    (tmp_path / "costs.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = compared({"pieces": [piece]}, read_costs(tmp_path))
    assert found.planned_here == 2.0
    assert (found.time_ratio, found.memory_ratio, found.rate) == (1.5, 0.9, 50 / 3)
