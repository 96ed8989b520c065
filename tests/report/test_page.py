"""The page's files: complete, self-contained, and there for any run folder."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import NASTY, make_run, read, write_json

from pad_fast.report import write_report


def test_a_finished_run_has_every_part(finished: Path) -> None:
    page = read(finished)
    assert finished.parts[-3:] == ("made-up", "report", "index.html")
    for words in (
        "Before and after",
        "By skill",
        "After round 3",
        "SeqKD",
        "Training",
        "word problems",
        "calibration/position_bias",
        "Multiple choice does not discriminate here: it costs 12 questions a prompt",
        "changes the order of 2% of pairs",
        "abc123",
    ):
        assert words in page
    names = {
        "accuracy",
        "agreement",
        "heldout-loss",
        "loss-histogram",
        "train-loss",
        "train-agreement",
        "train-margins",
        "train-rewards",
    }
    names |= {"lengths", "shares"} | {f"preferences-{i}" for i in range(1, 7)}
    assert {picture.stem for picture in finished.parent.glob("*.svg")} == names
    assert "not finished" not in page
    assert not list(finished.parent.glob(".*"))  # no temporary file is left


def test_the_page_is_self_contained_and_its_pictures_are_the_files(finished: Path) -> None:
    page = read(finished)
    assert not re.search(r"https?://|<link|<script|url\(|@import", page.replace(NASTY, ""))
    inside = {
        base64.b64decode(text) for text in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    }
    files = {picture.read_bytes() for picture in finished.parent.glob("*.svg")}
    assert inside == files


def test_texts_are_escaped(finished: Path) -> None:
    page = read(finished)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34; 日本語" in page
    assert "<script" not in page


def test_without_answers_and_baseline(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "run", answers=False, baseline=False)))
    assert "<th>Greedy accuracy" not in page
    assert "By skill" not in page
    assert "SeqKD is" not in page
    assert "<th>Kendall τ" in page


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_an_unfinished_run_says_so(tmp_path: Path, rounds: int) -> None:
    page = read(write_report(make_run(tmp_path / "run", rounds=rounds, baseline=False)))
    assert f"{rounds} of 3 rounds are evaluated" in page
    assert ('class="tile"' in page) == ("Student after" in page) == (rounds > 0)


@pytest.mark.parametrize(
    "part",
    ["run.json", "metrics.jsonl", "evaluation", "heldout", "round-01", "round-02", "round-03"],
)
def test_any_part_may_be_missing(run_dir: Path, part: str) -> None:
    (run_dir / part).rename(run_dir.parent / "elsewhere")
    assert "How to read this page" in read(write_report(run_dir))


def test_only_a_manifest(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"config": {"beta": 10}})
    assert "Nothing is evaluated yet" in read(write_report(tmp_path))


def test_no_token_is_passed_on(finished: Path) -> None:
    page = read(finished)
    assert "hf_secret" not in page
    assert "(not shown)" in page


def test_the_same_run_gives_the_same_bytes(finished: Path) -> None:
    first = finished.read_bytes()
    assert write_report(str(finished.parents[1])).read_bytes() == first


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run_dir must be a run folder"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_importing_the_report_loads_no_plotting() -> None:
    code = (
        "import sys, pad_fast.report; "
        "sys.exit(any(m in sys.modules for m in ('matplotlib', 'jinja2', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
