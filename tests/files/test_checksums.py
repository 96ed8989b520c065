"""Every bit of a file that a run writes is covered by its checksum."""

from __future__ import annotations

import json
import random

import pyarrow.parquet as pq
import pytest

from pad_fast.files.own_files import count_rows, read_json, read_table, write_json
from pad_fast.pipeline.parquet_rows import read_rows, write_rows

ROWS = [
    {
        "prompt_id": f"p{n}",
        "prompt": [{"role": "user", "content": f"{n}+1=? ünï"}],
        "completion_ids": [[n, n + 1], [n]],
        "teacher_rewards": [-0.5 * n, None],
        "answer": None if n % 2 else str(n),
    }
    for n in range(40)
]


@pytest.fixture
def shard(tmp_path):
    write_rows(tmp_path / "part-00000.parquet", ROWS)
    return tmp_path / "part-00000.parquet"


def test_a_shard_is_plain_parquet(shard):
    assert pq.read_table(shard).to_pylist() == read_rows(shard) == ROWS
    assert count_rows(shard) == 40
    assert read_table(shard, ["answer", "unknown"]).column_names == ["answer"]
    before = shard.read_bytes()
    write_rows(shard, ROWS)
    assert shard.read_bytes() == before


def test_no_bit_of_a_shard_changes_unnoticed(shard):
    """Page checksums alone leave the headers and the end of a Parquet file uncovered."""
    content = shard.read_bytes()
    places = [*range(8), *range(len(content) - 400, len(content))]
    places += random.Random(0).sample(range(len(content)), 1000)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        shard.write_bytes(changed)
        with pytest.raises(ValueError, match=r"part-00000.parquet is damaged \(.*; set it aside"):
            read_rows(shard)
    for size in (0, 1, 3, 100, len(content) - 1):
        shard.write_bytes(content[:size])
        with pytest.raises(ValueError, match="is damaged"):
            read_rows(shard)
        with pytest.raises(ValueError, match="is damaged"):
            count_rows(shard)


def test_a_file_without_a_checksum_is_none_of_a_run(shard):
    pq.write_table(pq.read_table(shard), shard)
    with pytest.raises(ValueError, match="its checksum is not that of its content"):
        read_rows(shard)


def test_json_is_covered_too(tmp_path):
    path = tmp_path / "student-01.json"
    value = {"name": "student-01", "accuracy": 0.1 + 0.2, "none": None, "deep": {"a": [1, "ü"]}}
    write_json(path, value)
    assert read_json(path) == value
    text = path.read_text(encoding="utf-8")
    assert list(json.loads(text))[-1] == "sha256"
    for old, new in (("0.30000000000000004", "0.30000000000000010"), ("-01", "-02"), ("ü", "u")):
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=r"student-01.json is damaged: it is not as it was"):
            read_json(path)
    for bad in ("", "{", "[]", text[:-20], text + "{}", '{"a": 1, "a": 2}', '{"a": ' * 100_000):
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(
            ValueError, match=r"student-01.json is damaged: .*; set it aside with `mv"
        ):
            read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="put back a copy"):
        read_json(path, "put back a copy of it")
