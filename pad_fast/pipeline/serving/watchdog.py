"""Runs a command, and ends all of its processes when the run that wants it is gone.

    python watchdog.py COMMAND

The run holds the other end of the standard input. That ends when the run closes it, and also when
the run is killed in whatever way. This file imports the standard library alone, and is started by
its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE = 20.0  # seconds from SIGTERM to SIGKILL
SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # the run answers these
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing, where the process group has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def before_command() -> None:
    """In the command's shell: it hears signals again, and is killed if even the watchdog is."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(command: str) -> int:
    """Run the command until it ends or the standard input does; returns the command's exit code."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # processes that leave the group become our children
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=before_command,
    )
    while child.poll() is None:
        if select.select([sys.stdin], [], [], 0.1)[0] and not os.read(0, 1):
            signal_group(child.pid, signal.SIGTERM)
            wait_for(child, GRACE)
            break
    code = child.poll()
    signal_group(child.pid, signal.SIGKILL)
    child.wait()
    end_children()
    return 0 if code is None else code


def signal_group(group: int, number: int) -> None:
    """Signal every process of the group, if there is one left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def wait_for(child: subprocess.Popen, seconds: float) -> None:
    """Wait until the command and its group are gone, but not for ever."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        child.poll()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # a process that has ended counts until it is collected
        try:
            os.killpg(child.pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.05)


def end_children() -> None:
    """Kill and collect what is left of our descendants, which Linux has given to us."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """The processes whose parent this one is."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
