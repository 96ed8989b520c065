"""Files of prompts that cannot be read, or not all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .attempt import Case, Spoil

GOOD = '{"prompt": "1+1=?"}\n'


def _file(name: str, content: str | bytes) -> Spoil:
    """Prompts in a file of their own."""

    def spoil(folder: Path) -> Mapping[str, Any]:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(data)
        return {"prompts": f"./{name}"}

    return spoil


def _lines(what: str, bad: str | bytes, *says: str, file: str = "bad.jsonl") -> Case:
    """A file of JSON lines whose second line is bad."""
    bad = bad if isinstance(bad, bytes) else bad.encode("utf-8", "surrogatepass")
    return Case("files", what, (file, *says), _file(file, GOOD.encode() + bad + b"\n"))


def _folder(folder: Path) -> Mapping[str, Any]:
    (folder / "somewhere").mkdir()
    return {"prompts": "./somewhere"}


def _damaged_parquet(folder: Path) -> Mapping[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "bad.parquet"
    pq.write_table(pa.table({"prompt": [f"{n}+1=?" for n in range(500)]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    return {"prompts": "./bad.parquet"}


CASES = (
    Case(
        "files",
        "no such file of prompts",
        ("prompts", "none.jsonl"),
        settings={"prompts": "./none.jsonl"},
    ),
    Case("files", "an empty file", ("bad.jsonl", "empty"), _file("bad.jsonl", "")),
    Case("files", "a folder", ("prompts", "somewhere"), _folder),
    Case("files", "another ending", ("prompts", "bad.doc"), _file("bad.doc", "1+1=?")),
    _lines("a line that is not JSON", '{"prompt": ', "line 2"),
    _lines("a line without a prompt", '{"question_text": "1+1=?"}', "line 2"),
    _lines("a prompt that is a number", '{"prompt": 5}', "line 2"),
    _lines("an empty prompt", '{"prompt": " "}', "line 2"),
    _lines("a message without a role", '{"prompt": [{"content": "x"}]}', "line 2", "role"),
    _lines("an answer that is a list", '{"prompt": "1+1=?", "answer": [2]}', "line 2", "answer"),
    _lines("an answer that is NaN", '{"prompt": "1+1=?", "answer": NaN}', "line 2", "answer"),
    _lines("a key that stands twice", '{"prompt": "a", "prompt": "b"}', "line 2", "prompt"),
    _lines("a lone surrogate", '{"prompt": "\\ud800 is no text"}', "line 2"),
    _lines("bytes that are not UTF-8", b'{"prompt": "\xff\xfe"}', "line 2", "UTF-8"),
    _lines("brackets beyond the parser", '{"prompt": ' + "[" * 100_000, "line 2"),
    _lines("a number of 5,000 digits", '{"prompt": "a", "answer": ' + "9" * 5_000 + "}", "line 2"),
    _lines(
        "a prompt beyond the window",
        '{"prompt": "' + "1" * 5_000 + '"}',
        "line 2",
        "250",
        "long_prompts",
    ),
    Case(
        "files",
        "a CSV row with too many cells",
        ("bad.csv", "row 2", "quotes"),
        _file("bad.csv", "prompt,answer\n1+1=?,2\n1+2=?,3,4\n"),
    ),
    Case(
        "files",
        "a CSV file without a prompt",
        ("bad.csv", "prompt"),
        _file("bad.csv", "a,b\n1,2\n"),
    ),
    Case("files", "damaged pages of Parquet", ("bad.parquet",), _damaged_parquet),
    Case(
        "files",
        "held-out prompts that leave none",
        ("prompts", "held out"),
        settings={"heldout": "./train.jsonl"},
    ),
)
