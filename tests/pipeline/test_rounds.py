"""Phases and rounds one after the other."""

from __future__ import annotations

import json
import random

import pytest
from commands import failing
from worlds import changed_config, contents

from pad_fast import cli
from pad_fast.pipeline import rounds
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.sample.teacher_answers import unanswered
from pad_fast.pipeline.seeds import derive_seed


def test_phases_in_a_row_equal_run(world, tmp_path, capsys, monkeypatch):
    begun = []  # the runs that compile their kernels ahead, and whether they have scored by then
    monkeypatch.setattr(
        rounds,
        "compile_ahead",
        lambda run: begun.append(
            (run.folder.root.name, any(run.folder.root.glob("round-01/scores*")))
        ),
    )
    config = changed_config(world, tmp_path, output_dir="./phases", baseline="seqkd")
    assert "not sampled yet" in failing(capsys, "score", config)
    for phase in ("sample", "score", "train", "evaluate", "report"):
        assert cli.main([phase, str(config)]) == 0
    assert "SeqKD" in capsys.readouterr().out
    assert cli.main(["sample", str(config)]) == 0
    assert "all 1 rounds are finished" in capsys.readouterr().out
    assert cli.main(["run", str(config), "--output_dir", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "phases") == contents(tmp_path / "run")
    assert begun == [("phases", True), ("run", False)]
    assert (tmp_path / "phases" / "report" / "index.html").exists()
    # The folder of a run can take the place of its config.
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    # With more rounds the baseline would need more steps, so that is another run.
    assert "rounds: " in failing(capsys, "run", config, "--rounds", "2")


@pytest.mark.usefixtures("no_report")
def test_rounds_can_be_added(world, tmp_path, capsys):
    config = changed_config(world, tmp_path, num_generations=2)
    assert cli.main(["run", str(config)]) == 0
    before = contents(tmp_path / "run")
    assert cli.main(["run", str(config), "--rounds", "2"]) == 0
    after = contents(tmp_path / "run")
    assert before.items() <= after.items()
    assert (tmp_path / "run" / "round-02" / "student").exists()
    assert "after round 2" in capsys.readouterr().out
    assert "learning_rate: " in failing(
        capsys, "run", config, "--rounds", "2", "--learning_rate", "0.5"
    )
    assert "got 5" in failing(capsys, "run", config, "--rounds", "2", "--seed", "5")


@pytest.mark.usefixtures("no_report")
def test_prompts_without_answers_and_without_heldout(world, tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text(
        '{"prompt": "1+1=?"}\n{"prompt": "2+2=?"}\n{"prompt": "3+3=?"}\n'
    )
    config = changed_config(
        world, tmp_path, prompts="./mine.jsonl", heldout=None, num_generations=2
    )
    assert cli.main(["run", str(config)]) == 0
    summary = json.loads((tmp_path / "run" / "evaluation" / "student-01.json").read_text())
    assert summary["greedy_accuracy"] is None
    assert summary["num_prompts"] == 1
    teacher = json.loads((tmp_path / "run" / "evaluation" / "teacher.json").read_text())
    assert teacher["greedy_accuracy"] is None
    assert teacher["teacher_reward"] < 0
    assert (
        cli.main(
            ["run", str(config), "--output_dir", str(tmp_path / "blind"), "--heldout_size", "0"]
        )
        == 0
    )
    assert (tmp_path / "blind" / "round-01" / "student").exists()
    assert not (tmp_path / "blind" / "evaluation").exists()


def test_rounds_pass_over_all_prompts_before_any_returns(finished):
    words = [str(finished / "config.yaml"), "--prompts_per_round", "3"]
    run = RunContext(parse_settings("run", words))
    drawn = [row["prompt_id"] for round in range(1, 9) for row in run.round_rows(round)]
    assert len(set(drawn[:8])) == len(set(drawn[8:16])) == 8
    assert drawn[:8] != drawn[8:16]


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_the_prompts_of_a_round_are_cut_from_shuffles_of_all(finished, count):
    words = [str(finished / "config.yaml"), "--prompts_per_round", str(count)]
    run = RunContext(parse_settings("run", words))
    every = len(run.train_rows)
    order: list[int] = []
    for epoch in range(12):
        shuffled = list(range(every))
        random.Random(derive_seed(run.config.seed, "prompts", epoch)).shuffle(shuffled)
        order += shuffled
    for round in range(1, 6):
        assert run.round_places(round).tolist() == order[(round - 1) * count : round * count]
    seen = list(dict.fromkeys(order[: 3 * count]))
    assert run.places_until(3).tolist() == seen
    new = [place for place in seen if place not in order[: 2 * count]]
    assert list(unanswered(run, 3)) == [run.train_rows[place] for place in new]
