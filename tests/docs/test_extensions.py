"""What the site's extensions do to text; they need the extra `docs`, which `make docs` installs."""

import re
import sys

import pytest
from docs_pages import ROOT

pytest.importorskip("myst_parser")
pytest.importorskip("latex2mathml")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "extensions"), *sys.path])


@pytest.mark.parametrize(
    ("folder", "link", "expected"),
    [
        ("", "[a](docs/loss.md#x)", "[a](/loss.md#x)"),
        ("docs", "[a](loss.md)", "[a](/loss.md)"),
        ("docs", "[a](../benchmarks/README.md)", "[a](/speed-records.md)"),
        ("", "[a](CONTRIBUTING.md)", "[a](/contributing.md)"),
        ("", "[a](benchmarks)", "[a](/speed-records.md)"),
        ("", "[a](examples)", "[a] `examples/`"),
        ("docs", "[a](../examples/bare_loop.py)", "[a](../examples/bare_loop.py)"),
        ("", "[a](pad_fast/reference.py)", "[a](../pad_fast/reference.py)"),
        ("", "[a](https://arxiv.org/abs/2502.14272)", "[a](https://arxiv.org/abs/2502.14272)"),
        ("docs", "[a](#here)", "[a](#here)"),
    ],
)
def test_links_lead_to_pages_or_files(folder, link, expected):
    from repository_links import to_pages

    assert to_pages(link, ROOT / folder) == expected


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("pad_fast.losses", True),
        ("pad_fast.losses.check_loss", True),
        ("pad_fast.preference.loss_kinds.Kind.is_exact", True),
        ("pad_fast.losses.no_such_thing", False),
        ("pad_fast.no_such_module.thing", False),
        ("torch.nn.Module", False),
    ],
)
def test_names_in_docstrings_are_looked_for_in_the_code(name, there):
    from docstrings import exists

    assert exists(name) is there


def test_bars_in_docstrings_are_bars():
    from docstrings import escape_bars

    lines = ["r(y|x) = 1/|y|, as ``a | b``", "    >>> a | b"]
    escape_bars(None, "function", "f", None, None, lines)
    assert lines == [r"r(y\|x) = 1/\|y\|, as ``a | b``", "    >>> a | b"]


def test_formulas_become_mathml():
    from mathml import mathml

    found = mathml(r"\log \pi", "inline")
    assert found.startswith("<math")
    assert re.search(r"<mi>log</mi>\s*<mspace", found)  # a space after the function's name
    assert "<mspace" not in mathml(r"\max(a, b)", "inline")


def test_classes_stand_before_each_table():
    from made_tables import with_classes

    lines = ["| a |", "| --- |", "", "text", "| b |"]
    assert with_classes(lines, []) == lines
    marked = with_classes(lines, ["stacked", "settings"])
    assert marked == ["{.stacked .settings}", *lines[:4], "{.stacked .settings}", "| b |"]
