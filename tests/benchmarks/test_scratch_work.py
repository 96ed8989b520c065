"""The teacher of long scratch work: its answers, and the world it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.evidence.worlds import SCRATCH, TINY
from pad_fast.evaluation.answers import exact_match

ROOT = Path(__file__).resolve().parents[2]


def test_scratch_work_is_long_and_right(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from make_scratch_world import LONGEST, scratch_work
    from tiny_world.tasks import draw_distinct
    from tiny_world.tokenizer import build

    tokenizer = build()
    lengths = {"long": 0, "short": 0}
    for task in draw_distinct(0, "heldout", 300):
        text = scratch_work(task)
        ids, short = (tokenizer(part)["input_ids"] for part in (text, task.response))
        assert exact_match(text, task.answer)
        assert not any(exact_match(f"{text} wrong {slip}", task.answer) for slip in task.slips)
        assert tokenizer.unk_token_id not in ids
        assert len(ids) < LONGEST
        lengths["long"] += len(ids)
        lengths["short"] += len(short)
    assert lengths["long"] > 4 * lengths["short"]
    assert SCRATCH.longest == LONGEST


def test_its_tool_makes_a_teacher_of_the_usual_prompts_and_students(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_scratch_world

    place = tmp_path / "students" / "scratch"
    make_scratch_world.main(["--out", str(place), "--max-steps", "1"])
    facts = json.loads((place / "facts.json").read_text())["teacher"]
    assert facts["steps"] == 1
    assert facts["greedy_accuracy"]["all"] > 0.8  # one step leaves the embedded teacher as good
    assert SCRATCH.teacher(tmp_path) == place / "teacher"
    assert (place / "teacher" / "tokenizer.json").exists()
    assert SCRATCH.prompts(tmp_path, "heldout", 5) == TINY.prompts(tmp_path, "heldout", 5)
    assert SCRATCH.student(tmp_path, 1, None) == TINY.student(tmp_path, 1, None)
