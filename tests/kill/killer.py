"""Kills runs at random times, resumes them, and compares the ends with an undisturbed run."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import worlds

from tests.kill.comparison import contents, differences
from tests.kill.marked_run import END, PLACES, Mark, MarkedRun

ROUNDS = 2
ATTEMPTS = 5  # at one kill: a run may end before its time has come


@dataclass(frozen=True)
class Window:
    """A stay of the undisturbed run in a place, with its seconds."""

    place: str
    round: int
    seconds: float


@dataclass(frozen=True)
class Kill:
    """A time to kill at: a share of the seconds of a place, at one of the times it is entered."""

    place: str
    round: int
    entry: int
    seconds: float

    @property
    def position(self) -> tuple[int, int]:
        """Where it is in the order of a run."""
        return _position(self.place, self.round)


def _position(place: str, round: int) -> tuple[int, int]:
    return ROUNDS + 1 if place == "report" else round, PLACES.index(place)


@dataclass
class Report:
    """What came of all kills.

    Args:
        kills: the number of kills by place.
        in_resumes: how many of them hit a resumed run.
        folders: the number of run folders.
        missed: attempts that were repeated, since the run ended first.
        files: the number of files that are compared in each folder.
        different: "folder: file" of what differed from the undisturbed run.
    """

    kills: Counter[str] = field(default_factory=Counter)
    in_resumes: int = 0
    folders: int = 0
    missed: int = 0
    files: int = 0
    different: list[str] = field(default_factory=list)


def attack(folder: Path, kills: int, per_folder: int, seed: int) -> Report:
    """Kill runs ``kills`` times, ``per_folder`` times each, and compare what they end with.

    Args:
        folder: an empty folder for the world, the runs and their logs.
        kills: the number of kills; each place gets its share.
        per_folder: kills of one run folder; all but the first of them hit a resumed run.
        seed: of the times.
    """
    torch.set_num_threads(1)
    world = folder / "world"
    world.mkdir(parents=True)
    worlds.write_config(world)
    draw, report = random.Random(seed), Report()
    whole = folder / "run-000"
    windows = list(_undisturbed(world, whole))
    expected = contents(whole)
    report.files = len(expected)
    for number, planned in enumerate(_plans(draw, windows, kills, per_folder), 1):
        run = folder / f"run-{number:03d}"
        _killed_run(world, run, planned, report)
        report.folders += 1
        report.different += [f"{run.name}: {name}" for name in differences(expected, contents(run))]
    return report


def _config(world: Path, run: Path) -> Path:
    place = run.parent / f"config-{run.name}"
    place.mkdir(exist_ok=True)
    return worlds.changed_config(world, place, output_dir=str(run), rounds=ROUNDS, baseline="seqkd")


def _undisturbed(world: Path, run: Path) -> Iterator[Window]:
    process = MarkedRun(_config(world, run), run.with_suffix(".log"))
    entered: dict[str, Mark] = {}
    opened = True
    while (mark := process.next_mark()) is not None and mark.place != END:
        if opened and mark.place != "open":
            opened = False
            yield Window("open", 0, mark.at - entered["open"].at)
        if mark.enters:
            entered[mark.place] = mark
        else:
            yield Window(mark.place, mark.round, mark.at - entered[mark.place].at)
    code = process.wait()
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}; see {run.with_suffix('.log')}")


def _plans(
    draw: random.Random, windows: Sequence[Window], kills: int, per_folder: int
) -> Iterator[list[Kill]]:
    """The kills of each folder, in the order of the run; places take turns."""
    places = [PLACES[index % len(PLACES)] for index in range(kills)]
    draw.shuffle(places)
    for start in range(0, kills, per_folder):
        planned = [_drawn(draw, windows, place) for place in places[start : start + per_folder]]
        yield sorted(planned, key=lambda kill: kill.position)


def _drawn(draw: random.Random, windows: Sequence[Window], place: str) -> Kill:
    stays = [window for window in windows if window.place == place]
    round = draw.choice(sorted({window.round for window in stays}))
    stays = [window for window in stays if window.round == round]
    entry = draw.randrange(len(stays))
    if place == "open":  # in the first start, or in a resume in any round
        round = draw.randint(0, ROUNDS)
    return Kill(place, round, entry, draw.random() * stays[entry].seconds)


def _killed_run(world: Path, run: Path, planned: Sequence[Kill], report: Report) -> None:
    """Kill a run at each of the planned times, then let it end."""
    config, log = _config(world, run), run.with_suffix(".log")
    for number, kill in enumerate(planned):
        for _ in range(ATTEMPTS):
            process = MarkedRun(config, log)
            place = _when_to_kill(process, kill)
            if place is not None and process.kill():
                break
            report.missed += 1
        else:
            raise RuntimeError(f"{run} could not be killed in {kill}; see {log}")
        report.kills[place] += 1
        report.in_resumes += number > 0
    code = MarkedRun(config, log).wait()
    if code != 0:
        raise RuntimeError(f"{run} ended with {code} after {len(planned)} kills; see {log}")


def _when_to_kill(process: MarkedRun, kill: Kill) -> str | None:
    """Wait until a kill's time has come; its place, or None where the run ended before it.

    A resumed run may have done what the kill aims at, or do the rest faster: it is then killed as
    soon as it is past the place, and that is the place of the kill.
    """
    entry, due = 0, None
    while True:
        mark = process.next_mark(None if due is None else max(0.0, due - time.monotonic()))
        if mark is None:
            return kill.place
        if mark.place == END:
            process.wait()
            return None
        is_here = mark.place == kill.place and (mark.round == kill.round or kill.place == "open")
        if is_here and mark.enters:
            due = mark.at + kill.seconds if entry >= kill.entry else None
            entry += 1
        elif (due is not None and (is_here or kill.place == "open")) or (
            kill.place != "open" and _position(mark.place, mark.round) > kill.position
        ):
            return mark.place
