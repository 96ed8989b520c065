"""What the report reads from a run folder. Parts that are not there (yet) are empty."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pad_fast.conversation import conversation_text
from pad_fast.evaluation import model_names
from pad_fast.evaluation.evaluated_model import Row
from pad_fast.files.own_files import (
    column_names,
    read_json,
    read_json_lines,
    read_table,
    read_tables,
)
from pad_fast.files.stored_rows import SCRATCH, RowFiles, Rows, column, take
from pad_fast.report.wording import SAMPLED
from pad_fast.training.row_columns import as_counted

Floats = NDArray[np.float64]

GROUP_COLUMNS = (
    "prompt_id",
    "prompt",
    "answer",
    "skill",
    "completions",
    "completion_ids",
    "finish_reasons",
    "teacher_rewards",
    "student_rewards",
)


@dataclass(frozen=True)
class FixedGroup:
    """A held-out prompt with its fixed responses, of equal ones as many as the training counts.

    Rewards are (N,), in nats per token or nats, NaN where the response is masked. Losses are in
    nats, NaN where they are not known.
    """

    prompt: str
    answer: str | None
    completions: list[str]
    finish_reasons: list[str]
    teacher: Floats
    before: Floats
    after: Floats | None  # None before the first round is evaluated
    loss_before: float
    loss_after: float
    greedy: dict[str, str]  # name of an evaluated model -> its greedy response


@dataclass(frozen=True)
class RunRecords:
    """All that the page shows. Evaluations are the contents of ``evaluation/NAME.json``."""

    name: str
    manifest: Row
    config: Row  # option -> value, without nesting
    metrics: list[Row]  # the lines of metrics.jsonl, in order: one for a phase, round, step, name
    teacher: Row | None
    students: list[Row]  # by round; the first is the base student
    baselines: list[Row]
    groups: Sequence[FixedGroup]
    lengths: dict[int, NDArray[np.int64]]  # round -> tokens of each sampled response
    by_prompt: dict[str, dict[str, Floats]]  # model -> metric -> value of each prompt
    validation: list[Row]  # by round; the first is the base student's
    best_round: int | None  # whose student is the best on the validation prompts, if it is known

    @property
    def judge(self) -> str:
        """Who scored the responses: the teacher, a reward model, or the rater of given scores."""
        return str(self.manifest.get("judge", "teacher"))

    @property
    def fixed_groups(self) -> str:
        """What the fixed groups are, in words."""
        return str(self.manifest.get("fixed_groups", SAMPLED))

    @cached_property
    def losses(self) -> tuple[Floats, Floats]:
        """The losses before and after of the fixed groups that have both."""
        both = (x for group in self.groups for x in (group.loss_before, group.loss_after))
        pairs = np.fromiter(both, np.float64).reshape(-1, 2)
        kept = pairs[np.isfinite(pairs).all(axis=1)]
        return kept[:, 0], kept[:, 1]

    @property
    def base(self) -> Row:
        """The base student's evaluation; empty if there is none."""
        return self.students[0] if self.students else {}


def read_run(run_dir: Path) -> RunRecords:
    """Read a run folder.

    Raises:
        ValueError: there is no ``run.json``, ``metrics.jsonl`` or ``evaluation/`` in ``run_dir``.
    """
    if not any((run_dir / part).exists() for part in ("run.json", "metrics.jsonl", "evaluation")):
        raise ValueError(
            "run_dir must be a run folder (with run.json, metrics.jsonl or evaluation/), "
            f"given {str(run_dir)!r}"
        )
    manifest = read_json(run_dir / "run.json") if (run_dir / "run.json").exists() else {}
    config = _settings(manifest)
    evaluations = [read_json(path) for path in (run_dir / "evaluation").glob("*.json")]
    evaluations.sort(key=lambda row: model_names.position(row["name"]))
    students = [row for row in evaluations if model_names.is_student(row["name"])]
    teacher = [row for row in evaluations if row["name"] == model_names.TEACHER]
    return RunRecords(
        name=run_dir.resolve().name,
        manifest=manifest,
        config=config,
        metrics=_read_metrics(run_dir / "metrics.jsonl"),
        teacher=teacher[0] if teacher else None,
        students=students,
        baselines=[row for row in evaluations if row not in teacher + students],
        groups=_read_groups(run_dir, [row["name"] for row in students], config),
        lengths=_read_lengths(run_dir),
        by_prompt={path.stem: read_by_prompt(path) for path in _tables(run_dir)},
        validation=sorted(
            (read_json(path) for path in (run_dir / "validation").glob("*.json")),
            key=lambda row: row["round"],
        ),
        best_round=_best_round(run_dir / "best.json"),
    )


def _tables(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "evaluation").glob("*.parquet"), key=_position)


def _position(path: Path) -> tuple[int, int, str]:
    return model_names.position(path.stem)


def read_by_prompt(path: Path) -> dict[str, Floats]:
    """The metrics of each prompt; all tables have the prompts in one order."""
    names = [name for name in column_names(path) if name.startswith(model_names.BY_PROMPT)]
    found = read_table(path, names) if names else {}
    return {
        name.removeprefix(model_names.BY_PROMPT): found[name].to_numpy().astype(np.float64)
        for name in names
    }


