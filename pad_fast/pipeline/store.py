"""What a run writes, and how: every file and folder appears whole, under its name, or not at all.

A thing is written beside its place under a temporary name, flushed to the disk and renamed. So whatever carries its name is
complete, the presence of a file is the only record of progress, and a killed run goes on from the files alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

COLUMNS = {
    "prompt_id": pa.string(),
    "prompt_ids": pa.list_(pa.int32()),
    "answer": pa.string(),
    "skill": pa.string(),
    "completions": pa.list_(pa.string()),
    "completion_ids": pa.list_(pa.list_(pa.int32())),
    "finish_reasons": pa.list_(pa.string()),
    "teacher_logps": pa.list_(pa.float64()),
    "teacher_num_tokens": pa.list_(pa.int32()),
    "teacher_choice_probs": pa.list_(pa.float64()),
    "teacher_rewards": pa.list_(pa.float64()),
    "student_rewards": pa.list_(pa.float64()),
    "greedy_text": pa.string(),
    "ppd_loss": pa.float64(),
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; on success it is flushed and takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")) if temporary.is_dir() else ():
            _flush(file)
        _flush(temporary)
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException:
        _remove(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> pa.Table:
    """An Arrow table of `rows`, which all have the keys of the first; known columns get their fixed types."""
    columns = {name: pa.array([row[name] for row in rows], type=COLUMNS.get(name)) for name in rows[0]}
    return pa.table(columns)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write `rows` as one Parquet file."""
    with replacing(path) as temporary:
        pq.write_table(table(rows), temporary)


def read_rows(path: Path) -> list[Row]:
    """The rows of a Parquet file, or of all shards of a folder in their order."""
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.parquet"


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


class Metrics:
    """metrics.jsonl: one object a line, and no line twice when a killed phase is done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # the process was killed within the line
            os.truncate(path, sum(map(len, lines[:-1])))
            lines.pop()
        self.records: list[Row] = [json.loads(line) for line in lines]
        self._known = {self._key(record) for record in self.records}

    def add(self, round: int, step: int, phase: str, values: Row) -> None:
        """Append a line, unless the one about the same values of the same step is there."""
        record = {"round": round, "step": step, "phase": phase, **values}
        if self._key(record) in self._known:
            return
        self._known.add(self._key(record))
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget(self, phase: str) -> None:
        """Drop the lines of a phase that is done anew, as nothing of it was kept."""
        self.records = [record for record in self.records if record["phase"] != phase]
        self._known = {self._key(record) for record in self.records}
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")

    def last_step(self, round: int, phase: str) -> int:
        """The last step that a phase told of, 0 if none."""
        return max((record["step"] for record in self.records if (record["round"], record["phase"]) == (round, phase)), default=0)

    def means(self, round: int, phase: str) -> dict[str, float]:
        """The mean over the steps of each number that a phase told."""
        found: dict[str, list[float]] = {}
        for record in self.records:
            if (record["round"], record["phase"]) == (round, phase):
                for name in record.keys() - {"round", "step", "phase"}:
                    found.setdefault(name, []).append(record[name])
        return {name: sum(values) / len(values) for name, values in sorted(found.items())}

    @staticmethod
    def _key(record: Row) -> tuple[Any, ...]:
        return record["round"], record["step"], record["phase"], record.get("name"), *sorted(record)


class RunFolder:
    """Paths of one run, its manifest and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest_path = root / "run.json"

    def round(self, index: int) -> Path:
        return self.root / f"round-{index:02d}"

    def student(self, index: int) -> Path:
        return self.round(index) / "student"

    def evaluation(self, name: str) -> Path:
        return self.root / "evaluation" / f"{name}.json"

    def manifest(self) -> Row:
        return json.loads(self.manifest_path.read_text(encoding="utf-8"))

    def begun(self) -> set[str]:
        """The phases of which something is kept, in any round."""
        kept = {
            "prepare": ["run.json"],
            "sample": ["round-*/samples/part-*.parquet", "heldout/samples/part-*.parquet"],
            "score": ["round-*/scores/part-*.parquet", "heldout/groups/part-*.parquet"],
            "train": ["*/student", "*/trainer/checkpoint-*/trainer_state.json"],  # of a round, or seqkd
        }
        return {phase for phase, patterns in kept.items() if any(any(self.root.glob(pattern)) for pattern in patterns)}

    def finished(self, phase: str) -> None:
        """Note a finished phase in the manifest, for readers: what is done is decided by the files."""
        manifest = self.manifest()
        if manifest["phases"].get(phase) != "finished":
            manifest["phases"][phase] = "finished"
            write_json(self.manifest_path, manifest)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; ValueError where another process holds it. The lock ends with the process, however it ends."""
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"output_dir: another pad-fast works in {self.root} at this moment") from None
            yield


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
