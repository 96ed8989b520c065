"""A training with other settings on the responses and scores of a run that has trained."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from commands import failing
from worlds import changed_config

from pad_fast import cli
from pad_fast.files.own_files import read_json
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.parquet_rows import read_rows

SAME = ("prompt", "answer", "completions", "teacher_rewards", "finish_reasons")
FASTER = ("--learning_rate", "0.02")


def by_id(folder: Path) -> dict[str, dict]:
    return {row["prompt_id"]: row for row in read_rows(folder)}


@pytest.mark.usefixtures("no_report")
def test_by_the_flags_that_the_message_names(finished, tmp_path, capsys, caplog):
    """Nothing but the training differs, and no column of the run's own is warned of."""
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(finished / "run", before)
    said = failing(capsys, "run", before, *FASTER)
    assert "learning_rate: " in said
    named = re.search(r"another output_dir, where (--.*) takes over round 1's", said)
    words = [*FASTER, "--rounds", "1", "--baseline", "none", *shlex.split(named[1])]
    assert cli.main(["run", str(before), *words, "--output_dir", str(after)]) == 0
    assert "not read into" not in caplog.text
    assert "position bias" not in caplog.text
    for place in ("round-01/scores", "heldout/groups"):
        rows, found = by_id(before / place), by_id(after / place)
        assert found.keys() == rows.keys()
        for name, row in found.items():
            assert {key: row[key] for key in SAME} == {key: rows[name][key] for key in SAME}
            assert row["sampled_by"] == "given"
    resolved = read_json(after / "run.json")["resolved"]
    assert (resolved["learning_rate"], resolved["prompts"]) == (0.02, None)


def test_with_the_teachers_own_answers_among_them(world, tmp_path, capsys):
    """The message names no flags, since the answers are no longer told from the others."""
    config = changed_config(world, tmp_path, teacher_response="greedy", heldout_size=0)
    for phase in ("sample", "score", "train"):
        assert cli.main([phase, str(config)]) == 0
    said = failing(capsys, "run", config, *FASTER)
    assert said.strip().endswith("go on with the former or give another output_dir")
    words = ["--teacher_response", "none", "--num_generations", "4", "--heldout_size", "0"]
    words += ["--responses", str(tmp_path / "run" / "round-01" / "scores"), *FASTER]
    after = tmp_path / "after"
    for phase in ("sample", "score"):
        assert cli.main([phase, str(config), *words, "--output_dir", str(after)]) == 0
    rows, found = by_id(tmp_path / "run/round-01/scores"), by_id(after / "round-01/scores")
    assert found.keys() == rows.keys()
    for name, row in found.items():
        assert {key: row[key] for key in SAME} == {key: rows[name][key] for key in SAME}


def given(folder: Path) -> Path:
    rows = [{"prompt": f"{n}+1=?", "chosen": str(n + 1), "rejected": str(n)} for n in range(4)]
    path = folder / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_where_responses_are_given_another_folder_is_enough(world, tmp_path, capsys):
    places = {"prompts": None, "heldout": None, "heldout_size": 0, "teacher": None}
    config = changed_config(world, tmp_path, **places, responses=str(given(tmp_path)))
    for phase in ("sample", "score", "train"):
        assert cli.main([phase, str(config)]) == 0
    said = failing(capsys, "run", config, *FASTER)
    assert said.strip().endswith("go on with the former or give another output_dir")


def test_a_flag_for_responses_takes_the_place_of_the_key_for_prompts(world, tmp_path):
    config = str(changed_config(world, tmp_path))
    run = parse_settings("run", [config, "--responses", "r.jsonl"]).run
    assert (run.prompts, run.responses) == (None, "r.jsonl")
    (tmp_path / "given").mkdir()
    config = str(changed_config(world, tmp_path / "given", prompts=None, responses="r.jsonl"))
    run = parse_settings("run", [config, "--prompts", "p.jsonl"]).run
    assert (run.prompts, run.responses) == ("p.jsonl", None)
    with pytest.raises(ValueError, match="prompts: must be left out with responses"):
        parse_settings("run", [config, "--prompts", "p.jsonl", "--responses", "r.jsonl"])
