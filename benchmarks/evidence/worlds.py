"""The worlds of the study: where their models and prompts are, and what a good answer is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.evidence.graded_task import quality
from benchmarks.evidence.obedience import RULE, obedience
from benchmarks.records import json_lines
from pad_fast.evaluation.answers import exact_match
from pad_fast.files.stored_rows import Row

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "pad_fast" / "tiny_world"
EMBEDDED_STUDENT = 1  # the seed of the student that the package has
ANOTHER_DRAW = 1  # the seed of training prompts that the package does not have
GOOD = 0.99  # the quality from which an answer of the graded world counts as right


def _is_right(row: Row, text: str) -> float:
    return float(exact_match(text, row["answer"]))


def _quality(row: Row, text: str) -> float:
    return quality(row["prompt"][0]["content"], text)


def _obedience(row: Row, text: str) -> float:
    return obedience(text)


@dataclass(frozen=True)
class World:
    """A teacher, base students and prompts.

    Args:
        name: "tiny", which the package has, or one that its tool makes.
        tool: the script that makes what is not there.
        grade: how good a text is for a prompt's row, from 0 to 1; None where nothing says so but
            the teacher.
        graded: what the grade is called in tables.
        longest: the most tokens of a response.
        options: settings of the runs that sample and score.
        home: the folder of its teacher and prompts, where it is not its name.
        itself: whether the student is the teacher's own model.
        taught: the world whose prompts and students these are; None for its own.
        from_teacher: whether the tool makes a student out of the teacher.
        examples: so many held-out prompts' greedy answers are kept in the records.
    """

    name: str
    tool: str
    grade: Callable[[Row, str], float] | None
    graded: str = "right"
    longest: int = 40
    options: dict[str, Any] = field(default_factory=dict)
    home: str | None = None
    itself: bool = False
    taught: World | None = None
    from_teacher: bool = False
    examples: int = 0

    def is_right(self, row: Row, text: str) -> bool:
        """Whether a text is right, or in the graded world as good as one can be."""
        return self.grade is not None and self.grade(row, text) >= GOOD

    @property
    def tuned_by(self) -> tuple[str, ...]:
        """The measures whose mean is best at the best point of the grid."""
        if self.grade is None:
            return "greedy_teacher", "sampled_teacher"
        return "greedy_right", "sampled_right"

    def teacher(self, root: Path) -> Path:
        """The teacher's folder; ``root`` is where the study keeps models."""
        return self._home(root) / "teacher"

    def prompts(self, root: Path, split: str, count: int) -> list[Row]:
        """The first prompts of a split."""
        if self.taught:
            return self.taught.prompts(root, split, count)
        return json_lines(self._home(root) / f"{split}.jsonl")[:count]

    def unseen_prompts(self, root: Path, count: int) -> list[Row]:
        """Training prompts of another draw, without those of :meth:`prompts`; at most ``count``."""
        place = root / "students" / f"{self.name}-prompts"
        self._make(place, "--only", "facts", "--seed", str(ANOTHER_DRAW))
        seen = {row["prompt"][0]["content"] for row in self.prompts(root, "train", count)}
        drawn = json_lines(place / "train.jsonl")
        return [row for row in drawn if row["prompt"][0]["content"] not in seen][:count]

    def student(self, root: Path, seed: int, width: int | None) -> Path:
        """The folder of a base student, which is trained if it is not there.

        Args:
            root: where the study keeps models.
            seed: of the student.
            width: hidden size; None for the usual one.
        """
        if self.itself:
            return self.teacher(root)
        if self.taught:
            return self.taught.student(root, seed, width)
        if self.name == "tiny" and seed == EMBEDDED_STUDENT and width is None:
            return EMBEDDED / "student"
        place = root / "students" / f"{self.name}-{seed}-{width or 'usual'}"
        options = [] if width is None else ["--student-width", str(width)]
        if self.from_teacher:
            options += ["--teacher", str(self.teacher(root))]
        self._make(place, "--only", "student", "--student-seed", str(seed), *options)
        return place / "student"

    def _home(self, root: Path) -> Path:
        """The folder of the teacher and the prompts, which are made if they are not there."""
        if self.name == "tiny":
            return EMBEDDED
        place = root / "students" / (self.home or self.name)
        self._make(place, "--only", "teacher")
        return place

    def _make(self, place: Path, *options: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f"{place.name}.lock"):
            if not (place / "facts.json").exists():  # the last file that a tool writes
                command = [sys.executable, str(ROOT / "tools" / self.tool), "--out", str(place)]
                subprocess.run([*command, *options], check=True)


TINY = World("tiny", "make_tiny_world.py", _is_right)
GRADED = World("graded", "make_graded_world.py", _quality, graded="quality")
SCRATCH = World("scratch", "make_scratch_world.py", _is_right, longest=96, taught=TINY)
# In bfloat16 a reward moves by 0.005 nats a token (root mean square over the held-out groups, whose
# own spread is 0.24), and sampling and scoring take less than half of the time.
_BFLOAT16 = {"dtype": "bfloat16"}
_REAL: dict[str, Any] = {
    "tool": "make_smollm2_world.py",
    "longest": 64,
    "home": "smollm2",
    "examples": 2,
}
SMOLLM2 = World("smollm2", grade=None, from_teacher=True, options=_BFLOAT16, **_REAL)
PROMPTED = World(
    "smollm2-prompted",
    grade=_obedience,
    graded="obeyed",
    itself=True,
    options={"teacher_system_prompt": RULE, **_BFLOAT16},
    **_REAL,
)
