"""Ctrl-C and SIGTERM end a command with a sentence, also where a library swallows the exception."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import worlds
from worlds import contents

from pad_fast.interrupts import Interrupts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


class Greedy:
    """Gets the signal in its finalizer, where Python swallows every exception."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


def wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_finalizer_swallows_comes_again(number, capsys):
    before = signal.getsignal(number)
    interrupts = Interrupts(again=0.05)

    def library() -> None:
        with interrupts:
            Greedy(number)
            wait(10)

    with pytest.raises(KeyboardInterrupt):
        library()
    assert interrupts.number == number
    assert signal.getsignal(number) is before
    assert "Exception ignored" not in capsys.readouterr().err
    wait(0.2)  # nothing comes after the block


def test_other_errors_in_finalizers_are_still_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)

    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError

    with Interrupts():
        Broken()
    assert [one.exc_type for one in shown] == [ZeroDivisionError]


def test_ignored_signals_stay_ignored():
    """As of a job that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            wait(0.05)
    finally:
        signal.signal(signal.SIGINT, before)


def test_forked_workers_end_as_without_us():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    with Interrupts():
        worker = context.Process(target=lambda: (started.set(), wait(60)))
        worker.start()
        assert started.wait(30)
        worker.terminate()
        worker.join(30)
    assert worker.exitcode == -signal.SIGTERM


# The library's callback swallows the first interrupt, and the command is stopped all the same.
SWALLOWING = """
import sys
from pad_fast import cli
from pad_fast.pipeline.sample import shards
own = shards.generate
def generate(*arguments, **options):
    try:
        print("sampling", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("swallowed", flush=True)
    while True:
        own(*arguments, **options)
shards.generate = generate
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_loses_nothing_and_says_how_to_go_on(tmp_path, number):
    folder = tmp_path / "a folder"
    folder.mkdir()
    config = worlds.write_config(folder)
    with subprocess.Popen(
        [sys.executable, "-c", SWALLOWING, "run", str(config), "--hub_token", "hf_SENTINEL"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sampling\n"
        kept = contents(folder / "run")
        process.send_signal(number)
        output, error = process.communicate(timeout=120)
    assert "swallowed" in output
    assert process.returncode == 128 + number, error
    resume = f'pad-fast run {shlex.quote(str(config))} --hub_token "$HF_TOKEN"'
    assert error.endswith(f"pad-fast: stopped; finished work is kept. To resume: {resume}\n")
    assert "Traceback" not in error
    assert "SENTINEL" not in error
    assert contents(folder / "run") == kept
    assert not list((folder / "run").rglob(".*.tmp"))
