"""Run ``pad-fast run`` on a file system that is too small, and grow it each time.

    unshare --map-root-user --mount python small_disk.py CONFIG.yaml FOLDER KIBIBYTES ...

FOLDER, in which the config puts the run, becomes a file system of each size in turn. After the
last one the run is copied to FOLDER.copy. Prints what each command ended with, as JSON lines. All
commands run in forks of one process, so that everything is imported once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import torch

from pad_fast import cli
from pad_fast.pipeline import rounds  # noqa: F401  imported before the forks

torch.set_num_threads(1)
cli.leave_imports_to_themselves()


def run(config: str) -> int:
    """Run the command in a fork, print its exit code and errors, and return the code."""
    pid = os.fork()
    if pid == 0:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(["run", config])
        print(json.dumps({"code": code, "said": said.getvalue().splitlines()[-1:]}), flush=True)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(config: str, folder: str, *sizes: str) -> int:
    code = 0
    for number, size in enumerate(sizes):
        how = "remount," if number else ""
        mount = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}k", "tmpfs", folder]
        subprocess.run(mount, check=True)
        code = run(config)
    shutil.copytree(folder, f"{folder}.copy")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
