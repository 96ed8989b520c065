"""A run warns once, on its first shard, in the words of the doctor."""

from __future__ import annotations

import json
import logging

import pytest
from findings import check_verdict
from worlds import changed_config, write_prompts

from pad_fast import cli
from pad_fast.doctor.command import examine
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.findings.heldout import heldout


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "first shard" in record.msg]


@pytest.fixture
def sick(world, tmp_path):
    """Every response is cut, half of them are equal, and one prompt is held out."""
    write_prompts(tmp_path / "one.jsonl", 1, start=50)
    return changed_config(
        world,
        tmp_path,
        max_new_tokens=1,
        temperature=0.05,
        heldout=str(tmp_path / "one.jsonl"),
        shard_size=8,
    )


def test_what_the_doctor_knows_is_said_once(sick, caplog, no_report, capsys):
    caplog.set_level(logging.WARNING)
    assert cli.main(["sample", str(sick)]) == 0
    (said,) = warnings(caplog)
    assert said.startswith("round 1/1 · sample: ")
    for words in (
        "clipped (problem): 100% of the responses were cut at 1 tokens → raise max_new_tokens",
        "repeated (",
        "end of response (problem): none of 24 responses ended by itself → ",
        "held-out (problem): 1 held-out prompt: ",
    ):
        assert f"\n  {words}" in said
    caplog.clear()
    assert cli.main(["run", str(sick)]) == 0
    (said,) = warnings(caplog)  # about the scores; that about the samples is not repeated
    assert said.startswith("round 1/1 · score: ")
    assert "\n  letters (problem): the offered letters hold " in said
    assert "reword mcq_template" in said
    caplog.clear()
    assert cli.main(["run", str(sick)]) == 0
    assert not warnings(caplog)


def test_the_words_are_the_doctors(sick, caplog, capsys):
    """On the same prompts: those that both look at, for the checks that depend on no seed."""
    caplog.set_level(logging.WARNING)
    assert cli.main(["sample", str(sick)]) == 0
    (said,) = warnings(caplog)
    found = {one.check: one for one in examine(parse_settings("doctor", [str(sick)]), 8)}
    for check in ("clipped", "end of response", "held-out"):
        one = found[check]
        assert f"\n  {check} ({one.verdict}): {one.found} → {one.advice}" in f"{said}\n"


def test_later_shards_and_rounds_are_silent(world, tmp_path, caplog, no_report, capsys):
    caplog.set_level(logging.WARNING)
    config = changed_config(world, tmp_path, max_new_tokens=1, shard_size=2, rounds=2)
    assert cli.main(["run", str(config)]) == 0
    assert [text.split(":")[0] for text in warnings(caplog)] == [
        "round 1/2 · sample",
        "round 1/2 · score",
    ]


def test_numbers_of_heldout_prompts():
    for count, verdict in ((0, "ok"), (1, "problem"), (2, "look"), (29, "look"), (30, "ok")):
        check_verdict(heldout(count), verdict, *(["heldout_size"] if verdict != "ok" else []))
    assert "up to 9%" in heldout(30).found


@pytest.fixture
def given(world, tmp_path):
    """Responses whose scores follow their length, and that the student ranks alike."""
    rows = [
        {"prompt": f"{n}+1=?", "completions": ["a", "ab" * 8], "ratings": [2.0, 1.0]}
        for n in range(12)
    ]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return changed_config(
        world,
        tmp_path,
        prompts=None,
        heldout=None,
        teacher=None,
        responses=str(path),
        heldout_size=4,
        teacher_beta=500.0,
        divergence="jsd",
    )


def test_scores_of_elsewhere_are_no_teachers_and_ask_nothing(given, caplog, capsys):
    """No advice about questions where none are asked, and none about a teacher."""
    caplog.set_level(logging.WARNING)
    assert cli.main(["run", str(given)]) == 0
    (said,) = [text for text in warnings(caplog) if " · score: " in text]
    assert "length (problem): tau of reward and length is -1.00" in said
    assert "the rater mostly ranks shorter responses first: leave cut ones out" in said
    assert "mcq" not in said
    assert "teacher " not in said
    assert "fixed groups (given responses)" in " ".join(capsys.readouterr().out.split())
    page = (given.parent / "run" / "report" / "index.html").read_text()
    assert "on the fixed groups (given responses) and" in page
    assert "The fixed groups are given responses, the same for every model" in page


def test_given_groups_that_a_teacher_scores_are_not_called_samples(given, world, capsys, no_report):
    """The words for the groups do not depend on who scores them."""
    teacher = ["--teacher", str(world / "teacher"), "--responses_scores", "ignore"]
    assert cli.main(["run", str(given), *teacher, "--mcq_style", "none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "with the teacher's, on fixed groups (given responses) and on fresh samples" in said
