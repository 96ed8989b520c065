"""The cells of prompt files: answers, ids and skills, and names that stand twice."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_rows import read_prompts

from pad_fast.evaluation.evaluated_model import accuracy_by_prompt
from pad_fast.pipeline.cells import cell_text


def written(path: Path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("18", "18"),
        (" a b ", " a b "),
        (18, "18"),
        (10**30, "1" + "0" * 30),
        (5.0, "5"),  # beside a gap, a column of whole numbers is one of floats
        (-0.5, "-0.5"),
        (1e22, "1" + "0" * 22),
        (1e-7, "0.0000001"),
        (Decimal("2.50"), "2.5"),
        (Decimal("100"), "100"),
        (None, None),
        ("", None),
        (" \t", None),
    ],
)
def test_a_cell_is_a_text_or_a_number(value, text):
    assert cell_text(value, "here") == text


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), Decimal("nan"), ["5"], {"a": 1}, True, b"5"]
)
def test_other_cells_are_refused(value):
    with pytest.raises(ValueError, match=r"^line 3: answer must be a "):
        cell_text(value, "line 3: answer")
    with pytest.raises(ValueError, match=r"^here must be a text or a number, got datetime"):
        cell_text(datetime.date(2024, 1, 1), "here")


@pytest.mark.parametrize("column", ["answer", "prompt_id", "skill"])
@pytest.mark.parametrize("cell", ["NaN", '["5"]', '{"value": 5}', "true", "-Infinity"])
def test_the_line_of_a_wrong_cell_is_named(tmp_path, column, cell):
    text = f'{{"prompt": "a"}}\n{{"prompt": "b", "{column}": {cell}}}\n'
    with pytest.raises(ValueError, match=rf"p.jsonl: line 2: {column} must be a "):
        read_prompts(written(tmp_path / "p.jsonl", text))


def test_a_blank_cell_is_no_answer(tmp_path):
    text = 'prompt,answer,skill\nWhat is 2+3?,5,sum\nSay hello.,,\nWhat is 1000+234?,"1,234",sum\n'
    rows = read_prompts(written(tmp_path / "answers.csv", text))
    assert [row["answer"] for row in rows] == ["5", None, "1234"]
    assert [row["skill"] for row in rows] == ["sum", None, "sum"]
    said = ["#### 5", "hello", "It is 1,233"]
    greedy = [{**row, "completions": [text]} for row, text in zip(rows, said, strict=True)]
    for rule in ("exact", "flexible-extract"):
        assert list(accuracy_by_prompt(greedy, rule)) == [1.0, None, 0.0]


def test_an_answer_beside_a_gap_is_no_float(tmp_path):
    table = pa.table({"prompt": ["a", "b"], "answer": pa.array([5.0, None])})
    pq.write_table(table, tmp_path / "p.parquet")
    rows = read_prompts(str(tmp_path / "p.parquet"))
    assert [row["answer"] for row in rows] == ["5", None]
    pq.write_table(
        table.set_column(1, "answer", pa.array([5.0, float("nan")])), tmp_path / "p.parquet"
    )
    with pytest.raises(ValueError, match="row 2: answer must be a finite number or blank, got nan"):
        read_prompts(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_one(tmp_path, end):
    csv = end.join(["prompt,answer", "What is 1+1?,2", "What is 2+2?,4", ""])
    lines = end.join(json.dumps({"prompt": f"What is {n}+{n}?", "answer": 2 * n}) for n in (1, 2))
    for name, text in (("p.csv", csv), ("p.jsonl", lines), ("p.json", lines)):
        rows = read_prompts(written(tmp_path / name, text))
        assert [row["answer"] for row in rows] == ["2", "4"], name
    quoted = f'prompt,answer{end}"two{end}lines",1{end}'
    (row,) = read_prompts(written(tmp_path / "q.csv", quoted))
    assert row["prompt"][0]["content"] == f"two{end}lines"
    latin = f"prompt{end}a{end}".encode() + b"m\xfc"
    with pytest.raises(ValueError, match="line 3 is not UTF-8"):
        read_prompts(written(tmp_path / "l.csv", latin))


def test_other_separators_are_no_line_ends(tmp_path):
    text = json.dumps({"prompt": "a\u2028b\x0cc\x85d"}, ensure_ascii=False)
    (row,) = read_prompts(written(tmp_path / "p.jsonl", text))
    assert row["prompt"][0]["content"] == "a\u2028b\x0cc\x85d"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,answer\na,1\nb,1,234\n", "row 2 has more cells than the 2 of the first"),
        ("p.csv", "prompt,answer,answer\na,1,2\n", "the column 'answer' stands twice"),
        ("p.csv", 'prompt,answer\na,1\n"b,2\nc,3\n',
         "row 2, which begins in line 3, cannot be read: unexpected end of data"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "answer": 1, "answer": 2}\n',
         "line 2: the key 'answer' stands twice"),
        ("p.json", '[{"prompt": "a", "prompt": "b", "prompt": "c"}]',
         "p.json: row 1, line 1: the key 'prompt' stands 3 times"),
    ],
)  # fmt: skip
def test_what_stands_twice_or_nowhere_is_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(written(tmp_path / name, text))
