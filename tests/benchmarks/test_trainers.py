"""Whole trainers side by side: the same loss on the same tokens, and the table of their records."""

from __future__ import annotations

import json

import pytest
from measured import CPU, ROOFS, RUN

from benchmarks import tables, trainers
from benchmarks.contestants import OURS
from benchmarks.suites import SUITES
from benchmarks.trainers import TRAINER_CONTESTANTS, TRL, TrainerCase

TINY = TrainerCase("tiny", n=2, prompt=7, response=4, steps=2)
RENAMED = pytest.mark.filterwarnings("default")  # a peer's warnings are no errors of ours


def named(name: str) -> trainers.TrainerContestant:
    (found,) = (one for one in TRAINER_CONTESTANTS if one.name == name)
    return found


@RENAMED
def test_both_trainers_have_the_same_loss_on_the_same_tokens(monkeypatch) -> None:
    pytest.importorskip("trl")
    ours, theirs = (trainers.train(TINY, named(name)) for name in (OURS, TRL))
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert len(set(ours["losses"])) == len(ours["losses"]) == TINY.steps + 1
    # the prompt once and each response without its last token; whole sequences
    assert (ours["tokens"], theirs["tokens"]) == (7 + 2 * 3, 2 * (7 + 4))
    for found in (ours, theirs):
        assert len(found["times_ms"]) == TINY.steps
        assert found["rss_bytes"] is None or found["rss_bytes"] > 1 << 20
        assert json.loads(json.dumps(found)) == found


def test_pairs_are_the_responses_of_each_prompt_in_words() -> None:
    case = TrainerCase("tiny", n=4, prompt=3, response=3, steps=1)
    rows, found = case.rows(), trainers.pairs(case)
    assert len(rows) == 2
    assert len(found) == 4
    tokenizer = trainers.words(case.vocabulary)
    first = found[0]
    assert tokenizer(first["prompt"])["input_ids"] == rows[0]["prompt_ids"]
    assert tokenizer(first["chosen"] + "</s>")["input_ids"] == rows[0]["completion_ids"][0]
    assert tokenizer(found[1]["rejected"] + "</s>")["input_ids"] == rows[0]["completion_ids"][3]


def record(case: TrainerCase, name: str, **found) -> dict:
    return RUN | trainers._record(case, named(name), {"status": "ok"} | found)


def test_the_table_sets_ours_beside_theirs() -> None:
    figures = {"rss_bytes": 5 << 30, "tokens": 5120, "losses": [0.7, 0.69]}
    ours = record(TINY, OURS, median_ms=500.0, **figures)
    theirs = record(TINY, TRL, median_ms=2000.0, **figures)
    text = tables.LAYOUTS["trainers"]({TINY.label: [theirs, ours]})
    assert "| 2 | TRL DPOTrainer | 2.00 | – | 5,120 | 5,120 |" in text
    assert "| 2 | **pad_fast** PADTrainer | 0.500 | 0.250× | 5,120 | 5,120 | DPO, loss" in text
    absent = theirs | {"status": "absent", "reason": "No module named 'trl'", "median_ms": None}
    text = tables.LAYOUTS["trainers"]({TINY.label: [absent, ours]})
    assert "absent: No module named 'trl'" in text
    assert "| 0.500 | – |" in text


def test_what_a_process_says_becomes_the_record(monkeypatch) -> None:
    def run(command, **options):
        assert json.loads(command[3]) == {
            "model": "tiny",
            "n": 2,
            "prompt": 7,
            "response": 4,
            "steps": 2,
        }
        assert options["env"]["OMP_NUM_THREADS"] == "2"
        done = {OURS: (0, 'a log\n{"median_ms": 5.0}\n', ""), TRL: (1, "", "x\nImportError: no")}
        return type("Done", (), dict(zip(NAMES, done[command[4]], strict=True)))

    monkeypatch.setattr(trainers.subprocess, "run", run)
    found = trainers.run_trainer_case(TINY, TRAINER_CONTESTANTS, CPU, ROOFS)
    assert [one["contestant"] for one in found] == [TRL, OURS]
    assert (found[0]["status"], found[0]["reason"]) == ("absent", "ImportError: no")
    assert (found[1]["status"], found[1]["median_ms"]) == ("ok", 5.0)
    assert all(
        TINY.label in tables.line(one) or one["contestant"] in tables.line(one) for one in found
    )


NAMES = ("returncode", "stdout", "stderr")


def test_the_suite_has_one_pair_and_four() -> None:
    assert [case.n for case in SUITES["trainers"].cases] == [2, 8]
    assert {(case.prompt, case.response) for case in SUITES["trainers"].cases} == {(512, 128)}
