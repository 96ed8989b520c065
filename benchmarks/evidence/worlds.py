"""The two worlds of the study: where their models and prompts are, and what a good answer is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from benchmarks.evidence.graded_task import quality
from pad_fast.evaluation.answers import exact_match
from pad_fast.pipeline.whole_files import Row

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "pad_fast" / "tiny_world"
EMBEDDED_STUDENT = 1  # the seed of the student that the package has
GOOD = 0.99  # the quality from which an answer of the graded world counts as right


def _is_right(row: Row, text: str) -> float:
    return float(exact_match(text, row["answer"]))


def _quality(row: Row, text: str) -> float:
    return quality(row["prompt"][0]["content"], text)


@dataclass(frozen=True)
class World:
    """A teacher, base students and prompts.

    Args:
        name: "tiny", which the package has, or "graded", which its tool makes.
        tool: the script that makes what is not there.
        grade: how good a text is for a prompt's row, from 0 to 1.
    """

    name: str
    tool: str
    grade: Callable[[Row, str], float]

    def is_right(self, row: Row, text: str) -> bool:
        """Whether a text is right, or in the graded world as good as one can be."""
        return self.grade(row, text) >= GOOD

    def teacher(self, root: Path) -> Path:
        """The teacher's folder; ``root`` is where the study keeps models."""
        return self._home(root) / "teacher"

    def prompts(self, root: Path, split: str, count: int) -> list[Row]:
        """The first prompts of a split."""
        lines = (self._home(root) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines[:count]]

    def student(self, root: Path, seed: int, width: int | None) -> Path:
        """The folder of a base student, which is trained if it is not there.

        Args:
            root: where the study keeps models.
            seed: of the student.
            width: hidden size; None for the usual one.
        """
        if self.name == "tiny" and seed == EMBEDDED_STUDENT and width is None:
            return EMBEDDED / "student"
        place = root / "students" / f"{self.name}-{seed}-{width or 'usual'}"
        options = [] if width is None else ["--student-width", str(width)]
        self._make(place, "--only", "student", "--student-seed", str(seed), *options)
        return place / "student"

    def _home(self, root: Path) -> Path:
        """The folder of the teacher and the prompts, which are made if they are not there."""
        if self.name == "tiny":
            return EMBEDDED
        place = root / "students" / self.name
        self._make(place, "--only", "teacher")
        return place

    def _make(self, place: Path, *options: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.parent / f"{place.name}.lock"):
            if not (place / "facts.json").exists():  # the last file that a tool writes
                command = [sys.executable, str(ROOT / "tools" / self.tool), "--out", str(place)]
                subprocess.run([*command, *options], check=True)


TINY = World("tiny", "make_tiny_world.py", _is_right)
GRADED = World("graded", "make_graded_world.py", _quality)
