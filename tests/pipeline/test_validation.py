"""A part of the training prompts chooses the round and stops a run that no longer improves."""

from __future__ import annotations

import json
import logging

import pytest
from worlds import changed_config

from pad_fast import cli
from pad_fast.files.own_files import write_json
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.evaluate.best_round import chosen_student
from pad_fast.pipeline.evaluate.validation import (
    best_round,
    stopped_round,
    validate,
    validation_file,
    values_of_rounds,
)
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.phases import changed_settings
from pad_fast.pipeline.run import RunContext


@pytest.mark.parametrize(
    ("values", "patience", "stopped", "best"),
    [
        ([0.5], 2, None, None),
        ([0.5, 0.6, 0.7], 2, None, 2),
        ([0.5, 0.4, 0.5], 2, 2, 2),  # no better than the base student
        ([0.5, 0.6, 0.6, 0.5, 0.9], 2, 3, 4),
        ([0.5, 0.6, 0.5, 0.7, 0.6], 2, None, 3),
        ([0.5, 0.4, 0.3, 0.2], 0, None, 1),
        ([None, None, 0.2], 2, 1, 2),
        ([0.5, 0.4], 1, 1, 1),
    ],
)
def test_the_rule(values, patience, stopped, best) -> None:
    assert stopped_round(values, patience) == stopped
    assert best_round(values) == best


