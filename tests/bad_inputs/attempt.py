"""One bad input: a small world that is spoilt in one way, and the command that meets it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import worlds
from transformers import PreTrainedModel

from pad_fast import cli

Spoil = Callable[[Path], Mapping[str, Any] | None]
SAID = "said.txt"  # standard output and error of the command
LONGEST = 120.0  # seconds of a command
READ = "weights.txt"  # a line for each model whose weights were read


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        group: settings, files, models, folders or environment.
        what: what is wrong, in a few words.
        says: texts that the message has to hold: the argument or file, the rule, what was given,
            what to do.
        spoil: changes the world in the folder that it is given. It may return changed settings.
        settings: settings that are changed.
        words: words after the command's own.
        environment: variables that are set.
        code: the exit code.
        reads: how many models' weights have to be read before it can be known.
        started: whether a finished run is in the folder.
        limit: called in the command's process before the command.
    """

    group: str
    what: str
    says: tuple[str, ...]
    spoil: Spoil | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    code: int = cli.BAD_INPUT
    reads: int = 0
    started: bool = False
    limit: Callable[[], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Args:
        code: the exit code.
        message: all that was written, less the folder's path.
        seconds: from the start of the command, after imports.
        reads: the number of models whose weights had been read.
    """

    code: int
    message: str
    seconds: float
    reads: int

    @property
    def last(self) -> str:
        """The line that the command ended with."""
        return self.message.strip().rpartition("\n")[2]


class Worlds:
    """A world that would run, and one with a finished run, for every case in its first state.

    Args:
        folder: where they are made, an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fresh, self.kept, self.place = (folder / n for n in ("fresh", "kept", "started"))
        for place in (self.fresh, self.place):
            place.mkdir(parents=True)
            worlds.write_config(place)

    def of(self, case: Case) -> Path:
        """The folder for a case."""
        if not case.started:
            copy = self.folder / f"case-{len(list(self.folder.iterdir()))}"
            shutil.copytree(self.fresh, copy)
            return copy
        if not self.kept.exists():  # the run's manifest holds paths: it cannot be moved
            if _command(["run", str(self.place / "config.yaml")], None, self.place, {}) != 0:
                raise RuntimeError((self.place / SAID).read_text())
            shutil.copytree(self.place, self.kept)
        shutil.rmtree(self.place)
        shutil.copytree(self.kept, self.place)
        return self.place


def attempt(case: Case, folder: Path) -> Outcome:
    """Run the command in a fork, in a world that is spoilt.

    Args:
        case: the bad input.
        folder: what :meth:`Worlds.of` returned.
    """
    changes = dict((case.spoil(folder) if case.spoil else None) or {})
    config = folder / "config.yaml"
    if case.settings or changes or not case.spoil:
        config = worlds.write_config(folder, models=False, **{**case.settings, **changes})
    words = ["run", *(word.format(folder=folder) for word in case.words)]
    if not any(word.startswith("CONFIG=") for word in words):
        words.insert(1, str(config))
    words = [word.removeprefix("CONFIG=") for word in words]
    (folder / READ).unlink(missing_ok=True)
    began = time.monotonic()
    code = _command(words, case.limit, folder, case.environment)
    seconds = time.monotonic() - began
    said = (folder / SAID).read_text(encoding="utf-8", errors="replace")
    read = folder / READ
    reads = len(read.read_text().split()) if read.exists() else 0
    return Outcome(code, said.replace(str(folder), "WORK"), seconds, reads)


def _command(
    words: list[str],
    limit: Callable[[], None] | None,
    folder: Path,
    environment: Mapping[str, str],
) -> int:
    """The exit code of a command of ``pad-fast`` in a fork."""
    pid = os.fork()
    if pid == 0:
        output = os.open(folder / SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest has its own
        os.chdir(folder)
        os.environ.update(environment)
        _count_reads(folder)
        if limit is not None:
            limit()
        code = cli.main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    end = time.monotonic() + LONGEST
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            found = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(found[1])


def _count_reads(folder: Path) -> None:
    own = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(kind: Any, *arguments: Any, **options: Any) -> Any:
        model = own(kind, *arguments, **options)
        with (folder / READ).open("a") as file:
            file.write("model\n")
        return model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with the answer to a bad input; none of it should be."""
    found = []
    if outcome.code != case.code:
        found.append(f"exit code {outcome.code}, not {case.code}")
    if not outcome.last.startswith("pad-fast: "):
        found.append("the last line is not the command's own")
    if "Traceback" in outcome.message:
        found.append("a traceback")
    if "--traceback COMMAND shows where" in outcome.last and case.code == cli.BAD_INPUT:
        found.append("an error that was not foreseen")
    found += [f"it lacks {text!r}" for text in case.says if text not in outcome.last]
    if outcome.reads > case.reads:
        found.append(f"it came after the weights of {outcome.reads} models were read")
    return found
