"""Files of prompts, and those that are held out."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import worlds
from prompt_rows import read_prompts

from pad_fast.pipeline import prompts
from pad_fast.pipeline.parquet_rows import write_rows
from pad_fast.pipeline.preflight import read_split


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
    rows = read_prompts(source)
    assert [row["prompt"][-1] for row in rows] == [
        {"role": "user", "content": text} for text in ("one", "two", "three")
    ]
    assert [row["answer"] for row in rows] == ["3", None, None]
    assert rows[1]["prompt_id"] == "x"
    assert rows[2]["prompt"][0] == {"role": "system", "content": "s"}
    assert rows[2]["place"].endswith("line 4")
    pq.write_table(pq.read_table(_parquet(tmp_path, rows)), tmp_path / "again.parquet")
    again = read_prompts(str(tmp_path / "again.parquet"))
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
    assert len(read_prompts(str(tmp_path / "saved"))) == 2
    folder = tmp_path / "plain"
    folder.mkdir()
    data.to_json(folder / "train.jsonl")
    assert len(read_prompts(str(folder))) == 2
    with pytest.raises(ValueError, match="no dataset"):
        read_prompts(str(tmp_path / "nothing"))


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
        ([{"instruction": "a", "input": ["b"]}], r"line 1: input must be a string, got \['b'\]"),
        ([{"instruction": "a", "instances": ["b"]}], "line 1: instances must be a list of objects"),
        ([{"turns": []}], "line 1: turns must be a list that begins with a text"),
        ([{"turns": [3]}], "line 1: turns must be a list that begins with a text"),
        ([{"turns": [" "]}], "line 1: turns: the prompt is empty"),
        ([], "is empty"),
        ([""], "holds no prompts"),
    ],
)
def test_bad_prompts_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(lines(tmp_path / "p.jsonl", *rows))


def contents(source: str) -> list[str]:
    return [row["prompt"][-1]["content"] for row in read_prompts(source)]


def test_an_instruction_is_joined_with_its_input(tmp_path, caplog):
    alpaca = [
        {"instruction": "Translate to German.", "input": "The boat is late."},
        {"instruction": "Translate to German.", "input": "The tea is cold.", "output": "Der Tee"},
        {"instruction": "Name a colour.", "input": ""},
        {"instruction": "Name a colour.", "input": None, "context": "  "},
        {"instruction": "Who was late?", "context": "The boat was.", "response": "The boat."},
    ]
    wanted = [
        "Translate to German.\n\nThe boat is late.",
        "Translate to German.\n\nThe tea is cold.",
        "Name a colour.",
        "Who was late?\n\nThe boat was.",
    ]
    assert contents(lines(tmp_path / "p.jsonl", *alpaca)) == wanted
    assert "1 rows repeat" in caplog.text
    assert "not read" not in caplog.text
    table = "instruction,input\nTranslate.,A boat\nTranslate.,A tea\nName it.,\n"
    (tmp_path / "p.csv").write_text(table)
    found = contents(str(tmp_path / "p.csv"))
    assert found == ["Translate.\n\nA boat", "Translate.\n\nA tea", "Name it."]


def test_an_instruction_is_joined_with_each_of_its_instances(tmp_path, caplog):
    seed = {
        "id": "t0",
        "prompt_id": "t0",
        "instruction": "Sort these words.",
        "instances": [
            {"input": "pear, apple, fig", "output": "apple, fig, pear"},
            {"input": "b a", "output": "a b"},
        ],
        "is_classification": False,
    }
    other = {**seed, "prompt_id": "t1", "instruction": "Say hello."}
    other["instances"] = [{"input": "", "output": "hello"}, {"output": "hello!"}]
    none = {**other, "prompt_id": "t2", "instruction": "Say hi.", "instances": []}
    source = lines(tmp_path / "p.jsonl", seed, other, none)
    assert contents(source) == [
        "Sort these words.\n\npear, apple, fig",
        "Sort these words.\n\nb a",
        "Say hello.",
        "Say hi.",
    ]
    ids = [row["prompt_id"] for row in read_prompts(source)]
    assert ids == ["t0", "t0-1", "t1", "t2"]
    assert not caplog.records


def test_the_first_of_several_turns_is_the_prompt(tmp_path, caplog):
    bench = {"question_id": 1, "category": "writing", "turns": ["Two lines about rain.", "Snow."]}
    arena = {"turns": [{"content": "One line about fog."}]}
    source = lines(tmp_path / "p.jsonl", bench, arena)
    assert contents(source) == ["Two lines about rain.", "One line about fog."]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{source}: not read into the prompts: turns after the first (of 1 rows)"
    )


def test_columns_that_look_like_content_are_named(tmp_path, caplog):
    rows = [
        {"question": "What is late?", "system_prompt": "Be brief.", "history": [["a", "b"]]},
        {"question": "And what is cold?", "system_prompt": "Be brief.", "input": "tea"},
        {"prompt": "a", "instruction": "b", "premise": "Some words", "tag": "one", "score": 0.5},
        {
            "prompt": "c",
            "response": "Some words",
            "id": "x y",
            "system_prompt": " ",
            "input": math.nan,
        },
    ]
    source = lines(tmp_path / "p.jsonl", *rows)
    assert len(read_prompts(source)) == 4
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{source}: not read into the prompts: system_prompt (of 2 rows), history (of 1 rows), "
        "input (of 1 rows), instruction (of 1 rows), premise (of 1 rows)"
    )


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
        found = read_prompts(str(tmp_path / name))
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
        ("bad.json", b'[{"prompt": "a"},]', r"bad.json: row 2, line 1 is not JSON"),
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
            read_prompts(str(tmp_path / name))


def test_heldout_prompts_are_never_trained_on(tmp_path):
    rows = read_prompts(lines(tmp_path / "p.jsonl", *({"prompt": str(n)} for n in range(30))))
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


@pytest.mark.parametrize("setting", ["prompts", "heldout", "responses"])
def test_a_source_that_is_wrong_is_named_by_its_setting(world, tmp_path, setting):
    given = {"prompts": None} if setting == "responses" else {"prompts": str(world / "train.jsonl")}
    (tmp_path / "notes.txt").write_text("What is 1 + 1?\n")
    for source, message in (
        ("notes.txt", "a file must be one of .jsonl"),
        ("none.csv", "no such file"),
        ("none", ".* is no file and no dataset with the split"),
    ):
        values = {**given, setting: str(tmp_path / source)}
        with pytest.raises(ValueError, match=f"^{setting}: {message}"):
            read_split(worlds.run_config(world, **values), list)
