"""The rules of the layout, each as a function that yields what breaks it.

``python tests/layout_rules.py [FOLDER ...]`` prints what breaks them, and tests/test_layout.py
asserts that every one yields nothing.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("pad_fast", "kernels", "benchmarks", "tools", "examples")

# A module imports from lower layers and from its own package only.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands", "plan", "doctor", "benchmark"),
    ("pipeline",),
    ("report", "footprint"),
    ("training",),
    ("models", "warming"),
    ("modules",),
    ("linear_loss",),
    ("loss_inputs",),
    ("functional", "losses"),
    ("linear_logprob", "evaluation"),
    ("logprob", "preference"),
    ("reference", "environment"),
    ("dispatch", "custom_operation"),
    ("kernels",),
    ("argument_checks", "conversation", "device_errors"),
    ("launch",),
    ("files", "progress"),
    ("terminal", "interrupts", "device"),
    ("secret_values", "allocator"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

MOST_PARAMETERS = 8
# The options of these are what a user reads in help(): each has a name of its own there.
PUBLIC = {
    "linear_token_logprobs",
    "probabilistic_preference_loss",
    "vanilla_preference_loss",
    "linear_preference_loss",
    "score_responses",
    "PADLoss.__init__",
    "LinearPADLoss.forward",
    "PADTrainer.__init__",
}
MOST_LINES, MOST_TEST_LINES = 45, 300
MOST_WORDS, WORDS_WITHOUT_HEADING = 200, 80
DEVICE_FILES = ("pad_fast/device.py", "kernels/common/device.py")
DEVICE_QUESTIONS = re.compile(
    r"\bis_cuda\b|\bdevice\.type\s*[!=]=|torch\.cuda\b|torch\.version\b|torch\.accelerator\b"
)
# These read the page's template, a server's log, the system's processes and lm-eval's own file.
OWN_READERS = ("page.py", "own_server.py", "watchdog.py", "lm_eval_harness.py")
READS = re.compile(
    r"\.read_(?:text|bytes)\(|\bpq\.|json\.load\(|yaml\.(?:safe_)?load|torch\.load|safe_open"
    r"|load_file\(|csv\.(?:Dict)?[Rr]eader|(?<![\w.])(?<!def )open\("
)
HARD_TO_READ = re.compile(r"\b(?:is|are|was|were) told\b|\bwhat is [a-z]+ is\b")


@cache
def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """``pad_fast.logprob.op`` of a file; kernels/ is imported as pad_fast.kernels."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("pad_fast", *parts) if parts[0] == "kernels" else parts
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of ours that a file imports, at the top or within functions, with the line."""
    known = {module_name(other) for other in python_files("pad_fast", "kernels", "benchmarks")}
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                names.append(submodule if submodule in known else module)
        for name in names:
            if name in known:
                yield name, node.lineno


def upward_imports() -> Iterator[str]:
    """Imports of pad_fast/ that do not go down :data:`LAYERS`."""
    for path in python_files("pad_fast"):
        own = module_name(path).split(".")[1:2]
        if not own:  # pad_fast/__init__.py names everything, and imports when a name is used
            continue
        if own[0] not in RANK:
            yield f"{shown(path)}: {own[0]} has no layer in tests/layout_rules.py"
            continue
        for name, line in imported_modules(path):
            target = name.split(".")[1:2]
            if target and target != own and RANK.get(target[0], -1) <= RANK[own[0]]:
                yield f"{shown(path)}:{line}: {own[0]} imports {target[0]}, which is no layer below"


def cycles() -> Iterator[str]:
    """Modules that import one another, at the top or within functions."""
    graph = {
        module_name(path): {name for name, _ in imported_modules(path)}
        for path in python_files("pad_fast", "kernels", "benchmarks")
    }
    reachable = {name: set(targets) for name, targets in graph.items()}
    grown = True
    while grown:
        grown = False
        for targets in reachable.values():
            more = set().union(*(reachable.get(target, set()) for target in targets)) - targets
            targets |= more
            grown = grown or bool(more)
    for name, targets in reachable.items():
        if name in targets:
            yield f"{name}: imports itself by way of {', '.join(sorted(graph[name]))}"


def foreign_imports_of_kernels() -> Iterator[str]:
    """Kernels import torch, triton, the standard library and one another."""
    for path in python_files("kernels"):
        for node in ast.walk(parsed(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                root = name.partition(".")[0]
                if root not in ("torch", "triton", *sys.stdlib_module_names):
                    yield f"{shown(path)}:{node.lineno}: imports {name}"


def device_questions() -> Iterator[str]:
    """Questions about a device outside of the two device.py."""
    for path in python_files("pad_fast", "kernels"):
        if shown(path) in DEVICE_FILES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if DEVICE_QUESTIONS.search(line.partition("#")[0]):
                yield f"{shown(path)}:{number}: {line.strip()}"


def foreign_readers() -> Iterator[str]:
    """Files that are read without pad_fast/files/, whose errors name the place and what to do."""
    for path in python_files("pad_fast"):
        if path.parent.name != "files" and path.name not in OWN_READERS:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if READS.search(line.partition("#")[0]):
                    yield f"{shown(path)}:{number}: {line.strip()}"


def patches() -> Iterator[str]:
    """Product code that replaces parts of modules while it runs."""
    for path in python_files("pad_fast", "kernels"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "mock" in ast.unparse(node):
                yield f"{shown(path)}:{node.lineno}: {ast.unparse(node)}"


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function with its qualified name, methods and inner functions included."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                if isinstance(child, ast.FunctionDef):
                    yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    return walk(parsed(path), "")


def _is_schema(node: ast.FunctionDef) -> bool:
    """An operation's schema, the fake that repeats it, or a kernel."""
    words = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    return any(word in words for word in ("custom_op", "register_fake", "triton.jit", "jit("))


