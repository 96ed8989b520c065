"""The checker of answer files: our own files pass, spoiled ones are named, real ones pass."""

import json
import os
from pathlib import Path

import benchmark_files
import pytest
from benchmark_files import MODEL

from pad_fast.evaluation.benchmarks.answer_check import check_answers
from pad_fast.evaluation.benchmarks.catalogue import BENCHMARKS

FORMS = [(name, form) for name, each in BENCHMARKS.items() for form in each.forms]
REAL = os.environ.get("PAD_FAST_ANSWERS")
needs_real_files = pytest.mark.skipif(
    REAL is None, reason="PAD_FAST_ANSWERS names no folder with answer files of the official tools"
)


def written(folder: Path, name: str, form: str, answers=None):
    questions = benchmark_files.read_questions(folder, name)
    answers = answers or benchmark_files.answers_to(questions)
    return questions, benchmark_files.write_answers(folder, BENCHMARKS[name].form(form), answers)


def spoiled(path: Path, change) -> Path:
    """The file with its rows changed."""
    text = path.read_text()
    if text.startswith("["):
        rows = change(json.loads(text))
        path.write_text(json.dumps(rows))
    else:
        rows = change([json.loads(line) for line in text.splitlines()])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_own_files_pass(tmp_path, name, form):
    questions, path = written(tmp_path, name, form)
    found = check_answers(path, questions, MODEL)
    assert found.faults == []
    assert found.form is BENCHMARKS[name].form(form)
    assert set(found.turns().values()) == {
        answer.turns for answer in benchmark_files.answers_to(questions)
    }


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_missing_answer_is_named(tmp_path, name, form):
    questions, path = written(tmp_path, name, form)
    found = check_answers(spoiled(path, lambda rows: rows[:-1]), questions)
    assert len(found.faults) == 1
    assert f"1 of {len(questions)} questions have no answer" in found.faults[0]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_answer_given_twice_is_named(tmp_path, name, form):
    questions, path = written(tmp_path, name, form)
    found = check_answers(spoiled(path, lambda rows: [*rows, rows[-1]]), questions)
    assert len(found.faults) == 1
    assert "is answered at" in found.faults[0]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_answer_to_no_question_is_named(tmp_path, name, form):
    questions, path = written(tmp_path, name, form)
    found = check_answers(path, questions[:-1])
    assert any("is none of the questions" in fault for fault in found.faults)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_another_model_is_named(tmp_path, name, form):
    questions, path = written(tmp_path, name, form)
    key = BENCHMARKS[name].form(form).model

    def renamed(rows):
        rows[1][key] = "another"
        return rows

    assert (
        f"{key} must be '{MODEL}', got 'another'"
        in check_answers(spoiled(path, renamed), questions).faults[0]
    )
    assert check_answers(path, model="third").faults


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_missing_and_a_strange_field_are_named(tmp_path, name, form):
    _, path = written(tmp_path, name, form)
    key = BENCHMARKS[name].form(form).model

    def changed(rows):
        rows[0]["colour"] = "red"
        del rows[1][key]
        return rows

    found = " ".join(check_answers(spoiled(path, changed)).faults)
    assert "colour is no field of this form" in found
    assert f"{key} is missing" in found


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_fields_in_another_order_are_named(tmp_path, name, form):
    _, path = written(tmp_path, name, form)
    found = check_answers(spoiled(path, lambda rows: [dict(reversed(row.items())) for row in rows]))
    assert "must have its fields in the order" in found.faults[0]


