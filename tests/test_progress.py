"""Bars: a line that fits into a terminal, few lines elsewhere, and whole warnings above a bar."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys

import datasets
import pytest

from pad_fast.progress.bar import Bar, Lines, doing, quiet_libraries
from pad_fast.progress.work import Work, fitted


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def halfway(**changes):
    """Work of 256 responses, of which 115 are done after 80 seconds, at 1,234 tokens a second."""
    work = Work("evaluate student-01: fixed groups", "response", 256, 0, began=0.0)
    work.move_to(0.5, 1)
    work.move_to(80.0, 115)
    work.add_tokens(70.0, 0)
    work.add_tokens(80.0, 12_340)
    for name, value in changes.items():
        setattr(work, name, value)
    return work


@pytest.mark.parametrize("width", [200, 100, 80, 60, 50, 40])
@pytest.mark.parametrize("title", ["evaluate student-01: fixed groups", "round 1/4 · sample"])
def test_what_matters_is_seen_in_every_width(width, title):
    line = fitted(halfway(title=title), 80.0, width).plain
    assert len(line) < width
    for wanted in ("45%", "1:38 left", "1,234 tok"):
        assert wanted in line
    if width >= 80:
        assert title in line
        assert "115/256" in line
        assert "1,234 tokens/s" in line
    assert title[:9] in line


def test_training_shows_its_loss_and_no_tokens():
    work = Work("round 1/4 · train", "step", 24, 0, 0.0)
    work.move_to(5.0, 1)
    work.move_to(10.0, 2.5)
    work.note = "loss 0.651, tau 0.42"
    for width in (80, 66):
        line = fitted(work, 10.0, width).plain
        for wanted in ("round 1/4 · train", "10%", "2/24", "1:11 left", "loss 0.651, tau 0.42"):
            assert wanted in line
    assert "━─" in fitted(work, 10.0, 80).plain
    assert "tokens" not in work.sentence(10.0)


def test_the_time_is_not_known_before_the_work_moves():
    work = Work("round 1/4 · sample", "response", 256, 0, 0.0, note="loading the student")
    line = fitted(work, 12.0, 80).plain
    assert "0:12" in line
    assert "left" not in line
    assert "loading the student" in line
    assert work.sentence(12.0) == (
        "round 1/4 · sample: 0/256 responses, 0%, 0:12, loading the student"
    )


def test_work_of_which_nothing_is_known_begins():
    assert Work("train", "step", None, 0, 0.0).sentence(0.0) == "train begins"


def test_a_log_gets_at_most_four_lines_a_minute(capsys):
    """Long and short phases in turn, each looked at twice a second and moved often."""
    clock, written = Clock(), []
    lines = Lines(clock)
    for phase in range(30):
        bar = Bar(f"phase {phase}", "step", 1000, lines=lines)
        bar._thread.start = bar._thread.join = lambda: None  # the test is the clock
        with bar:
            for step in range(4 if phase % 3 else 400):
                clock.now += 0.5
                bar.move_to(step)
                bar.tick()
                written += [clock.now] * capsys.readouterr().err.count("\n")
        written += [clock.now] * capsys.readouterr().err.count("\n")
    seconds = clock.now - 1000.0
    assert len(written) >= seconds / 40  # nor is it silent
    for time in written:
        assert sum(time <= other < time + 60 for other in written) <= 4
    assert not any("\r" in text for text in capsys.readouterr())


def test_a_line_of_a_log_says_it_all(capsys):
    clock = Clock()
    with Bar("round 1/4 · sample", "response", 256, lines=Lines(clock)) as bar:
        clock.now += 1
        bar.move_to(1)
        bar.count_tokens(0)
        clock.now += 79
        bar.move_to(115)
        bar.count_tokens(7_900)
        bar.tick()
    first, second = capsys.readouterr().err.splitlines()
    assert first == "round 1/4 · sample: 0/256 responses, 0%"
    assert second == ("round 1/4 · sample: 115/256 responses, 45%, 1:20, 1:37 left, 100 tokens/s")


def test_what_goes_on_is_said_on_the_bar_that_stands():
    with doing("nobody sees this"), Bar("sample", "response", 2, quiet=True) as bar:
        with doing("loading the teacher"):
            assert bar.work.note == "loading the teacher"
        assert bar.work.note == ""


def test_a_quiet_bar_writes_nothing(capsys):
    with Bar("sample", "response", 2, quiet=True) as bar:
        bar.move_to(2)
        bar.tick()
    assert capsys.readouterr() == ("", "")


# A logger with a handler from before the bar, one without, a warning, and both streams.
WARNINGS = """
import logging, sys, time, warnings
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler())
from pad_fast.progress.bar import Bar
with Bar("round 1/2 · sample", "response", 256) as bar:
    bar.move_to(12)
    time.sleep(0.1)
    logging.getLogger("pad_fast").warning("first, of a logger without a handler")
    early.warning("second, of one with a handler")
    print("third, printed")
    print("fourth, to standard error", file=sys.stderr)
    bar.tick()
logging.getLogger("pad_fast").warning("fifth, after the bar")
early.warning("sixth, after the bar")
"""


def shown_on_a_terminal(code: str, columns: int) -> list[str]:
    """The lines that a terminal of so many columns shows after ``code``."""
    reader, writer = pty.openpty()
    size = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=writer,
        env={**os.environ, **size, "PYTHONIOENCODING": "utf-8"},
    ):
        os.close(writer)
        output = b""
        with os.fdopen(reader, "rb", buffering=0) as stream:
            try:
                while part := stream.read(4096):
                    output += part
            except OSError:  # the other end is closed
                pass
    text = output.decode()
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        # What comes after the last return or erasure is what stays.
        kept = re.split(r"\r|\x1b\[2K", line)[-1]
        lines.append(re.sub(r"\x1b\[[\d;?]*\w", "", kept))
    return lines


def test_warnings_stand_whole_above_the_bar():
    lines = shown_on_a_terminal(WARNINGS, 80)
    for text in (
        "first, of a logger without a handler",
        "second, of one with a handler",
        "third, printed",
        "fourth, to standard error",
        "fifth, after the bar",
        "sixth, after the bar",
    ):
        assert text in lines
    [bar] = [line for line in lines if "round 1/2" in line]
    assert "12/256" in bar
    assert lines.index(bar) > lines.index("fourth, to standard error")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_no_bars_of_other_libraries(monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    datasets.enable_progress_bars()
    quiet_libraries()
    assert datasets.are_progress_bars_disabled() is not terminal
    datasets.enable_progress_bars()


def test_loggers_have_their_streams_back(monkeypatch):
    handler = logging.StreamHandler()
    before = handler.stream
    with Bar("sample", quiet=True):
        pass
    assert handler.stream is before
