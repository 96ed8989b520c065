"""What a run keeps of the time, the tokens and the memory that its work took."""

from __future__ import annotations

import json
import time

import pytest

from pad_fast.files import process_memory
from pad_fast.pipeline import costs
from pad_fast.pipeline.costs import measured, recording
from pad_fast.pipeline.ranks import ALONE, Ranks
from pad_fast.report.costs import COSTS, compared
from pad_fast.report.costs import read_costs as read_rows


def read_costs(folder):
    return compared(None, read_rows(folder))


def peak_is_unknown() -> bool:
    return not process_memory.forget_peak()


class Together(Ranks):
    """Two ranks of which the other always has the same to say."""

    def gather(self, value):
        return [value, value]


def test_a_piece_inside_another_is_not_counted_twice(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 9.0])  # begin; the inner one begins; it ends; end
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    peaks = iter([10, 90, 20])
    monkeypatch.setattr(costs, "peak_memory", lambda: next(peaks))
    with recording(tmp_path, ALONE), measured("round 1/1 · sample", "response") as work:
        with measured("load student", "model") as inner:
            inner.add(1)
        work.add(8, 640)
    load, sample = read_costs(tmp_path)
    assert (load.title, load.seconds, load.peak, load.count) == ("load student", 3.0, 90, 1)
    assert (sample.seconds, sample.peak, sample.count, sample.tokens) == (6.0, 20, 8, 640)


def test_stretches_add_up_and_what_did_nothing_leaves_no_line(tmp_path):
    for count in (3, 5, 0):
        with recording(tmp_path, ALONE), measured("sample", "response") as work:
            if count:
                work.add(count, 10 * count)
    assert len((tmp_path / COSTS).read_text().splitlines()) == 2
    (found,) = read_costs(tmp_path)
    assert (found.count, found.tokens) == (8, 80)


def test_what_is_not_counted_is_a_part_of_the_next_stretch(tmp_path, monkeypatch):
    """A tokenizer is loaded before its model, and again for another model of the same role."""
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with recording(tmp_path, ALONE):
        for count in (0, 1, 1):
            with measured("load teacher", "model") as work:
                work.add(count)
    first, second = map(json.loads, (tmp_path / COSTS).read_text().splitlines())
    assert (first["count"], first["seconds"]) == (1, 2.0 + 3.0)
    assert second["seconds"] == 1.0


def test_a_failure_keeps_what_was_done_before_it(tmp_path):
    def fail() -> None:
        with measured("sample", "response") as work:
            work.add(2)
            raise OSError("no space")

    with recording(tmp_path, ALONE):
        with pytest.raises(OSError, match="no space"):
            fail()
        with measured("score", "response") as work:
            work.add(1)
    assert [found.count for found in read_costs(tmp_path)] == [2, 1]


def test_ranks_are_added_up_by_the_main_one(tmp_path):
    for rank in (1, 0):
        ranks = Together(rank, 2)
        with recording(tmp_path, ranks), measured("sample", "response", ranks) as work:
            work.add(2, 7)
    (line,) = map(json.loads, (tmp_path / COSTS).read_text().splitlines())
    assert (line["count"], line["tokens"]) == (4, 14)


def test_nothing_is_kept_without_a_run():
    with measured("sample", "response") as work:
        work.add(1)
    assert work.seconds == 0.0
    assert costs.peak_memory() is None or costs.peak_memory() > 2**20


@pytest.mark.skipif(peak_is_unknown(), reason="the system does not say how much memory is held")
def test_what_a_piece_has_freed_is_not_in_the_peak_of_the_next(tmp_path):
    """Blocks of different lengths leave holes between what lives on, here 1,000 of them."""
    with recording(tmp_path, ALONE):
        with measured("score", "response") as work:
            blocks = [(b"x" * (50_000 + 71 * i), bytes(2000)) for i in range(1000)]
            living = [small for _, small in blocks]
            del blocks
            work.add(1)
        with measured("train", "step") as work:
            work.add(len(living))
    first, second = read_costs(tmp_path)
    assert second.peak < first.peak - 2**26


def test_a_line_that_a_kill_left_half_written_is_dropped(tmp_path):
    for count in (3, 5):
        with recording(tmp_path, ALONE), measured("sample", "response") as work:
            work.add(count)
        whole = (tmp_path / COSTS).read_bytes()
        (tmp_path / COSTS).write_bytes(whole + b'{"title": "sam')
        assert sum(row["count"] for row in read_rows(tmp_path)) == {3: 3, 5: 8}[count]
    assert whole.count(b"\n") == 2
