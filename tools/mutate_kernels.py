"""Break the kernels on purpose, and record which test notices.

    python tools/mutate_kernels.py [--all | --only NAME ...] [--jobs 2]

Each mutant of tools/kernel_mutants.py is one replacement in a copy of the sources. The tests run
against it until one fails, which tests/kernels/mutants.json records.

By default those run whose answer is older than the code: the mutated file, the test that noticed,
and what the tests of its folder share. ``--all`` takes 25 minutes of one core.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tools.kernel_mutants import MUTANTS, TESTS, Mutant  # noqa: E402

RECORD = ROOT / "tests" / "kernels" / "mutants.json"
Record = dict[str, dict[str, str]]


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of the mutant's file with the replacement made."""
    text = (root / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(
            f"{mutant.old!r} must occur once in {mutant.file}, and occurs {count} times"
        )
    return text.replace(mutant.old, mutant.new)


def copy_sources(root: Path, folder: Path) -> None:
    """Copy the sources and tests of ``root`` into ``folder``."""
    for part in ("kernels", "pad_fast", "tests", "tools"):
        ignored = shutil.ignore_patterns("tiny_world", "__pycache__")
        shutil.copytree(root / part, folder / part, ignore=ignored)
    shutil.copy(root / "pyproject.toml", folder)


def run(name: str, root: Path = ROOT) -> str:
    """The test that fails on the mutant, "" if none does."""
    mutant = MUTANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy_sources(root, Path(folder))
        (Path(folder) / mutant.file).write_text(mutated(mutant, root))
        options = ["-k", mutant.only, "-v", "-x", "--no-header", "-p", "no:cacheprovider"]
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": folder,
        }
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *mutant.suite, *options],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return ""
    # The last test that started has failed, or has ended the process.
    started = re.findall(rf"^{TESTS}/\S+\.py::(\S+)", done.stdout, re.MULTILINE)
    if not started:
        end = done.stdout[-2000:] + done.stderr[-2000:]
        raise RuntimeError(f"{name}: the tests did not run:\n{end}")
    return started[-1] + (f" (died of signal {-done.returncode})" if done.returncode < 0 else "")


def code_of(text: str, noticed: str | None = None) -> Any:
    """What a source says, without comments, docstrings and imports, in plain tuples.

    Args:
        text: of a Python file.
        noticed: the one test of the file that counts; None for all of them.
    """
    return _plain(ast.parse(text), noticed)


def _plain(node: Any, noticed: str | None) -> Any:
    if isinstance(node, list):
        return [_plain(each, noticed) for each in node if not _is_left_out(each, noticed)]
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _plain(value, noticed)) for name, value in ast.iter_fields(node))
    # Later releases of Python have more fields, empty in what earlier ones can read.
    return type(node).__name__, [field for field in fields if field[1] not in (None, [])]


def _is_left_out(node: Any, noticed: str | None) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    return is_test and noticed not in (None, node.name)


def digest(name: str, test: str, root: Path = ROOT) -> str:
    """A hash of the code from which it follows that ``test`` notices the mutant ``name``."""
    mutant, noticed = MUTANTS[name], re.split(r"\W", test)[0]
    folders = {(root / path).parent for path in mutant.suite}
    files = [p for folder in sorted(folders) for p in sorted(folder.glob("*.py"))]
    texts = [p.read_text() for p in files if not p.name.startswith("test_")]
    suite = [(root / path).read_text() for path in mutant.suite]
    texts += [text for text in suite if f"def {noticed}(" in text]
    code = [mutant.only, code_of(mutated(mutant, root))]
    code += [code_of(text, noticed) for text in texts]
    return hashlib.sha256(repr(code).encode()).hexdigest()[:16]


def stale(record: Record, root: Path = ROOT) -> list[str]:
    """The mutants that have no answer, or one that is older than the code."""
    return [
        name
        for name in MUTANTS
        if name not in record or record[name]["code"] != digest(name, record[name]["test"], root)
    ]


def read_record() -> Record:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def write_answer(name: str, test: str, root: Path) -> None:
    """Record which test of ``root`` noticed; a mutant that survived has no entry."""
    known = read_record()
    known.pop(name, None)
    if test:
        known[name] = {"test": test, "code": digest(name, test, root)}
    ordered = {each: known[each] for each in MUTANTS if each in known}
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n")


def answers(names: list[str], jobs: int, root: Path) -> Iterator[tuple[str, str]]:
    """Run ``jobs`` mutants at a time, and yield each with the test that noticed, as they end."""
    with ThreadPoolExecutor(jobs) as pool:
        names_of = {pool.submit(run, name, root): name for name in names}
        for done in as_completed(names_of):
            yield names_of[done], done.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", choices=MUTANTS, metavar="NAME", help="these alone")
    which.add_argument("--all", action="store_true", help="also those with a current answer")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (%(default)s)")
    arguments = parser.parse_args()
    names = arguments.only or (list(MUTANTS) if arguments.all else stale(read_record()))
    print(f"{len(names)} of {len(MUTANTS)} mutants to run", flush=True)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        still = Path(folder)  # what is edited meanwhile is in no answer
        copy_sources(ROOT, still)
        for name, test in answers(names, arguments.jobs, still):
            print(f"{name:44} {test or 'SURVIVED'}", flush=True)
            write_answer(name, test, still)
            survived += not test
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
