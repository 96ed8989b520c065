"""A run folder that lost a file: the file is named, and made again or asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import failing
from worlds import changed_config, contents

from pad_fast import cli
from pad_fast.files.own_files import read_json, write_json
from pad_fast.pipeline.parquet_rows import write_rows
from pad_fast.pipeline.run_folder import Metrics

# A file of each kind that a finished run can make again.
MADE_AGAIN = [
    "prompts.parquet",
    "heldout/prompts.parquet",
    "heldout/samples/part-00001.parquet",
    "heldout/groups/part-00000.parquet",
    "round-01/samples/part-00002.parquet",
    "round-02/scores/part-00001.parquet",
    "evaluation/teacher.json",
    "evaluation/student-01.parquet",
    "evaluation/samples/student-00/greedy/part-00000.parquet",
    "evaluation/samples/student-01/fresh/part-00001.parquet",
    "evaluation/samples/student-02/scored/part-00000.parquet",
    "evaluation/samples/seqkd/fixed/part-00000.parquet",
    "seqkd/answers/part-00002.parquet",
    "metrics.jsonl",
]
# What nothing reads any more, and a cache.
NOT_MISSED = ["teacher_cache/part-*.sqlite", "round-02/student/README.md"]


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of a finished run, with its config beside it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    changed_config(finished, tmp_path, rounds=2, baseline="seqkd")
    return tmp_path


def lines(path: Path) -> dict[tuple, dict]:
    """The numbers of metrics.jsonl by step, without those of the questions."""
    found: dict[tuple, dict] = {}
    for record in Metrics(path).records:
        key = record["round"], record["step"], record["phase"], record.get("name")
        values = {name: value for name, value in record.items() if not name.startswith("mcq/")}
        found.setdefault(key, {}).update(values)
    return found


@pytest.mark.usefixtures("no_report")
def test_what_can_be_made_again_is_named_and_made_again(finished, copied, caplog):
    run = copied / "run"
    for name in (*MADE_AGAIN, *NOT_MISSED):
        next(run.glob(name)).unlink()
    assert cli.main(["run", str(copied / "config.yaml")]) == 0
    assert contents(run) == contents(finished / "run")
    assert lines(run / "metrics.jsonl") == lines(finished / "run" / "metrics.jsonl")
    named = [name for name in MADE_AGAIN if str(run / name) in caplog.text]
    assert (len(named), "so are 6 more files" in caplog.text) == (8, True)


def test_a_manifest_that_is_gone_stops_the_run(copied, capsys):
    (copied / "run" / "run.json").unlink()
    message = "and no run.json, which says what made it"
    assert message in failing(capsys, "run", copied / "config.yaml")
    for path in ("round-01", "round-02", "evaluation", "heldout", "metrics.jsonl", "teacher_cache"):
        whole = copied / "run" / path
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
        assert message in failing(capsys, "sample", copied / "config.yaml", "--seed", 1)
    assert "without a run.json" in failing(capsys, "run", copied / "run")
    (copied / "run" / "run.json").write_text('{"format"')
    assert "run.json is damaged: it is not JSON" in failing(capsys, "run", copied / "config.yaml")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
             "tokenizer_config.json", "chat_template.jinja", "trainer_state.json"],
)  # fmt: skip
def test_a_student_without_one_of_its_files_is_not_used(copied, capsys, name):
    for student in ("round-01/student", "seqkd/student"):
        path = copied / "run" / student / name
        content = path.read_bytes()
        path.unlink()
        error = failing(capsys, "report", copied / "config.yaml")
        assert f"{student} has lost {name}; put back what is missing" in error
        path.write_bytes(content)


def test_other_weights_are_not_used(copied, capsys):
    shutil.copy(
        copied / "run" / "round-02" / "student" / "model.safetensors",
        copied / "run" / "round-01" / "student",
    )
    error = failing(capsys, "run", copied / "config.yaml")
    assert "round-01/student has other weights than those that were trained" in error


@pytest.mark.usefixtures("no_report")
def test_a_student_that_is_gone_is_trained_again(finished, copied, capsys, caplog):
    run, manifest = copied / "run", copied / "run" / "run.json"
    shutil.rmtree(run / "round-01" / "student")
    shutil.rmtree(run / "seqkd" / "student")
    assert cli.main(["run", str(copied / "config.yaml")]) == 0
    assert contents(run) == contents(finished / "run")
    assert f"{run / 'round-01' / 'student'} was made and is missing" in caplog.text
    # If training gives other weights, the samples of the next round are not this student's.
    shutil.rmtree(run / "round-01" / "student")
    changed = read_json(manifest)
    changed["students"]["round-01/student"]["sha256"] = "0" * 64
    write_json(manifest, changed)
    capsys.readouterr()
    assert cli.main(["train", str(copied / "config.yaml")]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "training it again gave other weights than those that later files" in error


def test_a_damaged_shard_is_named(copied, capsys):
    shard = copied / "run" / "round-01" / "scores" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    shutil.rmtree(copied / "run" / "round-01" / "samples")
    error = failing(capsys, "sample", copied / "config.yaml")
    assert "part-00001.parquet is damaged (" in error


def test_prompts_that_are_others_now_are_not_taken(copied, finished, capsys):
    manifest = copied / "run" / "run.json"
    changed = read_json(manifest)
    changed["prompts"]["digests"]["heldout"] = "0" * 64
    write_json(manifest, changed)
    (copied / "run" / "heldout" / "prompts.parquet").unlink()
    error = failing(capsys, "evaluate", copied / "config.yaml")
    assert "heldout/prompts.parquet is missing, and reading the prompts again gives other" in error


def test_heldout_prompts_of_a_start_that_was_stopped_are_not_kept(world, tmp_path):
    (tmp_path / "run" / "heldout").mkdir(parents=True)
    write_rows(tmp_path / "run" / "heldout" / "prompts.parquet", [{"prompt_id": "old"}])
    config = changed_config(world, tmp_path, heldout=None, heldout_size=0, num_generations=2)
    assert cli.main(["sample", str(config)]) == 0
    assert not (tmp_path / "run" / "heldout" / "prompts.parquet").exists()


def test_the_walk_knows_every_kind_of_file(finished):
    """Each file that a run writes stands in a test of this module, or is written every time."""
    known = {*MADE_AGAIN, *NOT_MISSED, "run.json", ".lock", "costs.jsonl"}
    kinds = {_kind(name) for name in known} | {"round/student", "seqkd/student", "report"}
    run = finished / "run"
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    missing = {str(path) for path in files if _kind(str(path)) not in kinds}
    assert missing == set()


def _kind(name: str) -> str:
    """A path without numbers of rounds and shards, and without names of models and their files."""
    parts = Path(name).parts
    if "student" in parts:
        return "seqkd/student" if parts[0] == "seqkd" else "round/student"
    if parts[0] == "report":
        return "report"
    if parts[:2] == ("evaluation", "samples"):
        return f"evaluation/samples/{parts[3].partition('.')[0]}"
    if parts[0] == "evaluation":
        return f"evaluation/{Path(name).suffix}"
    if parts[0].startswith("round-"):
        return f"round/{parts[1]}"
    return parts[0] if len(parts) == 1 else "/".join((parts[0], parts[1].rpartition("-")[0]))
