"""Kernels compiled in a process of their own, in which the interpreter is off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import triton

ROOT = Path(__file__).resolve().parents[2]
# What tools/kernel_resources.py has recorded, by the minor version of Triton.
TABLES = json.loads((Path(__file__).parent / "resources.json").read_text())
MINOR = ".".join(triton.__version__.split(".")[:2])


def python(*arguments: str, **variables: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"
    } | variables
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def compiled(*arguments: str) -> dict[str, dict]:
    """What tools/kernel_resources.py finds with this Triton."""
    return json.loads(python("tools/kernel_resources.py", *arguments))[MINOR]