@pytest.mark.usefixtures("no_report")
def test_a_run_stops_and_names_its_best_round(world, tmp_path, capsys, caplog) -> None:
    config = changed_config(
        world,
        tmp_path,
        rounds=4,
        validation_size=3,
        patience=1,
        learning_rate=1e-12,  # nothing changes, and so nothing improves
        baseline="seqkd",
    )
    with caplog.at_level(logging.WARNING, "pad_fast"):
        assert cli.main(["run", str(config)]) == 0
    folder = tmp_path / "run"
    said = " ".join([caplog.text, capsys.readouterr().out])
    assert "the run stops after round 1 of 4: 1 rounds in a row did not improve on the 3" in said
    assert "no round is better than the base student on the 3 validation prompts" in said
    assert f"student  {folder / 'round-01' / 'student'}" in said
    assert not (folder / "round-02").exists()
    assert (folder / "seqkd" / "student").exists()  # the baseline follows the last round
    best = json.loads((folder / "best.json").read_text())
    assert (best["round"], best["student"], best["num_prompts"]) == (1, "round-01/student", 3)
    assert len(best["values"]) == 2
    trained = {row["prompt_id"] for row in read_rows(folder / "round-01" / "samples")}
    asked = read_rows(folder / "validation" / "samples" / "student-01" / "greedy")
    assert len(trained) == 5
    assert len(asked) == 3
    assert not trained & {row["prompt_id"] for row in asked}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert cli.main(["run", str(config)]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before
    assert cli.main(["train", str(config)]) == 0
    assert "all 1 rounds are finished; raise patience to go on" in capsys.readouterr().out


@pytest.mark.usefixtures("no_report")
def test_without_answers_the_teachers_reward_is_the_measure(world, tmp_path) -> None:
    rows = [{"prompt": f"{n}+1=?"} for n in range(6)]
    prompts = tmp_path / "plain.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({"prompt": f"{n}+2=?"}) + "\n" for n in range(3)))
    places = {"prompts": str(prompts), "heldout": str(heldout)}
    config = changed_config(world, tmp_path, rounds=2, validation_size=2, patience=0, **places)
    assert cli.main(["run", str(config)]) == 0
    for name in ("student-00", "student-01", "student-02"):
        found = json.loads((tmp_path / "run" / "validation" / f"{name}.json").read_text())
        assert found["metric"] == "teacher_reward"
        scored = read_rows(tmp_path / "run" / "validation" / "samples" / name / "scored")
        rewards = [reward for row in scored for reward in row["teacher_rewards"]]
        assert found["value"] == pytest.approx(sum(rewards) / len(rewards))
        assert found["interval"][0] <= found["value"] <= found["interval"][1]
    # The teacher is asked too, and its reward of its own samples is what students come to.
    teacher = json.loads((tmp_path / "run" / "evaluation" / "teacher.json").read_text())
    rows = read_rows(tmp_path / "run" / "evaluation" / "samples" / "teacher" / "scored")
    own = [reward for row in rows for reward in row["teacher_rewards"]]
    assert teacher["teacher_reward"] == pytest.approx(sum(own) / len(own))
    assert teacher["kendall_tau"] is None  # with itself
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert cli.main(["report", str(config)]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    validated = [line for line in lines if '"phase": "validate"' in line]
    assert sum('"teacher_reward"' in line for line in validated) == 3


def test_answers_are_right_by_the_rule_of_the_run(world, tmp_path) -> None:
    words = {"validation_size": 2, "answer_rule": "flexible-extract"}
    run = RunContext(parse_settings("run", [str(changed_config(world, tmp_path, **words))]))
    rows = [{"prompt_id": str(n), "answer": str(n), "skill": None} for n in range(10, 16)]
    write_rows(run.folder.root / "prompts.parquet", rows)
    for name, said in (("student-00", ""), ("student-01", " apples")):
        answered = [{**row, "completions": [row["answer"] + said]} for row in run.validation_rows]
        answered[0]["completions"] = ["none"]
        path = run.folder.root / "validation" / "samples" / name / "greedy" / "part-00000.parquet"
        write_rows(path, answered)
    validate(run, 1)
    assert values_of_rounds(run) == [0.5, 0.5]  # by the rule "exact" 0.5 and 0


@pytest.mark.parametrize(
    ("values", "load", "chosen", "best", "said"),
    [
        ([0.5, 0.7, 0.6], True, 1, 1, "round 1 of 2 is the best"),
        ([0.5, 0.7, 0.6], False, 2, 1, "round 1 of 2 is the best"),
        ([0.5, 0.6, 0.7], True, 2, 2, ""),
        ([0.7, 0.5, 0.6], True, 2, 2, "no round is better than the base student"),
    ],
)
def test_the_student_of_the_best_round_is_chosen(
    values, load, chosen, best, said, world, tmp_path, capsys, caplog
) -> None:
    words = {"rounds": 2, "validation_size": 3, "load_best_round": load, "patience": 0}
    run = RunContext(parse_settings("run", [str(changed_config(world, tmp_path, **words))]))
    rows = [{"prompt": "x", "answer": "1", "skill": None, "n": n} for n in range(8)]
    write_rows(run.folder.root / "prompts.parquet", rows)
    for round, value in enumerate(values):
        write_json(validation_file(run, round), {"round": round, "value": value})
    assert chosen_student(run) == run.folder.student(chosen)
    found = json.loads((run.folder.root / "best.json").read_text())
    assert (found["round"], found["values"], found["num_prompts"]) == (best, values, 3)
    assert found["student"] == f"round-{best:02d}/student"
    told = capsys.readouterr().out + caplog.text
    assert said in told
    assert bool(said) == bool(told)
    if best != 2:
        assert f"validation prompts; round {chosen} is taken" in told


@pytest.mark.parametrize(
    ("prompts", "size", "kept"), [(100, None, 0), (200, None, 20), (5000, None, 128), (100, 7, 7)]
)
def test_a_tenth_of_the_prompts_is_kept(prompts, size, kept, world, tmp_path) -> None:
    more = {} if size is None else {"validation_size": size}
    run = RunContext(parse_settings("run", [str(changed_config(world, tmp_path, **more))]))
    row = {"prompt": "x", "answer": None, "skill": None}
    write_rows(run.folder.root / "prompts.parquet", [{**row, "n": n} for n in range(prompts)])
    places = {row["n"] for row in run.validation_rows}
    assert len(places) == kept
    assert len(run.train_rows) == prompts - kept
    assert not places & {row["n"] for row in run.train_rows}


def test_patience_only_adds_rounds_without_a_baseline() -> None:
    before = {"baseline": "none", "rounds": 2, "patience": 2}
    now = {**before, "rounds": 3, "patience": 0}
    assert changed_settings(before, now) == {"patience": None, "rounds": None}
    with_baseline = {"baseline": "seqkd"}
    found = changed_settings(before | with_baseline, now | with_baseline)
    assert found == {"patience": "evaluate", "rounds": "prepare"}
