"""The study of listwise losses over the number of responses."""

import json

import pytest

from benchmarks import scaling, tables


def test_the_cost_over_responses_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(scaling, "LARGEST", {**scaling.LARGEST, "enumeration": 3})
    path = tmp_path / "scaling.jsonl"
    scaling.main(["--sizes", "3", "4", "--prompts", "2", "--samples", "64", "--results", str(path)])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    by = {(r["divergence"], r["n"], r["way"]): r for r in records}
    # Two divergences have three ways for 3 responses, and no enumeration for 4.
    assert len(by) == len(records) == 10
    for divergence, exact in (("kl", "subset recursion"), ("jsd", "meeting in the middle")):
        enumerated = by[divergence, 3, "enumeration"]["value"]
        assert by[divergence, 3, exact]["value"] == pytest.approx(enumerated, rel=1e-4)
        sampled = by[divergence, 4, "sampled"]
        error = abs(sampled["value"] - by[divergence, 4, exact]["value"])
        assert error < 4.5 * sampled["standard_error"] / 200**0.5
    tables.rebuild(tmp_path, [])
    assert (tmp_path / "scaling.png").exists()