def _best_round(path: Path) -> int | None:
    return read_json(path)["round"] if path.exists() else None


def _settings(manifest: Row) -> Row:
    """The settings of a run, with what it chose for those that were left open."""
    config = dict(_leaves(manifest.get("config", {})))
    chosen = manifest.get("chosen", {})
    return config | {name: value for name, value in chosen.items() if config.get(name) is None}


def _leaves(tree: Row) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and key != "compare":
            yield from _leaves(value)
        else:
            yield key, value


def _read_metrics(path: Path) -> list[Row]:
    """The last line of each step: a run that was killed logs some again when it goes on."""
    rows: dict[tuple[str, int, int, str], Row] = {}
    for row in read_json_lines(path):
        key = (row["phase"], row.get("round") or 0, row.get("step") or 0, row.get("name") or "")
        rows[key] = rows.get(key, {}) | row
    return [rows[key] for key in sorted(rows)]


class FixedGroups(Sequence[FixedGroup]):
    """The fixed groups in the order of their shards, each read from disk when it is asked for.

    Args:
        groups: the scored groups.
        measured: by the name of an evaluated model what was measured of each group, in their order.
        students: the names of the students, by round.
        repeats: the run's setting; "each" for a run that had none.
    """

    def __init__(
        self, groups: Rows, measured: Mapping[str, Rows], students: list[str], repeats: str
    ) -> None:
        self._groups, self._measured, self._repeats = groups, measured, repeats
        self._base = students[0] if students else ""
        self._last = students[-1] if len(students) > 1 else ""

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            measured = {name: rows[index] for name, rows in self._measured.items()}
            return list(self._made(self._groups[index], measured))
        return next(iter(self[index : index + 1]))

    def __iter__(self) -> Iterator[FixedGroup]:
        return self._made(self._groups, self._measured)

    def _made(self, groups: Rows, measured: Mapping[str, Rows]) -> Iterator[FixedGroup]:
        for row, *found in zip(groups, *measured.values(), strict=True):
            known = {name: each for name, each in zip(measured, found, strict=True) if each}
            yield _group(row, known, (self._base, self._last), self._repeats)


def _read_groups(run_dir: Path, students: list[str], config: Row) -> FixedGroups:
    files = RowFiles(run_dir / SCRATCH / "report")
    shards = sorted((run_dir / "heldout" / "groups").glob("part-*.parquet"))
    groups = files.keep(part for path in shards for part in read_tables(path, GROUP_COLUMNS))
    ids = list(column(groups, "prompt_id"))
    columns = ("prompt_id", "greedy_text", "student_rewards", "ppd_loss")
    measured = {
        path.stem: _in_order(files.keep(read_tables(path, columns)), ids)
        for path in _tables(run_dir)
    }
    return FixedGroups(groups, measured, students, config.get("repeats", "each"))


def _in_order(rows: Rows, ids: list[str]) -> Rows:
    """The rows of some prompts in the order of their ids, with empty ones for those without."""
    places = {prompt_id: place for place, prompt_id in enumerate(column(rows, "prompt_id"))}
    if all(prompt_id in places for prompt_id in ids):
        return take(rows, [places[prompt_id] for prompt_id in ids])
    return [rows[places[each]] if each in places else {} for each in ids]


def _group(
    row: Row, measured: dict[str, Row], students: tuple[str, str], repeats: str
) -> FixedGroup:
    """A group with what the base student and the last student were measured on it."""
    before, after = (measured.get(name, {}) for name in students)
    teacher, all_rewards = as_counted(row, repeats)["teacher_rewards"], row["teacher_rewards"]
    shown = [i for i, each in enumerate(all_rewards) if (each is None) == (teacher[i] is None)]
    reasons = row.get("finish_reasons") or [""] * len(teacher)
    return FixedGroup(
        prompt=conversation_text(row["prompt"]),
        answer=row.get("answer"),
        completions=[row["completions"][i] for i in shown],
        finish_reasons=[reasons[i] for i in shown],
        teacher=_floats(teacher)[shown],
        before=_floats(before.get("student_rewards") or row["student_rewards"])[shown],
        after=_floats(after["student_rewards"])[shown] if after.get("student_rewards") else None,
        loss_before=_float(before.get("ppd_loss")),
        loss_after=_float(after.get("ppd_loss")),
        greedy={
            name: found["greedy_text"]
            for name, found in measured.items()
            if found.get("greedy_text") is not None
        },
    )


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _floats(values: list[float | None]) -> Floats:
    return np.array([_float(value) for value in values], dtype=np.float64)


def _read_lengths(run_dir: Path) -> dict[int, NDArray[np.int64]]:
    lengths: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
    for path in sorted(run_dir.glob("round-*/samples/part-*.parquet")):
        # A row for each prompt: a list of responses, each a list of token ids.
        ids = read_table(path, ["completion_ids"])["completion_ids"]
        number = int(path.parts[-3].removeprefix("round-"))
        counts = pc.list_value_length(pc.list_flatten(ids)).to_numpy()
        lengths[number].append(counts.astype(np.int64))
    return {number: np.concatenate(parts) for number, parts in lengths.items()}
