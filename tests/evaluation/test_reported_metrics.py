"""The catalogue is the one list of reported metrics: what it measures, and who iterates over it."""

import json
from io import StringIO

import pytest
import torch
import worlds
from rich.console import Console

from benchmarks import demo
from pad_fast import cli
from pad_fast.evaluation import reported_metrics
from pad_fast.evaluation.answers import RULES, Rule
from pad_fast.evaluation.evaluated_model import Evaluated, RewardPair
from pad_fast.evaluation.reported_metrics import METRICS, Metric
from pad_fast.pipeline.evaluate.summary import print_table
from pad_fast.report import pictures


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def toy(monkeypatch) -> Metric:
    """A metric that is added to the table and nowhere else: it counts the greedy responses."""
    metric = Metric("toy", "Toy count", lambda evaluated: 100.5 + len(evaluated.greedy), digits=1)
    monkeypatch.setitem(METRICS, "toy", metric)
    return metric


def row(answer, skill, *texts):
    """A prompt's row with its responses, all of two tokens."""
    ids = [[1, 2] for _ in texts]
    return {"answer": answer, "skill": skill, "completions": list(texts), "completion_ids": ids}


def test_a_metric_of_the_table_alone_is_measured_and_shown_everywhere(toy, tmp_path, capsys):
    config = worlds.write_config(tmp_path, rounds=1, baseline="seqkd")
    assert cli.main(["run", str(config)]) == 0
    names = ("teacher", "student-00", "student-01", "seqkd")
    found = {
        name: json.loads((tmp_path / "run" / "evaluation" / f"{name}.json").read_text())
        for name in names
    }
    assert [row["toy"] for row in found.values()] == [104.5] * 4
    output = StringIO()
    print_table(tmp_path / "run", Console(file=output, width=120))
    assert "Toy count" in output.getvalue()
    assert output.getvalue().count("104.5") == 4
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<th>Toy count</th>" in page
    assert page.count("<td>104.5") == 4
    rows = demo.table([{"evaluations": found}])
    assert [cells[rows[0].index("Toy count")] for cells in rows[2:]] == ["104"] * 4


def test_older_records_lack_a_new_metric(toy, tmp_path, capsys):
    evaluation = {key: 0.5 for key in METRICS if key != "toy"} | {"num_prompts": 3, "round": 0}
    found = {
        name: evaluation | {"name": name}
        for name in ("teacher", "student-00", "student-01", "seqkd")
    }
    assert "Toy count" not in demo.table([{"evaluations": found}])[0]
    (tmp_path / "evaluation").mkdir()
    for name, content in found.items():
        (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps(content))
    print_table(tmp_path)
    assert "Toy count" not in capsys.readouterr().out


def test_accuracies_by_hand():
    greedy = [
        row("4", "sum", "2+2 #### 4"),
        row("5", "sum", "6"),
        row(None, "chat", "hello"),
        row("x", None, "x"),
    ]
    sampled = [
        row("4", "sum", "4", "5"),
        row("5", "sum", "5", "5"),
        row(None, "chat", "a", "b"),
        row("x", None, "y", "x"),
    ]
    found = reported_metrics.measure(Evaluated(greedy, sampled))
    assert found["greedy_accuracy"] == pytest.approx(2 / 3)
    assert found["sampled_accuracy"] == pytest.approx(4 / 6)
    skill = {"greedy_accuracy": 0.5, "sampled_accuracy": 0.75, "count": 2}
    assert found["skills"] == {"sum": skill}
    found = reported_metrics.measure(Evaluated(greedy[2:3], sampled[2:3]))
    assert (found["greedy_accuracy"], found["sampled_accuracy"]) == (None, None)
    assert found["skills"] == {}


def test_each_response_is_graded_once(monkeypatch):
    graded = []

    def is_right(text, answer):
        graded.append(text)
        return text == answer

    monkeypatch.setitem(RULES, "exact", Rule("equal", is_right))
    evaluated = Evaluated([row("4", "sum", "4")], [row("4", "sum", "4", "5")])
    found = reported_metrics.measure(evaluated, reported_metrics.values_by_prompt(evaluated))
    assert found["skills"] == {"sum": {"greedy_accuracy": 1, "sampled_accuracy": 0.5, "count": 1}}
    assert graded == ["4", "4", "5"]


def test_a_students_metrics_by_hand():
    fixed = RewardPair([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]], [[3.0, 1.0, 2.0], [5.0, None, 7.0]])
    fresh = RewardPair([[1.0, 2.0]], [[2.0, 1.0]])
    sampling = {"completions/duplicate_ratio": 0.25, "completions/clipped_ratio": 0.125}
    rows = [row(None, None, "a"), row(None, None, "b")]
    found = reported_metrics.measure(
        Evaluated(rows, rows, sampling, fixed, fresh, [0.5, None, 0.25], fresh.teacher)
    )
    assert found == {
        "greedy_accuracy": None,
        "sampled_accuracy": None,
        "teacher_reward": 1.5,
        "kendall_tau": pytest.approx((1 / 3 + 1) / 2),
        "top1": 1.0,
        "fresh_kendall_tau": -1.0,
        "fresh_top1": 0.0,
        "ppd_loss": 0.375,
        "mean_length": 2.0,
        "duplicate_ratio": 0.25,
        "clipped_ratio": 0.125,
        "skills": {},
    }


def test_each_prompt_counts_once_however_many_of_its_responses_are_scored():
    rows = [row(None, None, "a", "b", "c", "d")] * 2
    found = reported_metrics.measure(
        Evaluated(rows, rows, judged=[[-1.0, None, None, None], [-3.0] * 4])
    )
    assert found["teacher_reward"] == -2.0


def test_what_does_not_apply_to_the_teacher_is_none():
    found = reported_metrics.measure(Evaluated([row("1", "sum", "1")], [row("1", "sum", "2")]))
    known = {"greedy_accuracy": 1.0, "sampled_accuracy": 0.0, "mean_length": 2.0}
    assert {key: found[key] for key in METRICS if found[key] is not None} == known


def test_a_ranking_that_the_teacher_does_not_give_is_none():
    tied = RewardPair([[1.0, 2.0]], [[1.0, 1.0]])
    assert tied.agreement("kendall_tau") is None
    assert tied.taus() == []


def test_values_are_shown_with_their_unit():
    share, length = METRICS["top1"], METRICS["mean_length"]
    assert (share.text(0.1234), length.text(9.66), length.text(None)) == ("12.3%", "9.7", "–")
    assert length.text(float("nan")) == "–"
    assert share.amount(-0.05) == "-5.0"


def test_every_metrics_picture_exists():
    names = {
        value.name for value in vars(pictures).values() if isinstance(value, pictures.RoundPicture)
    }
    assert {metric.picture for metric in METRICS.values() if metric.picture} == names
