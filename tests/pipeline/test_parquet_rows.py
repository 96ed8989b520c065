"""Files that are complete or absent, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
import math

import pytest

from pad_fast.files.writing import replacing
from pad_fast.pipeline.parquet_rows import read_rows, write_rows
from pad_fast.pipeline.run_folder import Metrics
from pad_fast.pipeline.score.cache import ScoreCache


def test_nothing_half_written_carries_a_name(tmp_path):
    def fail():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]
    (tmp_path / "folder" / ".part-00000.parquet.tmp").write_text("half a shard")
    assert read_rows(tmp_path / "folder") == []


def test_metrics_lines_are_written_once_and_repaired(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.add(1, 2, "train", {"loss": 1.0})
    metrics.add(1, 2, "train", {"runtime": 1.0})
    metrics.add(1, 4, "train", {"loss": 3.0})
    with metrics.path.open("a") as file:
        file.write('{"round": 1, "st')
    again = Metrics(metrics.path)
    again.add(1, 4, "train", {"loss": 9.0})
    again.add(2, 1, "train", {"loss": 5.0})
    assert [json.loads(line).get("loss") for line in metrics.path.read_text().splitlines()] == [
        1.0,
        None,
        3.0,
        5.0,
    ]
    assert again.means(1, "train") == {"loss": 2.0, "runtime": 1.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["teacher_rewards", "student_rewards", "ppd_loss"])
def test_numbers_that_are_not_finite_are_not_kept(tmp_path, bad, column):
    row = {"prompt_id": "p7", column: bad if column == "ppd_loss" else [0.5, None, bad]}
    with pytest.raises(ValueError, match=rf"{column}: must be finite to be kept, got .* in row p7"):
        write_rows(tmp_path / "part-00000.parquet", [row])
    cache = ScoreCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="must be finite to be kept"):
        cache.add({b"key": [0.0, bad]})
    assert list(tmp_path.iterdir()) == []


def test_metrics_hold_null_for_what_is_not_finite(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.add(1, 1, "train", {"loss": 2.0, "grad_norm": math.nan})
    metrics.add(1, 2, "train", {"loss": math.inf, "grad_norm": 1.0})
    assert [json.loads(line) for line in metrics.path.read_text().splitlines()] == metrics.records
    assert "NaN" not in metrics.path.read_text()
    assert metrics.means(1, "train") == {"grad_norm": 1.0, "loss": 2.0}
