"""Servers that a run starts: they answer, they fail in words, and nothing of them is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pad_fast.pipeline.serving.connection import KEY
from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.own_server import POLL, OwnServer

FORWARDER = Path(__file__).parents[2] / "forwarder.py"


def command(stub) -> str:
    return f"{sys.executable} {FORWARDER} {stub.url} {{model}} {{port}}"


def pids(log: Path) -> list[int]:
    """The server, and its child that has left the process group, of each start."""
    found = re.findall(r"^pids (\d+) (\d+)$", log.read_text(), re.M)
    return [int(pid) for pair in found for pid in pair]


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it ended while it was read
        return False
    return state != "Z"


def gone(found: list[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_there, found)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_there, found))


@pytest.fixture
def server(stub_of, world, tmp_path):
    made = OwnServer(command(stub_of()), str(world / "teacher"), tmp_path / "log", 30.0)
    yield made
    made.stop()


def test_it_starts_answers_and_ends_with_all_its_processes(server):
    server.start()
    server.wait()
    found = pids(server.log)
    assert len(found) == 2
    assert all(map(is_there, found))
    start = time.monotonic()
    server.stop()
    assert not any(map(is_there, found)), "stop returns when they are gone"
    assert time.monotonic() - start < 10, "the server heard SIGTERM"


@pytest.mark.parametrize("threads", ["1", "8"])
def test_it_takes_no_part_in_the_runs_launch(tmp_path, monkeypatch, threads):
    names = (
        "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GROUP_RANK ROLE_NAME "
        "TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_RUN_ID TORCH_DISABLE_SHARE_RDZV_TCP_STORE "
        "ACCELERATE_USE_FSDP FSDP_VERSION PARALLELISM_CONFIG_TP_SIZE"
    )
    launched = dict.fromkeys(names.split(), "1")
    users = {"RANKING": "1", "CUDA_VISIBLE_DEVICES": "7", "HF_TOKEN": "secret"}
    for name, value in (launched | users | {"OMP_NUM_THREADS": threads}).items():
        monkeypatch.setenv(name, value)
    server = OwnServer("env # {model} {port}", "m", tmp_path / "log", 30.0)
    server.start()
    server._process.wait(10)
    server.stop()
    found = dict(line.split("=", 1) for line in server.log.read_text().splitlines() if "=" in line)
    assert not launched.keys() & found.keys()
    assert users.items() <= found.items()
    assert found.get("OMP_NUM_THREADS") == (None if threads == "1" else "8")  # 8 is the user's


def test_one_that_ends_is_started_again_three_times(server):
    server.start()
    for start in range(2, 5):
        server.wait()
        os.kill(pids(server.log)[-2], signal.SIGKILL)
        assert gone(pids(server.log))
        while server._process.poll() is None:
            time.sleep(0.02)
        server.revive(server.url)
        assert server.starts == start
    server.wait()
    os.kill(pids(server.log)[-2], signal.SIGKILL)
    assert gone(pids(server.log))
    while server._process.poll() is None:
        time.sleep(0.02)
    with pytest.raises(ServerError, match="ended with exit code"):
        server.revive(server.url)


def test_a_command_that_fails_shows_its_log(tmp_path):
    line = "echo out of memory on {model} >&2; exit 7; echo {port}"
    server = OwnServer(line, "some model", tmp_path / "log", 30.0)
    server.start()
    with pytest.raises(ServerError, match="ended with exit code 7") as caught:
        server.wait()
    assert str(caught.value).endswith("\nout of memory on some model")


def test_one_that_never_answers_is_ended(tmp_path):
    server = OwnServer("echo pids $$ $$; sleep 1000 # {port}", "m", tmp_path / "log", 0.5)
    server.start()
    with pytest.raises(ServerError, match="did not answer within 0 seconds; raise serve_timeout"):
        server.wait()
    assert not any(map(is_there, pids(server.log)))


LOCKED = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Locked(BaseHTTPRequestHandler):
    def do_GET(self):
        key = "Bearer " + os.environ["VLLM_API_KEY"]
        self.send_response(200 if self.headers["Authorization"] == key else 401)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Locked).serve_forever(0.05)
"""


def test_one_with_a_key_behind_a_proxy(tmp_path, monkeypatch):
    """A key and a proxy that the environment has for other servers reach this one too."""
    (tmp_path / "locked.py").write_text(LOCKED)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    monkeypatch.delenv(KEY, raising=False)
    line = f"exec {sys.executable} {tmp_path / 'locked.py'} {{port}} # {{model}}"
    server = OwnServer(line, "m", tmp_path / "log", 30.0)
    server.start()
    with pytest.raises(ServerError, match=rf"^`exec .* got none \(status 401\); set {KEY} in"):
        server.wait()
    assert server._process is None
    monkeypatch.setenv(KEY, "sesame")
    server.start()
    server.wait()
    server.stop()


def test_one_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    line = "trap '' TERM; echo pids $$ $$; while true; do sleep 0.1; done # {port}"
    server = OwnServer(line, "m", tmp_path / "log", 30.0)
    watchdog = tmp_path / "watchdog.py"
    own = Path(sys.modules[OwnServer.__module__].WATCHDOG).read_text()
    watchdog.write_text(own.replace("GRACE = 20.0", "GRACE = 0.3"))
    monkeypatch.setattr(sys.modules[OwnServer.__module__], "WATCHDOG", watchdog)
    server.start()
    while not pids(server.log):
        time.sleep(0.02)
    server.stop()
    assert not any(map(is_there, pids(server.log)))


@pytest.mark.parametrize(
    ("whom", "number"),
    [("the run", signal.SIGKILL), ("the run", signal.SIGTERM), ("the watchdog", signal.SIGKILL)],
)
def test_it_dies_with_the_run(stub_of, world, tmp_path, number, whom):
    """However the run ends, and even if the watchdog is killed before it."""
    line = ("exec " if whom == "the watchdog" else "") + command(stub_of())
    script = f"""
    import time
    from pathlib import Path
    from pad_fast.pipeline.serving.own_server import OwnServer
    server = OwnServer({line!r}, {str(world / "teacher")!r}, Path("log"), 30.0)
    server.start()
    server.wait()
    print(server._process.pid, flush=True)
    time.sleep(1000)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=tmp_path
    )
    watchdog = int(run.stdout.readline())
    found = pids(tmp_path / "log")
    assert len(found) == 2
    assert all(map(is_there, found))
    if whom == "the watchdog":
        os.kill(watchdog, signal.SIGKILL)
        # Nobody is left to find a child that has left the group; the server itself dies.
        assert gone(found[:1])
        os.kill(found[1], signal.SIGKILL)
    run.send_signal(number)
    run.communicate()
    assert gone([*found, watchdog])


def test_one_that_is_not_ready_is_asked_again_after_a_pause(tmp_path, monkeypatch):
    answers, pauses = iter([503, 503, 200]), []
    monkeypatch.setattr(OwnServer, "_status", lambda *_: next(answers))
    monkeypatch.setattr(time, "sleep", pauses.append)
    OwnServer("unused {model} {port}", "m", tmp_path / "log", 30.0).wait()
    assert pauses == [POLL, POLL]
    assert not list(answers)