@pytest.mark.parametrize(
    ("name", "form", "change", "message"),
    [
        ("alpaca_eval", "json", lambda r: r.update(output=None), "output must be a text, got None"),
        ("arena_hard", "v2", lambda r: r.update(tstamp="now"), "tstamp must be a number"),
        ("arena_hard", "v2", lambda r: r.update(uid=3), "uid must be a text, got 3"),
        (
            "arena_hard",
            "v2",
            lambda r: r["messages"][1].update(content="bare text"),
            "messages[1].content must be an object, got 'bare text'",
        ),
        ("arena_hard", "v2", lambda r: r["messages"].pop(), "got the roles ['user']"),
        (
            "arena_hard",
            "v2",
            lambda r: r["metadata"]["list_count"].pop("ordered"),
            "metadata.list_count.ordered is missing",
        ),
        (
            "arena_hard",
            "legacy",
            lambda r: r["choices"][0]["turns"][0].update(token_len="7"),
            "choices[0].turns[0].token_len must be a whole number",
        ),
        ("mt_bench", "jsonl", lambda r: r.update(question_id=True), "must be a whole number"),
        ("mt_bench", "jsonl", lambda r: r["choices"][0]["turns"].pop(), "must have 2 turns, got 1"),
        (
            "mt_bench",
            "jsonl",
            lambda r: r["choices"][0].update(turns=["fine", "$ERROR$"]),
            "stands for a failed request",
        ),
    ],
)
def test_wrong_types_are_named_with_their_place(tmp_path, name, form, change, message):
    questions, path = written(tmp_path, name, form)

    def changed(rows):
        change(rows[1])
        return rows

    faults = check_answers(spoiled(path, changed), questions).faults
    assert any(message in fault for fault in faults), faults
    place = "row 2" if path.suffix == ".json" else ": line 2: "
    assert any(place in fault for fault in faults)


def test_rows_out_of_order_are_named(tmp_path):
    questions, path = written(tmp_path, "mt_bench", "jsonl")
    found = check_answers(spoiled(path, lambda rows: rows[::-1]), questions)
    assert "rows must be sorted by question_id" in found.faults[0]
    questions, path = written(tmp_path, "alpaca_eval", "json")
    found = check_answers(spoiled(path, lambda rows: rows[::-1]), questions)
    assert "rows must be in the order of the questions" in found.faults[0]


def test_the_file_bears_the_models_name(tmp_path):
    _, path = written(tmp_path, "arena_hard", "v2")
    moved = path.rename(tmp_path / "other.jsonl")
    assert f"must be named {MODEL}.jsonl" in check_answers(moved).faults[0]


def test_lines_in_place_of_an_array(tmp_path):
    _, path = written(tmp_path, "alpaca_eval", "json")
    rows = json.loads(path.read_text())
    benchmark_files.write_lines(path, rows)
    assert "AlpacaEval reads one JSON array" in check_answers(path).faults[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no answers"),
        ('{"uid": 1', "line 1 is not JSON"),
        ('{"uid": "a"}\n[1]\n', "line 2: must be a JSON object, got list"),
        ('{"prompt": "a"}\n', "is no answer file"),
        ("[1, 2", "is not JSON"),
    ],
)
def test_what_is_no_answer_file(tmp_path, text, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"answers\.jsonl") as caught:
        check_answers(path)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="no such file"):
        check_answers(tmp_path / "none.jsonl")


@needs_real_files
@pytest.mark.parametrize(
    ("file", "model", "count"),
    [
        ("arena_hard_v0.1_answers_20.jsonl", "gpt-4-0613", 20),
        ("arena_hard_v2.0_answers_20.jsonl", "o3-mini-2025-01-31", 20),
        ("mt_bench_reference_answers.jsonl", "gpt-4", 30),
    ],
)
def test_files_of_the_official_tools_pass(tmp_path, file, model, count):
    path = tmp_path / f"{model}.jsonl"
    path.write_bytes((Path(str(REAL)) / file).read_bytes())
    found = check_answers(path, model=model)
    assert (found.faults, len(found.rows)) == ([], count)


@needs_real_files
def test_our_counts_and_fields_are_those_of_the_official_files(tmp_path):
    """Written again by us, a real answer has the same fields and the same counts."""
    from pad_fast.evaluation.benchmarks import arena_hard
    from pad_fast.evaluation.benchmarks.records import Answer, Question

    path = Path(str(REAL)) / "arena_hard_v2.0_answers_20.jsonl"
    for line in path.read_text().splitlines():
        row = json.loads(line)
        prompt, reply = (message["content"] for message in row["messages"])
        answer = Answer(
            Question(row["uid"], "", (prompt,)),
            (reply["answer"],),
            row["tstamp"],
            row["metadata"]["token_len"],
        )
        ours = arena_hard.answer_row(answer, row["model"])
        assert list(ours) == list(row)
        assert len(ours["ans_id"]) == len(row["ans_id"])
        assert {**ours, "ans_id": row["ans_id"]} == row
