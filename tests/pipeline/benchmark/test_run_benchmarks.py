"""``benchmarks:`` in a run's YAML: every model is asked, a judge compares, the report shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import benchmark_files
import pytest
import worlds
from commands import failing

from pad_fast import cli
from pad_fast.evaluation.benchmarks.run_table import read_run_table
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.benchmark import run_benchmark
from pad_fast.pipeline.benchmark.judge import ModelJudge
from pad_fast.pipeline.evaluate import heldout
from pad_fast.pipeline.evaluate.benchmarks import RunBenchmarks
from pad_fast.pipeline.run import RunContext

NAMES = ("gsm8k", "mt_bench")
MODELS = ("teacher", "student-00", "student-01")


def config_with_benchmarks(folder: Path, **changes: object) -> Path:
    """The config of a run of one round with two benchmarks."""
    for seed, role in enumerate(("student", "teacher")):
        worlds.save_model(folder / role, seed, window=1024)
    worlds.write_prompts(folder / "train.jsonl", 8)
    worlds.write_prompts(folder / "heldout.jsonl", 4, start=20)
    for name in NAMES:
        benchmark_files.write_questions(folder, name)
    values = {
        "benchmarks": list(NAMES),
        "benchmark_questions": {name: f"./{name}_questions.jsonl" for name in NAMES},
        "benchmark_harness": "own",
        "benchmark_shots": 0,
        "benchmark_max_new_tokens": 5,
        **changes,
    }
    return worlds.write_config(folder, models=False, **values)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert cli.main(["run", str(config_with_benchmarks(folder))]) == 0
    return folder / "run"


def results(run: Path) -> dict[str, dict]:
    return {
        str(path.relative_to(run / "benchmarks").parent): json.loads(path.read_text())
        for path in (run / "benchmarks").glob("**/result.json")
    }


def test_every_model_is_asked(run):
    found = results(run)
    asked = {f"{model}/{name}" for model in MODELS for name in NAMES}
    judged = {f"{model}/mt_bench/judged" for model in ("teacher", "student-01")}
    assert found.keys() == asked | judged
    for model in MODELS:
        assert found[f"{model}/gsm8k"]["model"] == model
        assert found[f"{model}/gsm8k"]["scores"]["flexible-extract"]["count"] == 4
    verdict = found["student-01/mt_bench/judged"]
    assert (verdict["model"], verdict["baseline"]) == ("student-01", "student-00")
    assert verdict["judge"].endswith("(the teacher)")
    assert verdict["comparisons"][0]["games"] + verdict["unjudged"] == 6


def test_the_report_and_the_table_show_them(run, capsys):
    table = read_run_table(run)
    assert table is not None
    assert table.columns == [
        "GSM8K strict-match",
        "GSM8K flexible-extract",
        "MT-Bench answers",
        "MT-Bench win rate",
        "MT-Bench LC win rate",
    ]
    assert [name for name, _ in table.rows] == ["teacher", "student-00", "student-01"]
    base = dict(table.rows)["student-00"]
    assert base[3:] == ["–", "–"]  # nobody is compared with itself
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Benchmarks</h2>" in page
    for text in (*base[:2], *dict(table.rows)["student-01"]):
        assert f"<td>{text}</td>" in page
    assert "not comparable with published numbers" in page
    assert cli.main(["run", str(run)]) == 0
    assert "GSM8K" in capsys.readouterr().out


def test_nothing_is_asked_twice(run, monkeypatch):
    monkeypatch.setattr(run_benchmark, "_by_engine", lambda *a: 1 / 0)
    monkeypatch.setattr(ModelJudge, "ask", lambda *a: 1 / 0)
    assert cli.main(["run", str(run)]) == 0


def test_a_lost_result_is_made_again(run):
    path = run / "benchmarks" / "student-01" / "mt_bench" / "judged" / "result.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert cli.main(["evaluate", str(run)]) == 0
    after = json.loads(path.read_text())
    assert after["comparisons"] == before["comparisons"]


def test_a_judge_by_its_name_is_loaded_as_the_run_loads_models(run, tmp_path, monkeypatch):
    shutil.copytree(run.parent, tmp_path, dirs_exist_ok=True)
    words = ["--benchmark_judge", "./teacher", "--dtype", "bfloat16", "--benchmark_limit", "2"]
    words += ["--attn_implementation", "eager", "--chat_template_kwargs", '{"style": "brief"}']
    context = RunContext(parse_settings("run", [str(tmp_path / "config.yaml"), *words]))
    benchmarks = RunBenchmarks(context)
    assert {name: len(asked) for name, (_, asked) in benchmarks.asked.items()} == {
        "gsm8k": 2,
        "mt_bench": 2,
    }
    opened = []
    monkeypatch.setattr(context, "engine", lambda judge: opened.append(judge) or 1 / 0)
    (context.folder.root / "benchmarks/student-01/mt_bench/judged/result.json").unlink()
    with pytest.raises(ZeroDivisionError):
        benchmarks.do([heldout.Subject("student-01", 1, context.student(1))])
    [judge] = opened
    assert (judge.role, Path(judge.path).name) == ("benchmark_judge", "teacher")
    assert (judge.dtype, judge.attn_implementation) == ("bfloat16", "eager")
    assert judge.template_kwargs == {"style": "brief"}
    assert judge.now == context.started


@pytest.mark.usefixtures("no_report")
def test_a_benchmark_is_added_to_a_finished_run(tmp_path, capsys):
    config = config_with_benchmarks(tmp_path, benchmarks=None, benchmark_questions=None)
    assert cli.main(["run", str(config)]) == 0
    assert not (tmp_path / "run" / "benchmarks").exists()
    questions = json.dumps({"mt_bench": str(tmp_path / "mt_bench_questions.jsonl")})
    more = ["--benchmarks", "mt_bench", "--benchmark_questions", questions]
    more += ["--benchmark_judge", "none"]
    assert cli.main(["run", str(config), *more]) == 0
    assert len(results(tmp_path / "run")) == 3
    # Other limits would mix with the answers that are there.
    lost = tmp_path / "run" / "benchmarks" / "student-01" / "mt_bench" / "result.json"
    lost.unlink()
    error = failing(capsys, "run", config, *more, "--benchmark_max_new_tokens", "4")
    assert "max_new_tokens: " in error
    assert "made with 5, got 4" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmarks": ["mtbench"]}, "benchmarks: must be among gsm8k"),
        ({"benchmarks": ["gsm8k", "gsm8k"]}, "benchmarks: must name each once"),
        ({"benchmark_questions": {"mmlu": "x"}}, "benchmark_questions: must be among"),
        ({"benchmark_questions": {"mt_bench": "./none.jsonl"}, "benchmarks": ["mt_bench"]}, "none"),
        ({"benchmark_shots": None}, "benchmark_shots_file: needed for the 5 solved problems"),
        (
            {"teacher": None, "reward_model": "./teacher"},
            "benchmark_judge: the teacher is to judge",
        ),
        ({"benchmark_limit": 0}, "benchmark_limit: must be a whole number"),
    ],
)
def test_wrong_settings_fail_before_anything_is_sampled(tmp_path, capsys, changes, message):
    config = config_with_benchmarks(tmp_path, **changes)
    assert message in failing(capsys, "run", config)
    assert not list((tmp_path / "run").glob("round-*"))
