"""Files of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import records


def test_a_line_may_hold_the_separators_of_unicode(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\u0085three"}, {"text": "four"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n")
    assert records.json_lines(file) == rows


def test_records_are_read_as_they_were_added(tmp_path: Path) -> None:
    file = records.path(tmp_path, "some")
    assert records.load(tmp_path, "some") == []
    for number in (1, 2):
        records.append(file, {"number": number})
    assert records.load(tmp_path, "some") == [{"number": 1}, {"number": 2}]
