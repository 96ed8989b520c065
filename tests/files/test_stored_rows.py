"""Rows on disk: read as lists read, few at a time, and gone at the end."""

from __future__ import annotations

import gc
import random
import weakref

import pyarrow.parquet as pq
import pytest

from pad_fast.files import own_files, stored_rows
from pad_fast.files.checksums import is_whole
from pad_fast.files.own_files import count_rows, read_tables
from pad_fast.files.stored_rows import KeyedRows, RowFiles, changed, column, left_out, take
from pad_fast.pipeline import parquet_rows
from pad_fast.pipeline.parquet_rows import (
    iter_rows,
    keep_rows,
    keep_shards,
    read_rows,
    shard_path,
    write_rows,
)

ROWS = [
    {
        "prompt_id": f"p{n}",
        "prompt": [{"role": "user", "content": f"{n}+1=? ünï"}],
        "prompt_ids": [n, n + 1],
        "answer": None if n % 2 else str(n),
    }
    for n in range(50)
]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    """Buffers of a few rows, so that fifty are many."""
    for module, name in (
        (parquet_rows, "TABLE_ROWS"),
        (parquet_rows, "KEPT_ROWS"),
        (own_files, "ROWS_AT_A_TIME"),
        (stored_rows, "BATCH"),
    ):
        monkeypatch.setattr(module, name, 8)


@pytest.fixture
def files(tmp_path):
    return RowFiles(tmp_path / stored_rows.SCRATCH / "rank-0")


def test_stored_rows_read_as_a_list_does(files):
    rows = keep_rows(files, iter(ROWS))
    places = random.Random(0).sample(range(50), 50)
    assert (len(rows), list(rows), rows[7], rows[-1]) == (50, ROWS, ROWS[7], ROWS[-1])
    assert list(rows[10:30][5:]) == ROWS[15:30]
    assert list(take(rows, places)) == take(ROWS, places) == [ROWS[place] for place in places]
    assert list(take(take(rows, places)[3:9], [5, 0])) == [ROWS[places[8]], ROWS[places[3]]]
    assert list(column(rows, "answer")) == column(ROWS, "answer")
    longer = changed(rows, lambda row: {**row, "n": len(row["prompt_ids"])})
    assert longer[3] == {**ROWS[3], "n": 2} == next(iter(longer[3:]))
    assert random.Random(1).sample(rows, 5) == random.Random(1).sample(ROWS, 5)
    assert KeyedRows(rows, "prompt_id")["p31"] == ROWS[31]
    assert left_out(5, [1, 4]).tolist() == [0, 2, 3]
    with pytest.raises(IndexError):
        rows[50]


def test_shards_are_read_one_after_the_other(files, tmp_path):
    for index in range(5):
        write_rows(shard_path(tmp_path, index), ROWS[10 * index : 10 * index + 10])
    assert list(iter_rows(tmp_path)) == read_rows(tmp_path) == ROWS
    assert list(keep_shards(files, tmp_path)) == ROWS
    some = keep_shards(files, tmp_path, ["answer", "unknown", "prompt_id"])
    assert some[11] == {"prompt_id": "p11", "answer": None}


def test_no_more_rows_are_in_memory_than_a_buffer_holds(files, tmp_path):
    """Counted are the rows that are alive while the last one is read."""

    class Counted(dict):
        alive = most = 0

    def gone() -> None:
        Counted.alive -= 1

    def made(row):
        found = Counted(row)
        weakref.finalize(found, gone)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        return found

    gc.collect()
    write_rows(tmp_path / "all.parquet", map(made, ROWS))
    assert Counted.most <= 8 + 1
    stored = keep_rows(files, map(made, ROWS))
    assert Counted.most <= 8 + 1
    assert sum(1 for _ in changed(stored, made)) == count_rows(tmp_path / "all.parquet") == 50
    assert Counted.most <= 8 + 1


def test_a_long_file_is_written_and_checked_in_parts(tmp_path):
    path = tmp_path / "prompts.parquet"
    write_rows(path, iter(ROWS), {"mean": 0.5})
    assert pq.read_metadata(path).num_row_groups == 7
    assert [len(part) for part in read_tables(path, ["prompt_id"])] == [8] * 6 + [2]
    assert parquet_rows.read_metrics(path) == {"mean": 0.5}
    assert is_whole(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its checksum is not that of its content"):
        next(read_tables(path))


def test_the_folder_goes_with_what_kept_it(tmp_path):
    files = RowFiles(tmp_path / stored_rows.SCRATCH / "rank-0")
    rows = keep_rows(files, ROWS)
    assert [path.name for path in tmp_path.iterdir()] == [stored_rows.SCRATCH]
    assert keep_rows(files, []) == []
    del files
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert rows[3] == ROWS[3]  # it stays open for whoever reads it


def test_a_folder_belongs_to_the_last_that_took_it(tmp_path):
    """A failed command of this process, kept alive by its traceback, goes after the next began."""
    failed = RowFiles(tmp_path / "rank-0")
    keep_rows(failed, ROWS)
    following = RowFiles(tmp_path / "rank-0")
    rows = keep_rows(following, ROWS)
    del failed
    gc.collect()
    assert (following.folder / stored_rows.FIRST).exists()
    assert list(rows) == ROWS
    del rows, following
    gc.collect()
    assert not (tmp_path / "rank-0").exists()
