"""Run folders that cannot be written to, are in use, hold something else, or are damaged."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import worlds

from .attempt import Case, Spoil

# Takes the run folder's lock as a run does, says so and waits for its standard input's end.
HOLDER = """
import sys
from pathlib import Path
from pad_fast.pipeline.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def _a_file(place: str) -> Spoil:
    def spoil(folder: Path) -> Mapping[str, Any]:
        (folder / "file").write_text("kept")
        return {"output_dir": place}

    return spoil


def _a_dangling_link(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "gone")


def _in_use(folder: Path) -> None:
    """Another process holds the lock until this one ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdout is not None
    holder.stdout.readline()


def _cut(name: str, keep: float = 0.5) -> Spoil:
    """A file of the run that lost its end, as after a full disk or a broken copy."""

    def spoil(folder: Path) -> None:
        path = folder / "run" / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return spoil


def _flipped(name: str) -> Spoil:
    """A file of the run with one other byte in its middle, as of a bad disk."""

    def spoil(folder: Path) -> None:
        path = folder / "run" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return spoil


def _before_training(spoil: Spoil) -> Spoil:
    """As if the run had been killed after scoring, so that the scores are read once more."""

    def spoil_both(folder: Path) -> None:
        shutil.rmtree(folder / "run" / "round-01" / "student")
        spoil(folder)

    return spoil_both


def _removed(name: str) -> Spoil:
    return lambda folder: (folder / "run" / name).unlink()


def _bad_line(folder: Path) -> None:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], '{"round": 1, \n', *lines[2:]]))


def _other_format(folder: Path) -> None:
    path = folder / "run" / "run.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)
    path.write_text(json.dumps({**manifest, "format": 1}))


def _other_teacher(folder: Path) -> None:
    worlds.save_model(folder / "teacher", 5)


def _other_prompts(folder: Path) -> None:
    worlds.write_prompts(folder / "train.jsonl", 8, start=3)


def _small_files() -> None:
    """No file may grow beyond 20 kB, as under a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def _started(what: str, spoil: Spoil | None, *says: str, **more: Any) -> Case:
    """A case of a run that was finished before."""
    return Case("folders", what, says, spoil, started=True, **more)


CASES = (
    Case("folders", "output_dir is a file", ("output_dir", "is a file"), _a_file("./file")),
    Case("folders", "output_dir within a file", ("output_dir", "is a file"), _a_file("./file/run")),
    Case(
        "folders",
        "a link to nowhere",
        ("output_dir", "is a link to"),
        _a_dangling_link,
        words=("--output_dir", "{folder}/link"),
    ),
    Case(
        "folders",
        "a folder without a run, in place of the YAML file",
        ("student", "run.json"),
        words=("CONFIG=./student",),
    ),
    Case("folders", "another process works in it", ("output_dir", "another pad-fast"), _in_use),
    _started(
        "another setting",
        None,
        "pad-fast: num_generations: ",
        "3",
        "4",
        words=("--num_generations", "4"),
    ),
    _started("another teacher in its place", _other_teacher, "teacher", "not the model"),
    _started("other prompts in their place", _other_prompts, "prompts", "train.jsonl"),
    _started("the format of another version", _other_format, "output_dir", "format 1", "format 2"),
    _started("no run.json", _removed("run.json"), "no run.json", "put"),
    _started("half of run.json", _cut("run.json"), "run.json", "damaged"),
    _started("a bad line in metrics.jsonl", _bad_line, "metrics.jsonl", "line 3"),
    _started(
        "half of a shard of scores",
        _before_training(_cut("round-01/scores/part-00001.parquet")),
        "round-01/scores/part-00001.parquet",
        "damaged",
    ),
    _started(
        "another byte in a shard of scores",
        _before_training(_flipped("round-01/scores/part-00000.parquet")),
        "round-01/scores/part-00000.parquet",
    ),
    _started("half of an evaluation", _cut("evaluation/student-01.json"), "student-01.json"),
    _started(
        "half of a student's weights",
        _cut("round-01/student/model.safetensors"),
        "round-01/student",
    ),
    _started(
        "a student without its config.json",
        _removed("round-01/student/config.json"),
        "round-01/student",
        "config.json",
    ),
    Case(
        "folders",
        "files may not grow, as under a quota",
        ("file",),
        code=1,
        reads=9,
        limit=_small_files,
    ),
)
