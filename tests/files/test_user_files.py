"""Files that users bring: what is wrong with them is named with the file and the line or row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_rows import read_prompts

from pad_fast.files.user_files import csv_rows
from pad_fast.files.yaml_files import read_yaml

DIGITS = "7" * 5000
DEEP = "[" * 100_000
HALF = '"\\ud83d here"'
WHOLE = '"\\ud83d\\ude00 here"'


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            HALF,
            r"holds half of a character, '\\ud83d' at position 1 \(a surrogate",
        ),
        (f'["a", {{"b": {HALF}}}]', r"answer\[1\].b holds half of a character"),
        (DIGITS, "it holds a number of more than 4300 digits; write it as a text"),
        (DEEP, "it is nested too deeply to be read"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
    ],
)
def test_values_that_json_spells_and_nothing_else_takes(tmp_path, value, message):
    row = f'{{"prompt": "b", "answer": {value}}}'
    with pytest.raises(ValueError, match=rf"p.jsonl: line 2: .*{message}"):
        read_prompts(str(written(tmp_path / "p.jsonl", f'{{"prompt": "a"}}\n{row}\n')))
    listed = f'[\n {{"prompt": "a"}},\n {row}\n]'
    with pytest.raises(ValueError, match=rf"p.json: row 2, line 3: .*{message}"):
        read_prompts(str(written(tmp_path / "p.json", listed)))


def test_a_whole_character_is_one(tmp_path):
    text = f'{{"prompt": {WHOLE}, "answer": "{DIGITS}"}}\n'
    (row,) = read_prompts(str(written(tmp_path / "p.jsonl", text)))
    assert row["prompt"][0]["content"] == "\U0001f600 here"
    assert row["answer"] == DIGITS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"} {"prompt": "b"}]', "row 1, line 1 is not JSON: a comma or ] is missing"),
        ('[{"prompt": "a"},\n\n]', "row 2, line 3 is not JSON: Expecting value at line 3"),
        ('[{"prompt": "a"}', "row 1, line 1 is not JSON: a comma or ] is missing"),
        ('[{"prompt": "a"}]\n[1]', r"something follows the list: '\[1\]'"),
        ("[]", "holds no prompts"),
        ("[ ]  ", "holds no prompts"),
        ("[1]", "row 1, line 1: must be an object with a prompt, got int"),
    ],
)
def test_lists_of_json(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"p.json: {message}"):
        read_prompts(str(written(tmp_path / "p.json", text)))


def test_lists_of_json_are_read_as_json_does(tmp_path):
    rows = [{"prompt": f"{n} ] , [ é"} for n in range(5)]
    for indent in (None, 0, 2):
        text = "\ufeff  \n" + json.dumps(rows, indent=indent) + "\n\n"
        found = read_prompts(str(written(tmp_path / "p.json", text)))
        assert [row["prompt"][0]["content"] for row in found] == [row["prompt"] for row in rows]


def test_long_cells_are_read(tmp_path):
    import csv

    limit = csv.field_size_limit()
    path = written(tmp_path / "p.csv", f'prompt,answer\n"{"x" * 200_000}",1\n')
    (row,) = read_prompts(str(path))
    assert len(row["prompt"][0]["content"]) == 200_000
    assert csv.field_size_limit() == limit  # that of the user's program


def test_quotes_that_are_not_closed_swallow_nothing(tmp_path):
    path = written(tmp_path / "p.csv", 'prompt,answer\n"two\nlines",1\n"b,2\nc,3\n')
    with pytest.raises(ValueError, match=r"p.csv: row 2, which begins in line 4, cannot be read"):
        list(csv_rows(path))


@pytest.fixture
def table(tmp_path) -> Path:
    columns = {"prompt": [f"{n}+1=?" for n in range(3000)], "answer": list(range(3000))}
    path = tmp_path / "p.parquet"
    options = {"row_group_size": 1000, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table(columns), path, write_page_checksum=True, **options)
    return path


def test_a_damaged_page_is_named_by_its_rows(table):
    content = bytearray(table.read_bytes())
    content[content.index(b"2500+1=?") + 2] ^= 1
    table.write_bytes(content)
    with pytest.raises(ValueError, match=r"p.parquet: row 2001 or one after it cannot be read: "):
        read_prompts(str(table))


def test_other_parquet_files(table, tmp_path):
    content = table.read_bytes()
    for bad in (content[:500], b"PAR1" + bytes(100) + b"PAR1", b"hello"):
        with pytest.raises(ValueError, match=r"p.parquet: cannot be read as a Parquet file: "):
            read_prompts(str(written(table, bad)))
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(twice, table)
    with pytest.raises(ValueError, match=r"p.parquet: the column 'prompt' stands twice"):
        read_prompts(str(table))


def test_a_damaged_dataset_folder(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"prompt": ["a", "b"]}).save_to_disk(tmp_path / "set")
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"prompts: the dataset .*set cannot be read: "):
        read_prompts(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: 1\nseed: {DIGITS}\n", "c.yaml: line 2 holds a number of more than 4300 digits"),
        ('a: 1\nb: "\\ud83d"\n', "c.yaml: line 2 holds half of a character"),
        (f"a: {DEEP}\n", "c.yaml: it is nested too deeply, or holds itself"),
        ("a: &x [*x]\n", "c.yaml: it is nested too deeply, or holds itself"),
        ("a: 2001-13-45\n", "c.yaml: line 1: month must be in 1..12"),
        ("a: 1\nb: \x01\n", r"c.yaml is not YAML: line 2 holds the character '\\x01'"),
        ("a: [1\nb: 2\n", "c.yaml is not YAML: .* in line 2, column"),
        ("a: !!python/object:os.system x\n", "c.yaml is not YAML: .*in line 1"),
        (b"a: 1\nb: \xff\n", "c.yaml: line 2 is not UTF-8: byte 0xff"),
        ("a: {b: 1, b: 2}\n", "c.yaml: b stands twice, in lines 1 and 1"),
    ],
)
def test_settings_in_yaml(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_yaml(written(tmp_path / "c.yaml", text))


def test_aliases_that_grow_without_end_are_refused(tmp_path):
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="it holds more than 10000 keys and values"):
        read_yaml(written(tmp_path / "c.yaml", "\n".join(lines)))
    merged = "base: &base {a: 1}\nown:\n  <<: *base\n  a: 2\n"
    assert read_yaml(written(tmp_path / "c.yaml", merged))["own"] == {"a": 2}
