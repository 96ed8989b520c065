"""Methods that a run compares with its own, on the same samples and scores."""

from __future__ import annotations

import html
import io
import json
import shutil

import numpy as np
import pytest
from commands import failing
from rich.console import Console
from worlds import changed_config, write_config

from pad_fast import cli
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.evaluate.summary import print_table
from pad_fast.plan.work import TRAIN, Counts, Work
from pad_fast.report.compared import Method, comparison, in_words
from pad_fast.report.costs import read_costs

METHODS = {
    "DPO": {"loss": "dpo", "anchor": "start", "train_on": "pair", "learning_rate": 0.02},
    "SeqKD": {"loss": "rft", "train_on": "teacher"},
    "composed": {"divergence": "kl", "likelihood_weight": 10.0, "train_on": "all"},
}
CHANGES = {
    "shard_size": 8,
    "mcq_weight": 0.0,
    "save_strategy": "no",
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "compare": METHODS,
    "teacher_response": "greedy",
    "train_on": "own",
    "beta": 3.0,
    "divergence": "kl",
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The YAML file of a finished run with three more methods, and what it printed last."""
    folder = tmp_path_factory.mktemp("compared")
    config = write_config(folder, **CHANGES)
    assert cli.main(["run", str(config)]) == 0
    return config


def states(run):
    """The trainer's state of each student."""
    paths = [run / "round-01", *(run / "compare" / name for name in METHODS)]
    return [json.loads((path / "student" / "trainer_state.json").read_text()) for path in paths]


def test_each_method_trains_the_base_student_for_as_many_steps(compared) -> None:
    run = compared.parent / "run"
    found = states(run)
    assert {state["global_step"] for state in found} == {2}
    first = [state["log_history"][0] for state in found]
    assert first[1]["loss"] == pytest.approx(0.6931, abs=1e-3)  # DPO of the start, unlike PAD's
    assert [line["learning_rate"] for line in first][:2] == [0.01, 0.02]
    assert len({line["loss"] for line in first}) == 4
    for name in METHODS:
        result = json.loads((run / "evaluation" / f"{name}.json").read_text())
        assert result["kendall_tau"] is not None
        assert (run / "compare" / name / "student" / "README.md").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "compare/DPO", "compare/SeqKD"} <= {line["phase"] for line in lines}


def test_each_method_reads_its_part_of_a_group(compared) -> None:
    run = compared.parent / "run"
    tokens = {row["title"].rpartition(" · ")[2]: row["tokens"] for row in read_costs(run)}
    own, pair, answer, every = (
        tokens[phase] for phase in ("train", "compare/DPO", "compare/SeqKD", "compare/composed")
    )
    prompts = own + answer - every  # counted once in each
    assert every > own > pair > prompts
    assert every > answer > prompts


def test_nothing_is_done_twice_and_what_is_lost_is_made_again(compared, capsys) -> None:
    run = compared.parent / "run"
    weights = run / "compare" / "DPO" / "student" / "model.safetensors"
    before = weights.read_bytes()
    assert cli.main(["run", str(compared)]) == 0
    shutil.rmtree(weights.parent)
    (run / "metrics.jsonl").unlink()
    assert cli.main(["run", str(compared)]) == 0
    assert weights.read_bytes() == before
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {f"compare/{name}" for name in METHODS} <= {line["phase"] for line in lines}


def test_the_table_has_two_parts(compared) -> None:
    run = compared.parent / "run"
    found = comparison(run)
    assert found is not None
    assert [[name for name, _ in part.rows] for part in found.parts] == [
        ["Teacher", "Base student"],
        ["PAD", "DPO"],
        ["SeqKD", "composed"],
    ]
    assert [part.heading for part in found.parts[1:]] == [
        "The teacher only scores",
        "The teacher also answers",
    ]
    assert found.words.startswith("The teacher only scores: ")
    with Console(width=100, record=True, file=io.StringIO()) as console:
        print_table(run, console)
    text = console.export_text()
    assert all(word in text for word in ("The teacher also answers", "tokens", "composed"))
    page = (run / "report" / "index.html").read_text()
    assert "Methods compared" in page
    assert found.words in html.unescape(page)


def _method(title: str, rights: list[int], is_told: bool) -> Method:
    row = {"greedy_accuracy": sum(rights) / len(rights)}
    return Method(title, row, {"greedy_accuracy": np.array(rights, float)}, is_told, {})


def test_the_words_follow_the_numbers() -> None:
    pad, dpo = (
        _method("PAD", [1] * 60 + [0] * 40, False),
        _method("DPO", [1] * 30 + [0] * 70, False),
    )
    told = _method("SeqKD", [1] * 59 + [0, 1] + [0] * 39, True)
    words = in_words([pad, dpo, told])
    first, second, third = words.split(". ")
    assert first.startswith("The teacher only scores: PAD is ahead (right, greedy 60.0%; 30.0 more")
    assert "may be chance" not in first
    assert second == "The teacher also answers: SeqKD is ahead (right, greedy 60.0%)"
    assert third.startswith("Of all, PAD is ahead: level with SeqKD, 95% interval -")
    assert third.endswith("which may be chance.")
    assert "DPO is ahead" in in_words([_method("PAD", [0] * 10, False), dpo])


def test_the_plan_counts_them(compared) -> None:
    work = Work(parse_settings("run", [str(compared)]).run, Counts(train=8, heldout=4))
    pieces = [(piece.titles[0], piece.n) for piece in work.pieces() if piece.kind == TRAIN]
    assert pieces == [
        ("round 1/1 · train", 4),
        ("round 1/1 · compare/DPO", 2),
        ("round 1/1 · compare/SeqKD", 1),
        ("round 1/1 · compare/composed", 4),
    ]
    assert any("evaluate composed" in title for piece in work.pieces() for title in piece.titles)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 2}, "compare: rounds must be 1"),
        ({"compare": {"teacher": {}}}, "compare: a method's name must be up to 32 letters"),
        ({"compare": {"../x": {}}}, "compare: a method's name must be"),
        ({"compare": {"A": {}, "a": {}}}, "compare: 'A' and 'a' would have one folder"),
        ({"compare": {"A": "rft"}}, "compare: A must have options"),
        ({"compare": {"A": {"max_steps": 3}}}, "compare: A: max_steps is not one of what may"),
        ({"compare": {"A": {"loss": "dpo"}}}, "compare: A: anchor must be start"),
        ({"compare": {"A": {"train_on": "mine"}}}, "compare: A: train_on must be one of all"),
        ({"compare": "x"}, "compare: must be JSON"),
        ({"teacher_response": "none"}, "compare: SeqKD: train_on: teacher needs the teacher's"),
        ({"compare": {}, "teacher_response": "none", "train_on": "teacher"}, "train_on: teacher"),
    ],
)
def test_what_cannot_be_compared_is_said_before_sampling(
    world, tmp_path, capsys, changes, message
) -> None:
    config = changed_config(world, tmp_path, **{**CHANGES, **changes})
    assert message in failing(capsys, "run", str(config))
    assert not (tmp_path / "run" / "run.json").exists()
