"""Runs on responses that were sampled elsewhere, with scores and without, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import worlds
from commands import failing
from worlds import response_logp

from pad_fast import cli
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.given_responses import iter_responses
from pad_fast.pipeline.parquet_rows import read_rows
from pad_fast.training.dataset_rows import RowReader


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ultrafeedback(count: int, start: int = 0) -> list[dict]:
    """Sums with two to four answers each, rated as in UltraFeedback; some have no rating."""
    return [
        {
            "instruction": f"{n}+1=?",
            "completions": [
                {
                    "response": f"{n + 1 + i}" + " " * (i == 3),
                    "annotations": {"helpfulness": {"Rating": str(5 - i) if i < 3 else "N/A"}},
                }
                for i in range(2 + n % 3)
            ],
        }
        for n in range(start, start + count)
    ]


def pairs(count: int, start: int = 0) -> list[dict]:
    def side(n: int, answer: int) -> list[dict]:
        turns = {"user": f"{n}+1=?", "assistant": str(answer)}
        return [{"role": role, "content": text} for role, text in turns.items()]

    numbers = range(start, start + count)
    return [{"chosen": side(n, n + 1), "rejected": side(n, n)} for n in numbers]


def given_config(world: Path, folder: Path, rows: list[dict], **changes: object) -> Path:
    source = write(folder / "given.jsonl", rows)
    values = {
        "prompts": None,
        "heldout": None,
        "teacher": None,
        "responses": str(source),
        "num_generations": 4,
        "teacher_beta": 1.0,
        **changes,
    }
    return worlds.changed_config(world, folder, **values)


def found_rows(run: Path) -> list[dict]:
    """What the first round trains on."""
    rows = read_rows(run / "round-01" / "scores")
    return sorted(rows, key=lambda row: row["prompt"][0]["content"])


@pytest.mark.slow
def test_ultrafeedback_trains_without_a_teacher(world, tmp_path):
    config = given_config(world, tmp_path, ultrafeedback(12), heldout_size=4)
    assert cli.main(["run", str(config)]) == 0
    run, student = tmp_path / "run", Checkpoint("student", str(world / "student"))
    rows = found_rows(run)
    assert {len(row["completions"]) for row in rows} == {2, 3, 4}
    reader = RowReader(student.tokenizer)
    for row in rows:
        assert row["teacher_rewards"] == [5.0, 4.0, 3.0, None][: len(row["completions"])]
        assert row["finish_reasons"] == ["stop"] * len(row["completions"])
        named = ("prompt", "completions", "teacher_rewards")
        as_trained = reader({name: row[name] for name in named}, 0)
        assert as_trained["completion_ids"] == row["completion_ids"]
        assert as_trained["prompt_ids"] == row["prompt_ids"]
    assert (run / "round-01" / "student" / "model.safetensors").exists()
    assert not list(run.glob("**/scored"))
    assert not (run / "teacher_cache").exists()
    evaluated = json.loads((run / "evaluation" / "student-01.json").read_text())
    assert evaluated["num_prompts"] == 4
    assert evaluated["kendall_tau"] is not None
    assert evaluated["fresh_kendall_tau"] is None
    base = json.loads((run / "evaluation" / "student-00.json").read_text())
    assert (base["kendall_tau"] is None, base["fresh_kendall_tau"]) == (False, None)
    samples = run / "evaluation" / "samples" / "student-00" / "fresh"
    assert {len(row["completions"]) for row in read_rows(samples)} == {4}
    page = (run / "report" / "index.html").read_text()
    assert "student against rater" in page
    assert (
        "are those of given.jsonl, with the scores that came with them"
        in (run / "round-01" / "student" / "README.md").read_text()
    )


@pytest.mark.slow
def test_pairs_train_without_a_teacher(world, tmp_path):
    heldout = write(tmp_path / "heldout.jsonl", pairs(3, start=50))
    config = given_config(world, tmp_path, pairs(6), heldout=str(heldout))
    assert cli.main(["run", str(config)]) == 0
    rows = found_rows(tmp_path / "run")
    assert [row["teacher_rewards"] for row in rows] == [[1.0, 0.0]] * 6
    assert [row["completions"] for row in rows] == [[str(n + 1), str(n)] for n in range(6)]
    groups = read_rows(tmp_path / "run" / "heldout" / "groups")
    assert [row["teacher_rewards"] for row in groups] == [[1.0, 0.0]] * 3
    assert all(len(row["student_rewards"]) == 2 for row in groups)


@pytest.mark.slow
def test_a_teacher_scores_what_has_no_scores_and_later_rounds_sample(world, tmp_path):
    config = given_config(
        world,
        tmp_path,
        pairs(6),
        teacher=str(world / "teacher"),
        heldout=str(world / "heldout.jsonl"),
        rounds=2,
        mcq_style="none",
    )
    assert cli.main(["run", str(config)]) == 0
    run, teacher = tmp_path / "run", Checkpoint("teacher", str(world / "teacher"))
    for row in found_rows(run):
        for ids, reward in zip(row["completion_ids"], row["teacher_rewards"], strict=True):
            logp = response_logp(teacher.model, row["prompt_ids"], ids)
            assert reward == pytest.approx(logp / len(ids), abs=1e-4)
    second = read_rows(run / "round-02" / "scores")
    assert {len(row["completions"]) for row in second} == {4}
    assert {row["sampled_by"] == "given" for row in second} == {False}
    assert {row["sampled_by"] for row in found_rows(run)} == {"given"}
    assert (run / "evaluation" / "teacher.json").exists()


def test_scores_stay_where_a_teacher_is_given_too(world, tmp_path, monkeypatch):
    monkeypatch.setattr("pad_fast.pipeline.score.model_scores.next_token_logprobs", None)
    changes = {"teacher": str(world / "teacher"), "heldout_size": 2}
    config = given_config(world, tmp_path, ultrafeedback(6), **changes)
    for command in ("sample", "score"):
        assert cli.main([command, str(config)]) == 0
    assert found_rows(tmp_path / "run")[0]["teacher_rewards"][:2] == [5.0, 4.0]
    (tmp_path / "other").mkdir()
    config = given_config(
        world,
        tmp_path / "other",
        ultrafeedback(6),
        **changes,
        responses_scores="ignore",
        mcq_style="none",
    )
    for command in ("sample", "score"):
        assert cli.main([command, str(config)]) == 0
    assert found_rows(tmp_path / "other" / "run")[0]["teacher_rewards"][0] < 0


def config_for(world: Path, **changes: object):
    values = {"prompts": None, "responses": "given", "num_generations": 4, "teacher": None}
    return worlds.run_config(world, **{**values, **changes})


def test_repeats_ties_and_missing_scores(world, tmp_path, caplog):
    rows = [
        {"prompt": "a", "completions": ["4", "5", "4"], "scores": [1.0, 2.0, 3.0]},
        {"prompt": "b", "completions": ["4", "5"], "scores": [2.0, 2.0]},
        {"prompt": "c", "completions": ["4", "5", "6"], "scores": [2.0, None, 1.0]},
        {"prompt": "d", "completions": ["4", "5"], "scores": [2.0, None]},
        {"prompt": "e", "completions": ["4", "4"], "scores": [2.0, 1.0]},
        {"prompt": "a", "completions": ["7", "8"], "scores": [0.0, 1.0]},
        {"prompt": "b", "completions": ["4", "5"], "scores": [2.0, 2.0]},
    ]
    source = write(tmp_path / "given.jsonl", rows)
    found = list(iter_responses(config_for(world, responses=str(source))))
    assert [(row["completions"], row["given_scores"]) for row in found] == [
        (["4", "5"], [2.0, 2.0]),
        (["4", "5"], [2.0, 2.0]),
        (["4", "5", "6"], [2.0, None, 1.0]),
        (["7", "8"], [0.0, 1.0]),
    ]
    assert len({row["prompt_id"] for row in found}) == 4
    assert found[3]["prompt_id"] == found[0]["prompt_id"] + "-2"
    for words in (
        "2 responses repeat another one of their row and count once, with the mean of the scores; "
        f"the first is {source}: line 1",
        f"2 responses have no score and are masked; the first is {source}: line 3",
        "2 rows with fewer than two different responses with a score are left out; the first is "
        f"{source}: line 4",
        f"1 rows repeat an earlier row and are left out; the first is {source}: line 7",
    ):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "completions": ["4", 5]}], "line 1: completions[1]: must be a text"),
        ([{"completions": ["4", "5"]}], "line 1: no column prompt, instruction, question or turns"),
        (["p"], "line 1: must be an object, got str"),
        (
            [
                {"prompt": "p", "completions": ["4", "5"], "scores": [1, 2]},
                {"prompt": "q", "completions": ["4", "5"]},
            ],
            "line 2: has no scores, and earlier rows have some; give all rows scores, or none",
        ),
        ([{"prompt": "p", "completions": ["4", "5"]}], "line 1: has no scores, and neither a teac"),
        (
            [{"prompt": "p", "completions": list("12345"), "scores": [1, 2, 3, 4, 5]}],
            "line 1: has 5 responses, more than num_generations; set num_generations to the most",
        ),
        (
            [{"prompt": "p", "completions": ["4"], "scores": [1]}],
            "holds no row with two different responses to compare",
        ),
        (
            [
                {"prompt": p, "prompt_id": "x", "completions": ["4", "5"], "scores": [1, 2]}
                for p in "ab"
            ],
            "line 2: prompt_id 'x' is taken by another prompt",
        ),
    ],
)
def test_rows_that_are_wrong_are_named_before_anything_is_read(
    world, tmp_path, capsys, rows, message
):
    assert message in failing(capsys, "run", given_config(world, tmp_path, rows))
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "./p.jsonl"}, "prompts: must be left out with responses"),
        ({"responses": None}, "prompts: needed, and neither they nor responses are given"),
        ({"rounds": 2}, "rounds: must be 1 without a teacher and without a reward_model"),
        ({"responses_scores": "ignore"}, "responses_scores: ignore needs a teacher"),
        ({"baseline": "seqkd"}, "baseline: seqkd needs a teacher"),
        (
            {"teacher": "./teacher", "teacher_response": "greedy"},
            "teacher_response: must be none with responses",
        ),
        ({"responses": "./gone.jsonl"}, "responses: no such file or folder"),
    ],
)
def test_settings_that_do_not_go_together(world, tmp_path, capsys, changes, message):
    assert message in failing(capsys, "run", given_config(world, tmp_path, pairs(4), **changes))


def test_heldout_prompts_need_somebody_who_scores(world, tmp_path, capsys):
    config = given_config(world, tmp_path, pairs(4), heldout=str(world / "heldout.jsonl"))
    assert "heldout: " in (message := failing(capsys, "run", config))
    assert "holds no responses, and neither a teacher nor a reward_model is given" in message


def test_responses_that_changed_are_refused(world, tmp_path, capsys):
    config = given_config(world, tmp_path, pairs(4), heldout_size=0)
    assert cli.main(["sample", str(config)]) == 0
    write(tmp_path / "given.jsonl", pairs(5))
    assert "given.jsonl is not the file that" in failing(capsys, "run", config)


def test_prompts_of_several_rows_are_never_on_both_sides(world, tmp_path):
    rows = [
        {**row, "rejected": [row["rejected"][0], {"role": "assistant", "content": text}]}
        for row in pairs(6)
        for text in ("x", "y", "z")
    ]
    config = given_config(world, tmp_path, rows, heldout_size=4)
    assert cli.main(["sample", str(config)]) == 0
    sides = [
        {row["prompt"][0]["content"] for row in read_rows(tmp_path / "run" / name)}
        for name in ("prompts.parquet", "heldout/prompts.parquet")
    ]
    assert sides[0] & sides[1] == set()


def test_doctor_looks_at_given_responses(world, tmp_path, capsys):
    config = given_config(world, tmp_path, ultrafeedback(8))
    cli.main(["doctor", str(config), "--num_prompts", "6"])
    assert "reward spread" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_report")
def test_every_bar_reaches_its_end(world, tmp_path, bars):
    """Prompts have two to four responses, of which four are the most."""
    rows = [{"prompt": f"{n}+1=?", "completions": [*"3456"[: 2 + n % 3]]} for n in range(8)]
    config = given_config(world, tmp_path, rows, heldout_size=3, teacher=str(world / "teacher"))
    assert cli.main(["run", str(config)]) == 0
    ends = {bar.title: (bar.done, bar.total) for bar in bars if bar.total is not None}
    assert 2 * 5 < ends["round 1/1 · teacher: score"][1] < 4 * 5
    assert "evaluate student-01: fixed groups" in ends
    assert [title for title, (done, total) in ends.items() if done != total] == []
