"""Intervals, validation, texts side by side, and pages of runs without answers or calibration."""

import html
import json
import re
from pathlib import Path

import pytest
from made_runs import make_run, read

from pad_fast.report import write_report


def table(page: str, title: str) -> str:
    """The part of the page below a heading."""
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def test_the_teachers_reward_comes_first_where_there_are_no_answers(judged: Path) -> None:
    page = html.unescape(read(judged))
    tiles = re.findall(r'class="tile"><span>(.*?)</span><b>(.*?)</b>', page)
    assert tiles[0] == ("Teacher's reward", "−1.000 → −0.625")
    headings = re.findall(r"<th>(.*?)</th>", table(page, "Before and after"))
    assert headings[1].startswith("Teacher's reward")
    assert "teacher-reward.svg" in {path.name for path in judged.parent.iterdir()}


def test_it_has_no_tile_where_there_are_answers(finished: Path) -> None:
    tiles = re.findall(r'class="tile"><span>(.*?)</span>', read(finished))
    assert tiles == ["Greedy accuracy", "Sampled accuracy", "Kendall τ", "Loss"]
    assert not (finished.parent / "teacher-reward.svg").exists()


def test_tau_and_top1_have_intervals(judged: Path) -> None:
    page = read(judged)
    found = json.loads((judged.parents[1] / "evaluation" / "student-03.json").read_text())
    low, high = found["intervals"]["top1"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in table(page, "Before and after")
    # Lines from the low to the high ends, for tau and for top-1, in the picture and its legend.
    picture = (judged.parent / "agreement.svg").read_text()
    assert len(set(re.findall(r"LineCollection_\d+", picture))) == 4
    assert "may be chance" in page


def test_a_difference_within_chance_is_grey(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=1, intervals=True, baseline=False)
    page = read(write_report(run))
    assert re.search(r'class="soft">\+0\.050 ?</span> \(−0\.\d+ to \+0\.\d+\)', page)


def test_validation_has_a_section(judged: Path, finished: Path) -> None:
    part = table(read(judged), "Validation")
    assert re.findall(r"<td>(−0.\d+|−1.\d+)<", part) == ["−1.000", "−0.900", "−0.800", "−0.700"]
    assert part.count("<td>best round<") == 1
    assert "−0.750 to −0.650" in part
    assert "64 prompts that no round trains on" in part
    assert "<h2>Validation" not in read(finished)


def test_texts_stand_side_by_side(finished: Path) -> None:
    part = table(read(finished), "Before and after, in words")
    sides = re.findall(r'<div class="side">(.*?)\n</div>', part, re.DOTALL)
    assert len(sides) == 6
    for side in sides:
        names = re.findall(r"<b>(.*?)</b>", side)
        assert names == ["Base student", "After round 3", "Teacher", "SeqKD"]
        assert "greedy student-00" in side


def test_nothing_is_said_of_calibration_where_nothing_was_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", baseline=False, mcq_formula="paper", mcq_weight=0.0)
    asked = read(write_report(run))
    assert "after calibration" in asked
    assert "mcq_formula: paper" in asked  # the loss is saturated
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if "mcq/" not in line]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    page = read(write_report(run)).split("<summary>All settings")[0]
    assert "calibration" not in page
    assert "multiple-choice" not in page
    assert "mcq_" not in page


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("accuracy", "greedy 40.0% in round 0, 52.5% in round 1"),
        ("agreement", "τ, fixed groups 0.6 in round 0"),
        ("heldout-loss", "held-out loss 0.62 in round 0"),
        ("loss-histogram", "Histogram of the losses of 40 prompts: half are below 0.5"),
        ("lengths", " in round 1 (middle half "),
        ("train-loss", "training loss from 0."),
        ("preferences-1", "probability of first place for that one: teacher"),
    ],
)
def test_alt_texts_say_what_is_seen(finished: Path, name: str, seen: str) -> None:
    page = html.unescape(read(finished))
    alts = re.findall(r'<img src="[^"]*" alt="([^"]*)"', page)
    assert len(alts) == len(set(alts)) == 16
    assert any(seen in alt for alt in alts), (name, alts)


def test_pictures_have_colours_for_light_and_dark_pages_and_no_others(finished: Path) -> None:
    for picture in finished.parent.glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        style, drawing = text.split("</style>", 1)
        assert "prefers-color-scheme:dark" in style
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), picture.name
        assert not re.search(r"(?<!xmlns=\")(?<!xlink=\")https?://", drawing), picture.name
