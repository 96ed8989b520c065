"""Full disks and other failures of the system, in words and without a loss."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import worlds
from worlds import contents

from pad_fast import cli
from pad_fast.files.system_errors import CODES, in_words
from pad_fast.files.writing import replacing

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *sys.path])}
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
# Writers of every library that a run writes with, under a limit on the size of files.
WRITERS = """
import resource, sys
import pyarrow as pa, torch
from pathlib import Path
from safetensors.torch import save_file
from pad_fast.files.own_files import write_json, write_table
from pad_fast.files.system_errors import in_words
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder, tensor = Path(sys.argv[1]), torch.zeros(10_000)
for write in (
    lambda: write_json(folder / "a.json", {"text": "x" * 20_000}),
    lambda: write_table(folder / "a.parquet", pa.table({"x": torch.rand(10_000).numpy()})),
    lambda: torch.save({"x": tensor}, folder / "a.pt"),
    lambda: torch.save({"x": tensor}, folder / "b.pt", _use_new_zipfile_serialization=False),
    lambda: save_file({"x": tensor}, folder / "a.safetensors"),
):
    try:
        write()
    except Exception as error:
        print(in_words(error))
"""


def has_namespaces() -> bool:
    """Whether this user may mount a file system of its own."""
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_namespaces = pytest.mark.skipif(
    not has_namespaces(), reason="this user may mount no file system of its own"
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_every_writer_says_that_a_file_is_too_large(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    known = "a file is larger than a limit allows"
    assert [line.split(" (")[0].split(":")[0] for line in found] == [
        known, known, "PyTorch could not write a file to its end", known, known,
    ]  # fmt: skip
    assert found[0].startswith(f"{known}: {tmp_path / 'a.json'}; raise the limit (`ulimit -f")
    assert "`df -h`, `quota`, `ulimit -f`" in found[2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_device(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        torch.save({"x": torch.zeros(10_000)}, "/dev/full")
    assert str(in_words(caught.value)).startswith("PyTorch could not write a file to its end")
    with (
        pytest.raises(OSError, match="No space left") as failed,
        replacing(tmp_path / "a"),
        open("/dev/full", "w") as stream,
    ):
        stream.write("x")
    assert in_words(failed.value) == f"the disk is full: {tmp_path / 'a'}; free some space"


@needs_namespaces
@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_it_has_grown(tmp_path):
    """Full while sampling, while a checkpoint's weights or its optimizer are written, and later."""
    config = worlds.write_config(tmp_path, rounds=1, output_dir="./small/run")
    (tmp_path / "small").mkdir()
    sizes = ["40", "120", "200", "360", "800", "4000"]
    found = subprocess.run(
        [*NAMESPACE, sys.executable, str(TESTS / "small_disk.py"), str(config),
         str(tmp_path / "small"), *sizes],
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    ends = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert [end["code"] for end in ends] == [1] * (len(sizes) - 1) + [0]
    for end in ends[:-1]:
        (line,) = end["said"]
        assert "the disk is full" in line
        assert line.endswith(
            f"finished work is kept, and the same command goes on: pad-fast run {config}"
        )
    assert any("PyTorch could not write a file" in end["said"][0] for end in ends[:-1])
    assert cli.main(["run", str(worlds.write_config(tmp_path, models=False, rounds=1))]) == 0
    expected = contents(tmp_path / "run")
    assert len(expected) > 15
    assert contents(tmp_path / "small.copy" / "run") == expected


@needs_namespaces
def test_a_file_system_that_is_read_only(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from pad_fast.files.own_files import write_json\n"
        "from pad_fast.files.system_errors import in_words\n"
        "try: write_json(Path(sys.argv[1]) / 'run' / 'a.json', {})\n"
        "except Exception as error: print(in_words(error))"
    )
    script = 'mount -t tmpfs -o ro tmpfs "$1" && "$2" -c "$3" "$1"'
    found = subprocess.run(
        [*NAMESPACE, "sh", "-c", script, "sh", str(tmp_path), sys.executable, code],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(f"the file system is read-only: {tmp_path / 'run'}; mount it")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    import fcntl

    config = worlds.write_config(tmp_path)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert cli.main(["sample", str(config)]) == cli.FAILED
    error = capsys.readouterr().err
    assert "the file system gives no locks" in error
    assert "local_lock=flock" in error


def test_too_many_open_files(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from pad_fast.files.own_files import read_json\n"
        "from pad_fast.files.system_errors import in_words\n"
        "Path(sys.argv[1]).write_text('{}')\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try: read_json(Path(sys.argv[1]))\n"
        "except Exception as error: print(in_words(error))"
    )
    path = str(tmp_path / "a.json")
    found = subprocess.run(
        [sys.executable, "-c", code, path], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert found.stdout.startswith(f"the process has too many files open: {path}; raise the limit")


@pytest.mark.parametrize("code", CODES, ids=CODES.values())
def test_every_error_is_found_where_a_library_wraps_it(code):
    own = OSError(code, os.strerror(code), "runs/a")
    said = str(in_words(own))
    assert ": runs/a; " in said
    for text in (f"I/O error: {os.strerror(code)} (os error {code})", os.strerror(code)):
        assert str(in_words(RuntimeError(text))).startswith(said.split(":")[0])
    outer = RuntimeError("it failed")
    outer.__cause__ = own
    assert in_words(outer) == said


@pytest.mark.parametrize(
    "error",
    [
        ValueError("disk: No space left on device"),  # ours, in words
        FileNotFoundError(errno.ENOENT, "No such file", "a"),
        RuntimeError("PytorchStreamReader failed reading zip archive"),
        RuntimeError("os error 281"),
        KeyError("x"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert in_words(error) is None
