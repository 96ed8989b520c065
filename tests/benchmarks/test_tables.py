"""Tables hold what the newest records say, between the marks of a document."""

import json

import pytest

from benchmarks import tables
from benchmarks.contestants import NAIVE, OURS
from benchmarks.ratios import ROWS, ratios
from benchmarks.suites import SUITES


def test_tables_are_made_from_the_newest_records_between_the_marks(results, records, tmp_path):
    readme = tmp_path / "README.md"
    marks = "".join(
        f"<!-- {mark} -->\nstale\n<!-- /{mark} -->\n\n"
        for mark in ("table:cpu", "summary:cpu", "table:gpu")
    )
    readme.write_text(f"before\n{marks}after\n")
    tables.rebuild(results, [readme, tmp_path / "absent.md"])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "987654" not in text
    assert "2025-01-02" not in text
    assert "An Example CPU" in text
    assert "Not yet run on a GPU" in text
    record = [record for record in records if record["contestant"] == OURS][-1]
    assert f"| **{OURS}** | {tables.number(record['median_ms'])} |" in text
    assert (
        "absent: No module named 'quack'" in text or "unsupported: its kernels need a GPU" in text
    )
    once = text
    tables.rebuild(results, [readme])
    assert readme.read_text() == once


def test_one_mark_asks_for_all_suites_and_an_unknown_one_stays(results):
    text = tables.fill("<!-- tables -->\n<!-- /tables -->\n<!-- other -->x<!-- /other -->", results)
    titles = [suite.title for suite in SUITES.values() if suite.is_recorded]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == titles
    assert "An Example CPU" in text
    assert "*Not yet run on a GPU.*" in text
    assert text.endswith("<!-- other -->x<!-- /other -->")


def test_a_target_is_met_or_missed_by_so_much():
    record = {"contestant": OURS, "median_ms": 1.5, "target_ms": 1.0}
    assert tables._target(record) == "target 1.00 ms missed by 50%"
    assert tables._target(record | {"median_ms": 0.9}) == "target 1.00 ms met"
    assert tables._target(record | {"contestant": NAIVE}) is None


def test_small_ratios_are_fractions():
    values = (tables.times(None), tables.times(1.234), tables.times(0.00025))
    assert values == ("–", "1.23×", "1/4,000")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1.00"),
        (123.456, "123"),
        (0.01234, "0.0123"),
        (1e-7, "1.0e-07"),
        (1e6, "1.0e+06"),
    ],
)
def test_numbers_keep_three_digits(value, text):
    assert tables.number(value) == text


def test_the_quickest_other_is_named_where_pytorch_was_out_of_memory(tmp_path, records):
    """It then has no record with a time."""
    row = ROWS["GPU"][0]
    like = next(one for one in records if one["contestant"] == OURS)
    like = like | {"case": row.case, "ratio_to_naive": None, "median_ms": 2.0, "curve": None}
    like |= {"cuda": None, "threads": 1}
    others = {
        "fast": (3.0, True),
        "slow": (4.0, True),
        f"{OURS}, 2": (1.0, True),
        "x": (1.0, False),
    }
    cases = [
        like,
        *(
            like | {"contestant": name, "median_ms": time, "same_job": same}
            for name, (time, same) in others.items()
        ),
        like | {"contestant": NAIVE, "status": "out of memory"},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in cases)
    (tmp_path / f"{row.suite}.jsonl").write_text(lines)
    assert f"| GPU | {row.words} | – | – | 0.67, fast |" in ratios(tmp_path)
    table = tables.fill(f"<!-- summary:{row.suite} -->\n<!-- /summary:{row.suite} -->", tmp_path)
    assert f"| {row.case} | – | 2.00 | – | – | fast, 3.00 ms; ours 0.667× |" in table
