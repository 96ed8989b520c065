"""The demo's benchmark: its records become a table and a picture."""

import json

import yaml

from benchmarks import demo, tables
from benchmarks.demo import OWN
from benchmarks.evidence.cells import Cell, key_of, tuning
from benchmarks.evidence.settings import FULL
from benchmarks.machine import ROOT
from benchmarks.records import RESULTS, load
from pad_fast.evaluation.reported_metrics import METRICS


def test_the_demo_is_tabled_and_drawn(tmp_path, capsys):
    def evaluation(value):
        return dict.fromkeys(METRICS, value)

    evaluations = {
        name: evaluation(value)
        for name, value in (
            ("teacher", 0.9),
            ("student-00", 0.25),
            ("student-02", 0.5),
            ("seqkd", 0.75),
        )
    }
    said = {
        "device": "An Example CPU",
        "threads": 2,
        "commit": "abc",
        "student": "student",
        "seconds": 60,
        "evaluations": evaluations,
    }
    (tmp_path / "demo.jsonl").write_text(
        "".join(
            json.dumps(said | {"run": run, "seed": 1}) + "\n" for run in ("2025", "2026", "2026")
        )
    )
    text = tables.fill("<!-- table:demo -->\nstale\n<!-- /table:demo -->", tmp_path)
    assert "| student after | 50.0% |" in text
    assert "2 runs (1 base students)" in text
    assert "right, greedy: SeqKD 2" in text
    tables.rebuild(tmp_path, [])
    assert (tmp_path / "demo.png").exists()


def test_compared_methods_are_rows_and_columns_of_costs():
    keys = ("teacher", "student-00", "student-01", "RFT", "SeqKD")
    values = dict(zip(keys, (0.9, 0.25, 0.5, 0.75, 0.6), strict=True))
    record = {
        "evaluations": {name: dict.fromkeys(METRICS, value) for name, value in values.items()},
        "config": {"compare": {"SeqKD": {}, "RFT": {}}},
        "costs": {"PAD": {"tokens": 1200, "seconds": 3.2}, "RFT": {"tokens": 500, "seconds": 1.0}},
    }
    rows = demo.table([record])
    assert [row[0] for row in rows[2:]] == ["teacher", "student before", "PAD", "SeqKD", "RFT"]
    assert rows[0][-2:] == ["tokens read", "seconds of training"]
    assert [row[-2:] for row in rows[3:6]] == [["–", "–"], ["1,200", "3"], ["–", "–"]]
    assert demo.ahead([record, record]).startswith("right, greedy: RFT 2; ")
    record["evaluations"]["SeqKD"] = record["evaluations"]["RFT"]
    assert demo.ahead([record, record]).startswith("right, greedy: SeqKD 2, RFT 2; ")


METHODS = {
    "DPO": "dpo",
    "SimPO": "simpo",
    "RFT": "rft",
    "SeqKD": "seqkd",
    "composed": "weighted_kl",
}


def test_the_demos_rates_are_those_that_validation_prompts_chose():
    """The points of the study's grid with the best score on the validation prompts."""
    demo_of = yaml.safe_load((ROOT / "pad_fast" / "tiny_world" / "tiny.yaml").read_text())
    known = {key_of(record): record for record in load(RESULTS, "evidence")}
    for name, method in {OWN: "ppd_kl", **METHODS}.items():
        tried = tuning(Cell("full", "a", 1, 1, method), FULL)
        best = max(tried, key=lambda cell: known[cell.key]["score"])
        given = demo_of if name == OWN else demo_of["compare"][name]
        assert given["learning_rate"] == best.learning_rate, name
        assert best.beta is None or given["beta"] == best.beta, name
