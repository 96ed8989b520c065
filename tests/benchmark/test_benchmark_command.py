"""``pad-fast benchmark``: the four benchmarks with a small model, killed, resumed, checked."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark_files
import pytest
import worlds
from commands import failing

from pad_fast import cli
from pad_fast.evaluation.benchmarks.answer_check import check_answers
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS
from pad_fast.pipeline.benchmark.answering import Answering

FILES = {
    ("gsm8k", "jsonl"): "student.jsonl",
    ("alpaca_eval", "json"): "student.json",
    ("arena_hard", "v2"): "data/arena-hard-v2.0/model_answer/student.jsonl",
    ("arena_hard", "legacy"): "data/arena-hard-v0.1/model_answer/student.jsonl",
    ("mt_bench", "jsonl"): "data/mt_bench/model_answer/student.jsonl",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with two small models."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        worlds.save_model(folder / name, seed)
    return folder


def words(models: Path, folder: Path, name: str, *more: object, model: str = "student") -> list:
    """The words of a benchmark of seconds."""
    given = [
        *("benchmark", name, "--model", models / model, "--output_dir", folder / "out"),
        *("--questions", benchmark_files.write_questions(folder, name)),
        *("--benchmark_max_new_tokens", 6, "--shard_size", 2, "--disable_tqdm", "true"),
        *more,
    ]
    if name == "gsm8k":
        given += ["--benchmark_harness", "own", "--benchmark_shots", 0]
    return [str(word) for word in given]


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of the files that do not hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".yaml", ".sh")
    }


@pytest.mark.parametrize(("name", "form"), FILES)
def test_a_benchmark_of_a_small_model(models, tmp_path, capsys, name, form):
    more = ["--benchmark_form", "legacy"] if form == "legacy" else []
    assert cli.main(words(models, tmp_path, name, *more)) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    answers = out / FILES[name, form]
    questions = BENCHMARKS[name].questions(tmp_path / f"{name}_questions.jsonl")
    found = check_answers(answers, questions, "student")
    assert found.faults == []
    assert found.form is BENCHMARKS[name].form(form)
    assert f"answers  {answers}" in printed
    # What it will cost stands in the first line, before anything else.
    turns = sum(len(question.turns) for question in questions)
    assert f"at most {6 * turns} new tokens (6 a turn)" in printed.splitlines()[0]
    result = json.loads((out / "result.json").read_text())
    assert result["answers"] == FILES[name, form]
    assert 0 < result["new_tokens"] <= 6 * turns
    if BENCHMARKS[name].judged:
        assert (out / "judge.sh").stat().st_mode & 0o111
        assert any((out / "judge").iterdir())
    else:
        assert set(result["scores"]) == {"strict-match", "flexible-extract"}
    assert cli.main(["benchmark", "check", str(answers), "--model", "student"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mt_bench", "gsm8k"])
def test_a_killed_benchmark_goes_on(models, tmp_path, capsys, monkeypatch, name):
    """Finished shards are not done again, and the answers are those of one go."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(words(models, whole, name)) == 0
    own, done = Answering._answer_shard, []

    def dying(self, questions, shard, progress):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(shard)
        return own(self, questions, shard, progress)

    monkeypatch.setattr(Answering, "_answer_shard", dying)
    assert cli.main(words(models, killed, name)) == 130  # as after Ctrl-C
    first = (killed / "out" / "shards" / "part-00000.parquet").stat().st_mtime_ns
    monkeypatch.setattr(Answering, "_answer_shard", lambda *a: (done.append(a[2]), own(*a))[1])
    capsys.readouterr()
    assert cli.main(words(models, killed, name)) == 0
    assert done == [0, 1]
    assert (killed / "out" / "shards" / "part-00000.parquet").stat().st_mtime_ns == first
    file = next(path for (n, _), path in FILES.items() if n == name)
    texts = [
        list(check_answers(folder / "out" / file).turns().values()) for folder in (whole, killed)
    ]
    assert texts[0] == texts[1]
    assert files_of(whole / "out") == files_of(killed / "out")


