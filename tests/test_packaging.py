"""What pyproject.toml says is true: dependencies, versions of Python, what sdist and wheel hold."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from layout_rules import parsed, python_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pad_fast.environment import install_extra

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DEPENDENCIES = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(t) for texts in PROJECT["optional-dependencies"].values() for t in texts]
OWN = {"pad_fast", "benchmarks", "tests", "tools", *(p.stem for p in (ROOT / "tools").iterdir())}
PACKAGE_OF = {"yaml": "pyyaml", "quack": "quack-kernels"}  # where it is not the module's own name
# Only measured against where somebody installed them: tools/gpu_wheels.sh says how.
PEERS = {"cut-cross-entropy", "quack-kernels"}
FOLDERS = ("benchmarks", "docs", "examples", "kernels", "pad_fast", "recipes", "tests", "tools")


def names(requirements) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imports(*folders: str, at_top: bool) -> dict[str, str]:
    """The packages that modules import: when they are imported themselves, or at any time."""
    found = {}
    for path in python_files(*folders):
        tree = parsed(path)
        for node in tree.body if at_top else ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {name.split(".")[0] for name in modules}:
                if module not in sys.stdlib_module_names | OWN:
                    package = canonicalize_name(PACKAGE_OF.get(module, module))
                    found.setdefault(package, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def undeclared(found: dict[str, str], declared: set[str]) -> dict[str, str]:
    return {package: place for package, place in found.items() if package not in declared}


def test_every_imported_package_is_declared():
    own = imports("pad_fast", "kernels", at_top=True)
    assert {"torch", "triton", "pyyaml", "huggingface-hub"} <= set(own)  # the search finds some
    assert undeclared(own, names(DEPENDENCIES)) == {}
    lazy = imports("pad_fast", "kernels", at_top=False)
    assert undeclared(lazy, names(DEPENDENCIES + EXTRAS)) == {}
    rest = imports("benchmarks", "tools", "examples", at_top=False)
    assert undeclared(rest, names(DEPENDENCIES + EXTRAS) | PEERS) == {}


def test_every_dependency_is_imported():
    unused = names(DEPENDENCIES) - set(imports("pad_fast", "kernels", at_top=False))
    assert unused == set()


def test_every_dependency_has_one_lower_bound():
    spec = importlib.util.spec_from_file_location("floors", ROOT / "tools" / "floors.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found = tool.floors(ROOT / "pyproject.toml")
    for requirement in DEPENDENCIES + EXTRAS:
        assert str(requirement.specifier) == f">={found[requirement.name]}", requirement


@pytest.mark.parametrize(
    ("text", "wrong"), [("'a'", "must have a lower bound"), ("'a>=1', 'a>=2'", "two bounds")]
)
def test_floors_without_a_bound_are_refused(tmp_path, text, wrong):
    file = tmp_path / "pyproject.toml"
    file.write_text(f"[project]\ndependencies = [{text}]\noptional-dependencies = {{}}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import floors; "
            "floors.floors(pathlib.Path(sys.argv[2]))",
            *(str(ROOT / "tools"), str(file)),
        ],
        capture_output=True,
        text=True,
    )
    assert wrong in done.stderr


def test_one_range_of_python_versions():
    """pyproject.toml's bound is the one truth: classifiers, README and tools say the same."""
    least = int(re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])[1])
    named = [re.fullmatch(r"Programming .* :: 3\.(\d+)", c) for c in PROJECT["classifiers"]]
    minors = [int(match[1]) for match in named if match]
    assert minors == list(range(least, minors[-1] + 1))
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py3{least}"
    ranges = {
        found
        for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for found in re.findall(r"Python 3\.(\d+) to 3\.(\d+)", document.read_text())
    }
    assert ranges == {(str(least), str(minors[-1]))}
    assert not re.search(r"3, 1\d|3\.1\d", (ROOT / "Makefile").read_text())  # reads pyproject.toml


def test_what_is_told_to_be_installed_can_be():
    """The package is not on PyPI: pip finds it in a clone alone, with the extras that there are."""
    places = ("docs", "examples", "recipes", "pad_fast", "benchmarks", "tools")
    kinds = ("*.md", "*.py", "*.ipynb", "*.yaml")
    files = [path for place in places for kind in kinds for path in (ROOT / place).rglob(kind)]
    texts = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *files]]
    told = [line for text in texts for line in re.findall(r"pip install [^`\n]*", text)]
    assert len(told) > 10
    assert [line for line in told if re.search(r"pad[-_]fast", line)] == []
    extras = {name for line in told for name in re.findall(r"\.\[([\w,-]+)\]", line)}
    extras |= {name for text in texts for name in re.findall(r'install_extra\("([^"]+)"\)', text)}
    extras |= {name for text in texts for name in re.findall(r"install_extra\('([^']+)'\)", text)}
    assert {"deepspeed", "eval", "math", "peft"} <= extras
    known = {*PROJECT["optional-dependencies"], "llm_judge"}  # the last is a judge's own project's
    assert {one for name in extras for one in name.split(",")} <= known
    assert install_extra("peft") == 'in a clone of pad-fast, pip install ".[peft]"'


# Run in a copy of the checkout: the sdist, and the wheel from the unpacked sdist.
BUILD = """
import os, pathlib, sys, tarfile
from setuptools import build_meta
checkout, out = map(pathlib.Path, sys.argv[1:])
os.chdir(checkout)
sdist = out / build_meta.build_sdist(str(out))
with tarfile.open(sdist) as archive:
    archive.extractall(out, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
os.chdir(out / sdist.name.removesuffix(".tar.gz"))
build_meta.build_wheel(str(out))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, unpacked too, and the wheel that was built from it."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("out")
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "_build", ".*cache")
    for name in (*FOLDERS, ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(copy), str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def checkout_files(*folders: str) -> set[str]:
    """Every file of the checkout's folders that is no rest of a run of Python or the site."""
    found = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    skipped = {"__pycache__", "_build"}
    return {
        str(path.relative_to(ROOT))
        for path in found
        if not skipped & set(path.parts) and not any(p.endswith(".egg-info") for p in path.parts)
    }


def test_the_sdist_is_the_checkout(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = checkout_files(*FOLDERS) | {"Makefile", ".ci/run", "setup.py", "pyproject.toml"}
    assert wanted - held == set()
    assert not {name for name in held if name.endswith(".pyc")}


def test_the_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        held = set(archive.namelist())
        (metadata,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
    info = str(Path(metadata).parent)
    assert {name.split("/")[0] for name in held} == {"pad_fast", info}
    assert f"{info}/licenses/LICENSE" in held
    kernels = {name for name in checkout_files("kernels") if name.count("/") > 1}
    data = checkout_files("recipes", "examples")  # for `pad-fast init` and those who look there
    wanted = checkout_files("pad_fast") | {f"pad_fast/{name}" for name in {*kernels, *data}}
    assert "pad_fast/py.typed" in wanted
    assert wanted - held == set()
    assert about["Requires-Python"] == PROJECT["requires-python"]
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().startswith("# pad-fast")
    assert re.findall(r"\]\((?!https?:)[^)]*", about.get_payload()) == []  # links, on PyPI
    assert {link.split(",")[0] for link in about.get_all("Project-URL")} == set(PROJECT["urls"])
    assert PROJECT["version"] in info