def long_signatures() -> Iterator[str]:
    """Functions of more than eight parameters, but for schemas, kernels and :data:`PUBLIC`."""
    for path in python_files(*PRODUCT):
        for name, node in functions(path):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls", "ctx") for argument in given)
            if count > MOST_PARAMETERS and name not in PUBLIC and not _is_schema(node):
                yield f"{shown(path)}:{node.lineno}: {name} takes {count} parameters"


def long_functions() -> Iterator[str]:
    """Functions whose body has more than 45 lines without its docstring."""
    for path in python_files(*PRODUCT):
        for name, node in functions(path):
            has_docstring = ast.get_docstring(node) is not None
            body = node.body[1:] if has_docstring else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MOST_LINES:
                yield f"{shown(path)}:{node.lineno}: {name} has {lines} lines"


def long_docstrings() -> Iterator[str]:
    """Docstrings over 200 words, and those over 80 without a heading such as ``Args:``."""
    for path in python_files(*PRODUCT, "tests"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            text = ast.get_docstring(node) or ""
            words, name = len(text.split()), getattr(node, "name", "the module")
            line = getattr(node, "lineno", 1)
            if words > MOST_WORDS:
                yield f"{shown(path)}:{line}: the docstring of {name} has {words} words"
            elif words > WORDS_WITHOUT_HEADING and not re.search(r"^[A-Z][\w ]+:$", text, re.M):
                yield f"{shown(path)}:{line}: {words} words without a heading in {name}"


def hard_sentences() -> Iterator[str]:
    """Comments that begin with "of", and phrases that have to be read twice."""
    for path in python_files(*PRODUCT, "tests"):
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if found := HARD_TO_READ.search(line):
                yield f"{shown(path)}:{number}: {found[0]!r}"
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and re.match(r"#+\s*[Oo]f\b", token.string):
                yield f"{shown(path)}:{token.start[0]}: {token.string}"


def long_test_modules() -> Iterator[str]:
    """Test modules of more than 300 lines."""
    for path in python_files("tests"):
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_TEST_LINES:
            yield f"{shown(path)}: {lines} lines"


def missing_from_disk() -> Iterator[str]:
    """Paths in the file maps of README.md and CONTRIBUTING.md that do not exist."""
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        cells = re.findall(r"^\| ([^|]+) \|", text, re.M)
        for path in (path for cell in cells for path in re.findall(r"`([\w./-]+/[\w./-]*)`", cell)):
            if not (ROOT / path).exists():
                yield f"{name}: {path} does not exist"
        for path in re.findall(r"\]\(([^)#:]+)\)", text):
            if not (ROOT / path).exists():
                yield f"{name}: {path} does not exist"


RULES = (
    upward_imports,
    cycles,
    foreign_imports_of_kernels,
    device_questions,
    patches,
    long_signatures,
    long_functions,
    long_docstrings,
    foreign_readers,
    hard_sentences,
    long_test_modules,
    missing_from_disk,
)

if __name__ == "__main__":
    for rule in RULES:
        for broken in rule():
            if not sys.argv[1:] or any(broken.startswith(folder) for folder in sys.argv[1:]):
                print(f"{rule.__name__}: {broken}")
