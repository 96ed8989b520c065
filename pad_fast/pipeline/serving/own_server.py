"""A server that the run starts itself, and that never outlives it."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from pad_fast.launch.process import environment_of_others
from pad_fast.pipeline.serving.connection import KEY, WANTS_KEY, client, no_key
from pad_fast.pipeline.serving.dialects import ServerError

WATCHDOG = Path(__file__).with_name("watchdog.py")
RESTARTS = 3  # for a server that ended by itself while it was asked
VLLMS_KEY = "VLLM_API_KEY"  # which vLLM's server reads; it may be meant for another server
ONE_LOOK = 5.0  # seconds for an answer
POLL = 0.2  # seconds between two looks whether it answers
SHOWN = 15  # lines of the log in an error


class OwnServer:
    """A server with one checkpoint, from its start to the end of all of its processes.

    Args:
        command: with ``{model}`` and ``{port}``; a shell runs it.
        model: the folder or the hub name that takes the place of ``{model}``.
        log: what the server prints is added to this file.
        timeout: seconds until it has to answer.
    """

    def __init__(self, command: str, model: str, log: Path, timeout: float) -> None:
        self.log, self.timeout = log, timeout
        self.port, self.starts = free_port(), 0
        model = str(Path(model).resolve()) if Path(model).exists() else model
        self.command = command.replace("{model}", shlex.quote(model))
        self.command = self.command.replace("{port}", str(self.port))
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the command, and return at once."""
        self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"$ {self.command}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, str(WATCHDOG), self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the run, which then ends the server
            )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            ServerError: the command ends, wants a key, or does not answer in time.
        """
        end, status = time.monotonic() + self.timeout, None
        with client(ONE_LOOK) as asking:
            while time.monotonic() < end:
                self._check_alive()
                status = self._status(asking)
                if status == 200:
                    return
                if status in WANTS_KEY:
                    self.stop()
                    raise ServerError(no_key(f"`{self.command}`", status))
                time.sleep(POLL)
        self.stop()
        last = "" if status is None else f" (GET {self.url}/v1/models: status {status})"
        raise ServerError(
            f"`{self.command}` did not answer within {self.timeout:.0f} seconds{last}; raise "
            f"serve_timeout if it is slow to load. {self.tail()}"
        )

    def _status(self, asking: httpx.Client) -> int | None:
        """The status with which it says what it serves; None while nobody answers."""
        try:
            return asking.get(f"{self.url}/v1/models").status_code
        except httpx.HTTPError:
            return None

    def revive(self, url: str) -> None:
        """Start it again if it ended by itself.

        Raises:
            ServerError: it did so too often.
        """
        if self._process is not None and self._process.poll() is not None:
            if self.starts > RESTARTS:
                self._check_alive()
            self.start()

    def stop(self) -> None:
        """End all of its processes, and return when they are gone and their memory is free."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def tail(self) -> str:
        """The last lines of the log, for an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"The end of {self.log}:\n" + "\n".join(lines[-SHOWN:])

    def _check_alive(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            self.stop()
            raise ServerError(f"`{self.command}` ended with exit code {code}. {self.tail()}")


def _environment() -> dict[str, str]:
    """The environment of the server, which takes the key that it is sent."""
    found = environment_of_others()
    if found.get(KEY) and VLLMS_KEY in found:
        found[VLLMS_KEY] = found[KEY]
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
