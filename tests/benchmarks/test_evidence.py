"""The study: its smallest cell is run, and its arithmetic is compared with other computations."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from groups import SCORED_ROW
from torch.nn.functional import kl_div

from benchmarks import records
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import runner
from benchmarks.evidence.cells import TEST, TOKENS, TUNE, cells, tuning
from benchmarks.evidence.measures import MEASURES, repetition
from benchmarks.evidence.methods import METHODS, training_rows
from benchmarks.evidence.places import Place
from benchmarks.evidence.pools import Pool
from benchmarks.evidence.settings import FULL, MAIN, QUICK, SETTINGS, SIZES, SMALLEST
from benchmarks.evidence.statistics import Runs, interval, win_rate
from benchmarks.evidence.tables import report
from benchmarks.evidence.token_kd import token_kl
from benchmarks.evidence.worlds import TINY


def test_the_smallest_cells_become_records_and_tables(tmp_path, capsys, monkeypatch) -> None:
    """The start, a point of the grid, and a method at its best point; then the study goes on."""
    torch.set_num_threads(1)
    study = runner.Study(SMALLEST, tmp_path / "runs", tmp_path)
    base, tried, tested = itertools.islice(study.run(), 3)
    assert [record["cell"]["method"] for record in (base, tried, tested)] == ["base"] + 2 * [
        "seqkd"
    ]
    assert set(tested["prompts"]) == set(MEASURES)
    assert all(len(values) == SMALLEST.heldout for values in tested["prompts"].values())
    assert "prompts" not in tried
    assert tested["learning_rate"] == tried["cell"]["learning_rate"]
    assert tested["prompts"]["answer_logp"] != base["prompts"]["answer_logp"]  # it was trained
    assert tested["commit"]
    file = tmp_path / "evidence.jsonl"
    lines = file.read_text()
    file.write_text(lines.replace(f'"tokens": {tested["tokens"]},', '"tokens": 1,'))
    command.main(
        [
            "--size",
            "smallest",
            "--folder",
            str(tmp_path / "runs"),
            "--recount",
            "--results",
            str(tmp_path),
        ]
    )
    assert capsys.readouterr().out.endswith("changed 1 records\n")
    recounted = records.load(tmp_path, "evidence")[-1]
    assert recounted == tested | {"recounted": tested["commit"]}
    again = runner.Study(SMALLEST, tmp_path / "runs", tmp_path)
    assert len(again.todo) == len(cells(SMALLEST)) - 3
    monkeypatch.setattr(runner.Study, "_do", None)  # nothing is done for a list or tables
    arguments = ["--size", "smallest", "--results", str(tmp_path)]
    command.main([*arguments, "--list"])
    assert capsys.readouterr().out.count("done ") == 3
    command.main([*arguments, "--tables"])
    shown = capsys.readouterr().out
    assert f"| SeqKD | 1 | {100 * tested['means']['greedy_right']:.1f} [" in shown


def test_settings_can_be_chosen(tmp_path) -> None:
    found = runner.Study(FULL, tmp_path, tmp_path, only=["f-1"]).todo
    assert {cell.setting for cell in found if cell.purpose == TEST} == {"f-1"}
    assert {cell.setting for cell in found if cell.purpose == TUNE} == {"a"}  # where f is tuned
    with pytest.raises(SystemExit):
        command.parse(["--settings", "f-2"])


def test_no_cell_begins_after_the_time(tmp_path, monkeypatch) -> None:
    study = runner.Study(QUICK, tmp_path, tmp_path)
    clock = iter([0.0, 0.0, 3599.0, 3601.0])
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(study, "_do", lambda cell: {"means": {}})
    assert len(list(study.run(hours=1))) == 2
    with pytest.raises(SystemExit):
        command.parse(["--hours", "0"])


def test_two_processes_share_the_cells(tmp_path, monkeypatch) -> None:
    """A cell that another one does is left to it, and what waits for that is waited for."""
    mine, other = (runner.Study(SMALLEST, tmp_path, tmp_path) for _ in range(2))
    monkeypatch.setattr(runner.Study, "_do", lambda self, cell: {"score": 0.0})
    _, tried, tested, *_ = cells(SMALLEST)
    with other._claim(tried):
        done = [record["cell"]["method"] for record in itertools.islice(mine.run(), 4)]
        assert done == ["base", "base", "ppd_kl", "ppd_kl"]  # seqkd is not tuned yet
        slept = []

        def sleep(seconds):
            slept.append(seconds)
            other._add(tried, {"cell": vars(tried), "score": 0.0})

        monkeypatch.setattr(runner, "time", SimpleNamespace(sleep=sleep))
        rest = list(mine.run())
    assert len(slept) == 1
    assert [record["cell"]["budget"] for record in rest] == ["steps", TOKENS]
    assert rest[0]["cell"] == vars(tested)
    assert not mine.todo


def test_a_world_without_right_answers_is_told_by_the_teacher(tmp_path, monkeypatch, capsys):
    means = {name: -1.5 for name in MEASURES if "right" not in name and name != "pass"}
    values = {name: [-1.5, -1.5] for name in means}
    found = {"means": means, "prompts": values, "score": -1.5, "seconds": 1.0}
    monkeypatch.setattr(runner.Study, "_do", lambda self, cell: found)
    folders = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
    command.main(["--size", "smollm2", *folders])
    said = capsys.readouterr().out
    assert "greedy -1.500 sampled -1.500" in said
    assert "teacher logp, greedy" in said
    assert "| SeqKD | 1 | -1.500 [-1.500, -1.500] | -1.500 [-1.500, -1.500] |" in said


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_cell_is_once_there_and_tuned_before(size) -> None:
    found = cells(size)
    assert len({cell.key for cell in found}) == len(found)
    before = set()
    for cell in found:
        if cell.purpose == TEST and cell.method != "base":
            assert {other.key for other in tuning(cell, size)} <= before, cell.label
        before.add(cell.key)


def test_the_main_methods_of_every_setting_come_first() -> None:
    names = [cell.setting for cell in cells(FULL)]
    for setting in ("a", "e", "b", "d", "d-scratch", "f-1", "f-3"):
        assert names.index(setting) < names.index("g-n2")
        assert any(cell.setting == setting for cell in cells(FULL)[:420])
    assert all(cell.method in (*MAIN, "base") for cell in cells(FULL)[:420])


def test_the_grid_is_the_same_for_all_methods() -> None:
    first = next(cell for cell in cells(FULL) if cell.method == "ppd_kl" and cell.purpose == TEST)
    assert len(tuning(first, FULL)) == len(FULL.learning_rates) * len(FULL.betas)
    assert {cell.setting for cell in cells(FULL)} == set(FULL.settings) - {"c"}  # a's are c's
    scored_only = SETTINGS["c"].method_names()
    assert not any(METHODS[name].needs_answers or METHODS[name].is_bound for name in scored_only)


def test_the_groups_of_a_saturated_student_are_of_prompts_that_it_has_not_seen(tmp_path) -> None:
    usual = {row["prompt"][0]["content"] for row in TINY.prompts(tmp_path, "train", 3000)}
    unseen = TINY.unseen_prompts(tmp_path, 3000)
    assert len(unseen) > 2500
    assert usual.isdisjoint(row["prompt"][0]["content"] for row in unseen)
    pool = Pool(tmp_path, TINY, tmp_path, TINY.student(tmp_path, 1, None), SMALLEST, 1, unseen=True)
    assert [row["answer"] for row in pool.prompts("train")] == [
        row["answer"] for row in TINY.unseen_prompts(tmp_path, SMALLEST.prompts)
    ]


def test_an_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 2.0, (1, 400))
    found = interval(Runs(values, ((1, 1),)))
    error = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx(
        (error, error), rel=0.1
    )
    apart = values + np.array([[-1.0], [0.0], [1.0]])
    # Seeds that differ make it wider than prompts alone do, students that differ do not.
    seeds = interval(Runs(apart, ((1, 1), (1, 2), (1, 3))))
    students = interval(Runs(apart, ((1, 1), (2, 1), (3, 1))))
    assert seeds.high - seeds.low > 4 * (found.high - found.low)
    assert students.high - students.low == pytest.approx(found.high - found.low, rel=0.1)
    with_gaps = np.where(rng.random(values.shape) < 0.2, np.nan, values)
    assert interval(Runs(with_gaps, ((1, 1),))).mean == pytest.approx(np.nanmean(with_gaps))
    assert np.isnan(interval(Runs(values * np.nan, ((1, 1),))).mean)


@pytest.mark.parametrize("prompt_noise", [0.1, 5.0])
def test_an_interval_holds_the_truth_in_95_of_100(prompt_noise) -> None:
    """Three students that differ, three seeds each: whichever kind of noise is the larger one."""
    rng, held, count = np.random.default_rng(0), 0, 300
    for _ in range(count):
        students = np.repeat([-2.0, 0.0, 3.0], 3)[:, None]
        seeds = rng.normal(0, 0.5, (9, 1))
        prompts = rng.normal(0, prompt_noise, 50)
        values = students + seeds + prompts + rng.normal(0, 0.1, (9, 50))
        pairs = tuple(itertools.product((1, 2, 3), (1, 2, 3)))
        found = interval(Runs(values, pairs), draws=300)
        held += found.low <= 1 / 3 <= found.high
    assert held / count == pytest.approx(0.95, abs=0.03)


def test_ties_are_neither_won_nor_lost() -> None:
    first, second = np.array([[1.0, 0.0, 1.0, 1.0]]), np.array([[0.0, 1.0, 1.0, 0.0]])
    found = win_rate(Runs(first, ((1, 1),)), Runs(second, ((1, 1),)))
    assert (found.win, found.tie, found.loss, found.lead.mean) == (0.5, 0.25, 0.25, 0.25)


def test_token_kl_is_pytorchs() -> None:
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    wanted = kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    )
    torch.testing.assert_close(token_kl(student, teacher), wanted.sum(-1))


def test_repetition_counts_what_occurred_before() -> None:
    assert repetition([1, 2, 3, 1, 2, 3]) == 0.25
    assert repetition([1, 2, 3, 4]) == 0.0
    assert repetition([1]) == 0.0


def test_the_control_is_the_start_at_the_nearest_entropy() -> None:
    def record(method, entropy, right, temperature=1.0):
        cell = next(cell for cell in cells(SMALLEST) if cell.method == method)
        about = {**vars(cell), "purpose": TEST, "budget": "steps", "temperature": temperature}
        prompts = {name: [right, right] for name in MEASURES}
        means = dict.fromkeys(MEASURES, right) | {"entropy": entropy}
        return {"cell": about, "means": means, "prompts": prompts}

    found = [record("base", 5.0, 0.25), record("base", 2.2, 0.5, 0.5), record("ppd_kl", 2.4, 0.75)]
    shown = report(SMALLEST, found)
    assert "right, greedy" in shown
    assert "quality" not in shown
    for row in found:
        row["cell"]["setting"] = "e"
    only_e = dataclasses.replace(SMALLEST, settings=("e",))
    graded = report(only_e, found)
    assert "quality, greedy" in graded
    assert "right, greedy" not in graded
    assert "best of n" in graded
    assert "pass@n" in shown
    assert "| PPD-KL | 0.5 | 2.40, 2.20 | 25.0 [25.0, 25.0] |" in shown
    found[-1]["means"]["entropy"] = 1.9  # no start is so sharp
    assert "| PPD-KL | 0.5 | 1.90, 2.20 | – | – |" in report(only_e, found)


def test_equal_tokens_takes_more_steps_where_less_is_read() -> None:
    place = object.__new__(Place)
    place.size = dataclasses.replace(SMALLEST, steps=10)
    place.pool = SimpleNamespace(rows=[SCORED_ROW])
    cell = next(cell for cell in cells(SMALLEST) if cell.budget == TOKENS)
    rows = training_rows(METHODS["seqkd"], [SCORED_ROW])
    assert place._steps(cell, METHODS["seqkd"], rows) == 12  # 6 tokens of a group against 5
    assert place._steps(dataclasses.replace(cell, budget="steps"), METHODS["seqkd"], rows) == 10
    assert place._steps(dataclasses.replace(cell, purpose=TUNE), METHODS["seqkd"], rows) == 5
