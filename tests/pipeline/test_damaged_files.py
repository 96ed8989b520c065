"""A damaged file of a run is found when it is read, and is made again once it is set aside."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import failing
from worlds import changed_config, contents

from pad_fast import cli
from pad_fast.pipeline.run_folder import RunFolder

# Each damaged file, and what a run must lack to read it.
DAMAGED = {
    "prompts.parquet": None,
    "heldout/prompts.parquet": None,
    "heldout/samples/part-00001.parquet": "heldout/groups/part-00001.parquet",
    "heldout/groups/part-00000.parquet": None,
    "round-01/samples/part-00002.parquet": "round-01/scores/part-00002.parquet",
    "round-02/scores/part-00001.parquet": "round-02/student",
    "round-01/student/model.safetensors": None,
    "evaluation/teacher.json": None,
    "evaluation/student-02.parquet": None,
    "evaluation/samples/student-00/greedy/part-00000.parquet": "evaluation/student-00.json",
    "evaluation/samples/seqkd/fixed/part-00000.parquet": "evaluation/seqkd.json",
    "seqkd/answers/part-00002.parquet": "seqkd/student",
    "metrics.jsonl": None,
}


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    path.write_bytes(content)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of a finished run, with its config beside it and a path that a shell would split."""
    folder = tmp_path / "it's a run"
    shutil.copytree(finished / "run", folder / "run")
    changed_config(finished, folder, rounds=2, baseline="seqkd")
    return folder


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.slow
def test_every_damaged_file_is_found_and_made_again(finished, copied, capsys):
    run = copied / "run"
    for name, lacking in DAMAGED.items():
        flip(run / name)
        if lacking is not None:
            removed(run / lacking)
    named = []
    for _ in DAMAGED:
        assert cli.main(["run", str(copied / "config.yaml")]) == cli.BAD_INPUT
        error = capsys.readouterr().err.splitlines()[-1]
        named.append(next(name for name in DAMAGED if f"run/{name.split('/model')[0]}" in error))
        (command,) = re.findall(r"`(mv .*)`", error)
        assert "and the same command makes it again" in error
        subprocess.run(["sh", "-c", command], check=True)
    assert sorted(named) == sorted(DAMAGED)
    assert cli.main(["run", str(copied / "config.yaml")]) == 0
    aside = list(run.rglob("*.damaged"))
    assert len(aside) == len(DAMAGED)
    for path in aside:
        removed(path)
    assert contents(run) == contents(finished / "run")


def test_weights_are_compared_to_the_last_byte_when_they_are_loaded(copied, capsys, monkeypatch):
    """Opening a run reads no more than the ends of large files."""
    monkeypatch.setattr(RunFolder, "check_students", lambda self: None)
    for student, lacking in (("round-01/student", "student-01"), ("seqkd/student", "seqkd")):
        weights = copied / "run" / student / "model.safetensors"
        content = weights.read_bytes()
        flip(weights)
        samples = copied / "run" / "evaluation" / "samples" / lacking
        (samples / "greedy" / "part-00000.parquet").unlink()
        error = failing(capsys, "evaluate", copied / "config.yaml")
        assert f"{student}/model.safetensors is damaged: it is not as it was saved" in error
        weights.write_bytes(content)
        assert cli.main(["evaluate", str(copied / "config.yaml")]) == 0


def test_a_manifest_that_is_damaged_is_not_made_again(copied, capsys):
    manifest = copied / "run" / "run.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"seed": 7', '"seed": 3'))
    error = failing(capsys, "run", copied / "run")
    assert "run.json is damaged: it is not as it was written; put back a copy of it" in error
    assert 'remove its line "sha256"' in error
    checksum = text.index(',\n  "sha256"')
    manifest.write_text(text[:checksum] + "\n}\n")
    assert cli.main(["report", str(copied / "run")]) == 0


def test_the_line_of_damaged_metrics_is_named(copied, capsys):
    metrics = copied / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    for bad in ("{half\n", "\0\0\0\n", "[1]\n", '{"a": ' + "[" * 100_000 + "\n"):
        metrics.write_text("".join([*lines[:3], bad, *lines[3:]]))
        error = failing(capsys, "report", copied / "config.yaml")
        assert "metrics.jsonl: line 4 is damaged: " in error
