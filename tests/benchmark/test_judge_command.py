"""``pad-fast benchmark judge``: two answer files, a model or a server that judges them."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark_files
import pytest
import worlds
from chat_server import letters, serving
from commands import failing

from pad_fast import cli
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS


def answer_files(folder: Path, name: str, form: str | None = None) -> tuple[Path, Path, Path]:
    """The questions, and two answer files of which the first has longer answers."""
    questions = benchmark_files.write_questions(folder, name)
    asked = BENCHMARKS[name].questions(questions)
    mine, other = (
        benchmark_files.write_answers(
            folder / which,
            BENCHMARKS[name].form(form),
            benchmark_files.answers_to(asked, text),
        )
        for which, text in (("mine", "A long answer to {turn}"), ("other", "{turn}"))
    )
    return questions, mine, other


def by_length(body):
    """A judge that prefers the longer option."""
    text = body["messages"][0]["content"]
    options = text.split("\nA. ")[1].split("\n\nWhich")[0].split("\nB. ")
    return 200, letters(0.9 if len(options[0]) > len(options[1]) else 0.2)


@pytest.mark.parametrize(
    ("name", "form"),
    [("alpaca_eval", None), ("arena_hard", "v2"), ("arena_hard", "legacy"), ("mt_bench", None)],
)
def test_a_server_judges(tmp_path, capsys, name, form):
    questions, mine, other = answer_files(tmp_path, name, form)
    with serving(by_length) as url:
        given = ["benchmark", "judge", mine, other, "--judge", "big", "--judge_server", url]
        given += ["--questions", questions, "--output_dir", tmp_path / "out"]
        assert cli.main([str(word) for word in given]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "judged by big at http://127.0.0.1" in printed
    assert "not comparable with published numbers" in printed
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    everything = result["comparisons"][0]
    turns = 6 if name == "mt_bench" else 3
    assert (everything["wins"], everything["games"], everything["questions"]) == (turns, turns, 3)
    assert everything["preference"]["value"] == pytest.approx((0.9 + 0.8) / 2)
    categories = {row["category"] for row in result["comparisons"]}
    assert len(categories) > 2  # all, and each of the questions'
    assert result["note"].startswith("not comparable")


def test_a_local_model_judges(tmp_path, capsys):
    _, mine, other = answer_files(tmp_path, "arena_hard")
    judge = worlds.save_model(tmp_path / "judge", 3, window=2048)
    given = ["benchmark", "judge", mine, other, "--judge", judge, "--output_dir", tmp_path / "out"]
    given += ["--disable_tqdm", "true"]
    assert cli.main([str(word) for word in given]) == 0
    assert f"judgedby{judge}" in "".join(capsys.readouterr().out.split())  # lines may be broken
    row = json.loads((tmp_path / "out" / "result.json").read_text())["comparisons"]
    assert [r["category"] for r in row] == ["all"]  # without the questions, no categories
    # Another judge in the same folder is refused.
    second = worlds.save_model(tmp_path / "second", 4, window=2048)
    given[given.index("--judge") + 1] = second
    assert "judge: " in failing(capsys, *given)


def test_a_server_that_goes_away_keeps_what_was_judged(tmp_path, capsys):
    _, mine, other = answer_files(tmp_path, "alpaca_eval")
    calls = []

    def dying(body):
        calls.append(body)
        return by_length(body) if len(calls) <= 4 else (503, {"error": "gone"})

    given = ["benchmark", "judge", mine, other, "--judge", "big", "--output_dir", tmp_path / "out"]
    given += ["--shard_size", 1, "--server_patience", 0.5, "--disable_tqdm", "true"]
    given = [str(word) for word in given]
    with serving(dying) as url:
        port = int(url.rpartition(":")[2])
        assert cli.main([*given, "--judge_server", url]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "503" in error
    assert len(list((tmp_path / "out" / "shards").glob("*.parquet"))) == 2
    assert cli.main([*given, "--judge_server", url]) != 0
    assert "does not answer" in capsys.readouterr().err
    calls.clear()
    with serving(dying, port) as url:
        assert cli.main([*given, "--judge_server", url]) == 0
    assert len(calls) == 2  # the one match that was left, in both orders


def test_what_cannot_be_judged(tmp_path, capsys):
    _, mine, other = answer_files(tmp_path, "mt_bench")
    given = ["benchmark", "judge", mine, other, "--judge", "big", "--judge_server", "http://none"]
    given += ["--output_dir", tmp_path / "out"]
    assert "questions: needed" in failing(capsys, *given)
    _, arena, _ = answer_files(tmp_path / "arena", "arena_hard")
    given[3] = arena
    assert "answers Arena-Hard, and" in failing(capsys, *given)
    rows = other.read_text().splitlines()
    other.write_text("\n".join(rows[:2]) + "\n")
    given[3] = other
    assert "answer different questions: 1 are in one of them only" in failing(capsys, *given)
    other.write_text(rows[0] + "\n" + rows[0] + "\n")
    assert "is answered at" in failing(capsys, *given)
    assert "tie_margin: must be" in failing(capsys, *given, "--tie_margin", 0.5)
