"""The page's tables: metrics with their differences, what phases logged, and single groups."""

import json
import re
from pathlib import Path

import pytest
from made_runs import ROUNDS, STEPS, make_run, read, write_rows

from pad_fast.report import write_report


def cells(page: str, label: str) -> list[str]:
    """The cells of the row with this label."""
    row = re.search(rf"<tr><th>{label}</th>(.*?)</tr>", page, re.DOTALL)
    assert row
    return re.findall(r"<td>(.*?)</td>", row[1])


def evaluation(page: str, label: str) -> dict[str, str]:
    """The cells of a model, by the columns' headings without their arrows."""
    (headings,) = re.findall(r"<tr><th></th>(<th>Greedy accuracy.*?)</tr>", page)
    columns = [text.strip("\u00a0↑↓") for text in re.findall(r"<th>(.*?)</th>", headings)]
    return dict(zip(columns, cells(page, label), strict=True))


def test_differences_are_to_the_base_student(finished: Path) -> None:
    page = read(finished)
    assert cells(page, "Base student")[:4] == ["40.0%", "25.0%", "−1.000", "0.600"]
    assert cells(page, "Teacher")[:4] == ["90.0%", "80.0%", "−0.500", "–"]
    last = evaluation(page, "After round 3")
    assert last["Greedy accuracy"] == '77.5%<small class="better">+37.5</small>'
    # A lower loss is better.
    assert last["Loss"] == '0.395<small class="better">−0.225</small>'
    # Top-1 on fresh samples fell, and the page says so.
    assert last["Top-1, fresh"] == '63.5%<small class="worse">−1.5</small>'
    # A length is neither better nor worse.
    assert last["Mean length"] == '7.4<small class="">+0.2</small>'


def test_shards_are_averaged_and_a_baselines_training_is_not_the_students(
    run_dir: Path, finished: Path
) -> None:
    last = {"round": 3, "step": STEPS}
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**last, "phase": "seqkd", "loss": 9.0}) + "\n")
        # A second line of the same step and phase adds to the first.
        file.write(json.dumps({**last, "phase": "train", "train_runtime": 3.0}) + "\n")
    page = read(write_report(run_dir))
    assert page == read(finished)
    assert cells(page, "completions/mean_length") == ["6.5"] * ROUNDS
    assert cells(page, "calibration/position_bias") == ["−0.03"] * ROUNDS


def test_a_group_shows_ranks_before_and_after(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", rounds=1)
    row = {
        "prompt_id": "p0",
        "prompt": "Plain text prompt",
        "completions": ["good", "bad", "copy", "masked"],
    }
    row |= {"finish_reasons": ["stop"] * 4}
    row |= {"teacher_rewards": [-0.1, -2.0, -2.0000003, None], "student_rewards": [-9.0] * 4}
    for part in (run / "heldout" / "groups").glob("*"):
        part.unlink()
    write_rows(run / "heldout" / "groups" / "part-00000.parquet", [row])
    for name, rewards, loss in (
        ("student-00", [-1.5, -1.0, -1.0, -0.1], 0.6),
        ("student-01", [-0.2, -1.75, -1.75, -0.1], 0.125),
    ):
        evaluated = {
            "prompt_id": "p0",
            "greedy_text": "g",
            "student_rewards": rewards,
            "ppd_loss": loss,
        }
        write_rows(run / "evaluation" / f"{name}.parquet", [evaluated])
    page = read(write_report(run))
    shown = {
        text: re.findall(r"<td>([^<]*)<small>rank ([^<]*)</small>", rest)
        for text, rest in re.findall(r"<pre[^>]*>(\w+)</pre>(.*?)</tr>", page)
    }
    assert shown["good"] == [("−0.100", "1"), ("−1.500", "3"), ("−0.200", "1")]
    # A response and its copy are tied up to rounding.
    assert shown["bad"] == shown["copy"] == [("−2.000", "2"), ("−1.000", "1"), ("−1.750", "2")]
    assert [rank for _, rank in shown["masked"]] == ["–", "–", "–"]
    # Responses are in the teacher's order, masked ones last.
    assert list(shown) == ["good", "bad", "copy", "masked"]
    assert "Prompt 1, loss 0.600 → 0.125." in page
    assert "Plain text prompt" in page


def test_steps_logged_twice_and_broken_lines(run_dir: Path, finished: Path) -> None:
    before = read(finished)
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines()
    # The run was killed, and went on from an earlier step; it was killed again within a line.
    metrics.write_text("\n".join([*lines[:10], *lines[5:], lines[-1][:30]]), encoding="utf-8")
    assert read(write_report(run_dir)) == before
    metrics.write_text("\n".join([*lines[:10], lines[10][:25], *lines[5:], ""]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 11 is damaged"):
        write_report(run_dir)


def test_a_page_written_again_is_the_same(tmp_path: Path) -> None:
    """Also once the manifest says that the report was written, as after a kill behind it."""
    run = make_run(tmp_path / "run")
    manifest = json.loads((run / "run.json").read_text())
    manifest["phases"] = {"round-01/sample": "finished"}
    (run / "run.json").write_text(json.dumps(manifest))
    first = write_report(run).read_text()
    assert "round-01/sample" in first
    manifest["phases"]["report"] = "finished"
    (run / "run.json").write_text(json.dumps(manifest))
    assert write_report(run).read_text() == first
