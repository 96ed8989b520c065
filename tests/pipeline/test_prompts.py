"""Files of prompts, and those that are held out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pad_fast.pipeline import prompts
from pad_fast.pipeline.files import write_rows


def lines(path: Path, *rows: object) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def test_prompts_of_every_shape(tmp_path):
    source = lines(
        tmp_path / "p.jsonl",
        {"prompt": "one", "answer": 3},
        "",
        {"instruction": "two", "prompt_id": "x"},
        {
            "question": [
                {"role": "system", "content": "s", "name": None},
                {"role": "user", "content": "three"},
            ]
        },
        {"prompt": "one"},
    )
    rows = prompts.read_prompts(source)
    assert [row["prompt"][-1] for row in rows] == [
        {"role": "user", "content": text} for text in ("one", "two", "three")
    ]
    assert [row["answer"] for row in rows] == ["3", None, None]
    assert rows[1]["prompt_id"] == "x"
    assert rows[2]["prompt"][0] == {"role": "system", "content": "s"}
    assert rows[2]["place"].endswith("line 4")
    pq.write_table(pq.read_table(_parquet(tmp_path, rows)), tmp_path / "again.parquet")
    again = prompts.read_prompts(str(tmp_path / "again.parquet"))
    assert [row["prompt_id"] for row in again] == [row["prompt_id"] for row in rows]


def _parquet(folder: Path, rows) -> Path:
    write_rows(
        folder / "p.parquet", [{key: row[key] for key in ("prompt", "prompt_id")} for row in rows]
    )
    return folder / "p.parquet"


def test_prompts_of_a_local_dataset(tmp_path):
    import datasets

    data = datasets.Dataset.from_list([{"question": "q1"}, {"question": "q2"}])
    data.save_to_disk(tmp_path / "saved")
    assert len(prompts.read_prompts(str(tmp_path / "saved"))) == 2
    folder = tmp_path / "plain"
    folder.mkdir()
    data.to_json(folder / "train.jsonl")
    assert len(prompts.read_prompts(str(folder))) == 2
    with pytest.raises(ValueError, match="no dataset"):
        prompts.read_prompts(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"prompt": "a"}', '{"prompt": '], r"line 2 is not JSON"),
        ([{"text": "a"}], r"line 1: no column prompt, instruction, question or turns, only text"),
        ([{"prompt": "a"}, {"prompt": 3}], r"line 2: prompt must be a string or a list"),
        ([{"prompt": "  "}], r"line 1: prompt: the prompt is empty"),
        ([["a"]], r"line 1: must be an object"),
        ([{"prompt": [{"role": "user"}]}], r"a message holds a role and a content"),
        (
            [{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
            "last message",
        ),
        (
            [{"prompt": "a", "prompt_id": "i"}, {"prompt": "b", "prompt_id": "i"}],
            r"line 2: prompt_id 'i' is taken",
        ),
        ([], "is empty"),
        ([""], "holds no prompts"),
    ],
)
def test_bad_prompts_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        prompts.read_prompts(lines(tmp_path / "p.jsonl", *rows))


def test_prompts_of_other_files(tmp_path):
    rows = [{"prompt": "müde", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    as_lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files = {
        "bom.jsonl": as_lines.encode("utf-8-sig"),
        "lines.json": as_lines.encode(),
        "list.json": json.dumps(rows, indent=1).encode("utf-8-sig"),
        "table.csv": 'prompt,answer\r\nmüde,1\r\n"b",2\r\n'.encode("utf-8-sig"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        found = prompts.read_prompts(str(tmp_path / name))
        assert [(row["prompt"][0]["content"], row["answer"]) for row in found] == [
            ("müde", "1"),
            ("b", "2"),
        ], name
    for name, content, message in (
        (
            "latin.jsonl",
            b'{"prompt": "a"}\n{"prompt": "m\xfcde"}\n',
            r"latin.jsonl: line 2 is not UTF-8: byte 0xfc at 14",
        ),
        ("latin.csv", b"prompt\nm\xfcde\n", r"latin.csv: line 2 is not UTF-8"),
        ("bad.json", b'[{"prompt": "a"},]', r"bad.json is not JSON"),
        (
            "odd.csv",
            b"text\na\n",
            r"odd.csv: row 1: no column prompt, instruction, question or turns, only text",
        ),
        (
            "notes.txt",
            b"hello",
            r"a file must be one of .jsonl, .json, .csv, .parquet, got .*notes.txt",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            prompts.read_prompts(str(tmp_path / name))


def test_heldout_prompts_are_never_trained_on(tmp_path):
    rows = prompts.read_prompts(
        lines(tmp_path / "p.jsonl", *({"prompt": str(n)} for n in range(30)))
    )
    train, heldout = prompts.split_heldout(rows, None)
    assert (len(train), len(heldout)) == (27, 3)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {row["prompt_id"] for row in prompts.split_heldout(shuffled, None)[1]} == {
        row["prompt_id"] for row in heldout
    }
    assert prompts.without(rows, heldout) == train
    with pytest.raises(ValueError, match="heldout_size"):
        prompts.split_heldout(rows, 30)
    with pytest.raises(ValueError, match="every one of them is held out"):
        prompts.without(heldout, heldout)