def test_the_second_turn_follows_the_models_own_first(models, tmp_path, monkeypatch):
    """And every category has its own temperature."""
    seen = []
    from pad_fast.pipeline.sample.transformers_engine import TransformersEngine

    own = TransformersEngine.sample

    def spy(self, prompts, n, how, seed, *rest):
        found = own(self, prompts, n, how, seed, *rest)
        texts = [self.checkpoint.tokenizer.decode(prompt) for prompt in prompts]
        replies = [self.checkpoint.tokenizer.decode(group[0].ids) for group in found]
        seen.append((how.temperature, texts, replies))
        return found

    monkeypatch.setattr(TransformersEngine, "sample", spy)
    assert cli.main(words(models, tmp_path, "mt_bench", "--shard_size", 3)) == 0
    asked = [call for call in seen if call[0] != 0 or "82" in call[1][0]][-4:]
    by_text = {
        text: (t, reply)
        for t, texts, replies in asked
        for text, reply in zip(texts, replies, strict=True)
    }
    assert {t for text, (t, _) in by_text.items() if "82" in text} == {0.0}  # math
    assert {t for text, (t, _) in by_text.items() if "81" in text} == {0.7}  # writing
    assert {t for text, (t, _) in by_text.items() if "83" in text} == {0.7}  # any other
    firsts = {text: reply for text, (_, reply) in by_text.items() if "Shorter" not in text}
    for text in by_text:
        if "Shorter" in text:
            first = next(first for first in firsts if text.startswith(first))
            reply = firsts[first].removesuffix("<end>").strip()
            assert reply in text.removeprefix(first)


def test_changed_settings_are_refused(models, tmp_path, capsys):
    assert cli.main(words(models, tmp_path, "arena_hard")) == 0
    error = failing(capsys, *words(models, tmp_path, "arena_hard", "--benchmark_suffix", " Now."))
    assert "suffix: " in error
    assert 'made with "", got " Now."' in error
    assert "give another output_dir" in error
    error = failing(capsys, *words(models, tmp_path, "arena_hard", model="teacher"))
    assert "checkpoint: " in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--benchmark_max_new_tokens", "0"], "benchmark_max_new_tokens: must be a whole number"),
        (["--benchmark_temperature", "-1"], "benchmark_temperature: must be a number from 0"),
        (["--benchmark_limit", "0"], "benchmark_limit: must be a whole number"),
        (["--benchmark_form", "v3"], "benchmark_form: must be one of"),
        (["--benchmark_shots_file", "none.jsonl"], "benchmark_shots_file: no such file"),
        (["--name", "a/b"], "name: must be usable as a file's name"),
        (["--questions", "none.jsonl"], "none.jsonl: no such file"),
        (["--shard_size", "0"], "shard_size: must be 1 or more"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_flags(models, tmp_path, capsys, more, message):
    assert message in failing(capsys, *words(models, tmp_path, "mt_bench", *more))


def test_bad_words(models, tmp_path, capsys):
    assert "got 'mtbench'; did you mean mt_bench?" in failing(capsys, "benchmark", "mtbench")
    assert "model: needed" in failing(capsys, "benchmark", "gsm8k", "--output_dir", "x")
    assert cli.main(["benchmark"]) == 0
    assert "pad-fast benchmark check FILE" in capsys.readouterr().out


def test_shots_need_a_file(models, tmp_path, capsys):
    given = words(models, tmp_path, "gsm8k")
    del given[given.index("--benchmark_shots") :][:2]
    given = [word for word in given if word not in ("--benchmark_shots", "0")]
    assert "benchmark_shots_file: needed for the 5 solved problems" in failing(capsys, *given)
    shots = benchmark_files.write_questions(tmp_path / "shots", "gsm8k")
    assert "shots: " in failing(capsys, *given, "--benchmark_shots_file", shots)
    assert cli.main([*given, "--benchmark_shots_file", str(shots), "--benchmark_shots", "2"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["shots"] == 2


def test_a_wrong_file_has_its_own_exit_code(models, tmp_path, capsys):
    questions = benchmark_files.write_questions(tmp_path, "mt_bench")
    answers = benchmark_files.answers_to(BENCHMARKS["mt_bench"].questions(questions))[:2]
    path = benchmark_files.write_answers(tmp_path, BENCHMARKS["mt_bench"].form(None), answers)
    given = ["benchmark", "check", str(path), "--questions", str(questions)]
    assert cli.main(given) == cli.PROBLEM
    assert "1 of 3 questions have no answer: 83" in capsys.readouterr().out
    assert cli.main([*given, "--limit", "2"]) == 0
    assert cli.main([*given, "--limit", "2", "--model", "other"]) == cli.PROBLEM


def test_questions_that_cannot_be_fetched(models, tmp_path, capsys, monkeypatch):
    import httpx

    def refuse(url, **_):
        raise httpx.ConnectError("no network", request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", refuse)
    given = words(models, tmp_path, "mt_bench")
    del given[given.index("--questions") : given.index("--questions") + 2]
    error = failing(capsys, *given)
    assert "could not be fetched (no network); give the file of MT-Bench's questions" in error
