"""What the README and the site promise of themselves."""

import re

import pytest
from docs_pages import DOCUMENTS, PAGES, ROOT

from benchmarks.ratios import ROWS, ratios
from benchmarks.records import RESULTS
from tools.check_site import problems
from tools.site_tables import TABLES

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_narrow():
    lines = [line for line in README.splitlines() if not line.startswith("<!--")]
    assert len(lines) <= 118
    assert [line for line in lines if len(line) > 120] == []


def test_pictures_of_the_readme_have_absolute_addresses():
    """Elsewhere than in the repository, as on PyPI, a relative one shows nothing."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (home,) = re.findall(r'^Homepage = "(.+)"$', project, re.M)
    names = re.findall(r"!\[[^\]]+\]\[(\w+)\]", README)
    places = dict(re.findall(r"^\[(\w+)\]: (\S+)$", README, re.M))
    assert len(names) == 2
    assert not re.search(r"!\[[^\]]*\]\(", README)
    for name in names:
        root, _, file = places[name].partition("/main/")
        assert root == home.replace("//github.com/", "//raw.githubusercontent.com/")
        assert (ROOT / file).is_file()


def test_the_readme_has_the_ratios_of_the_records():
    table = ratios(RESULTS)
    for rows in ROWS.values():
        assert all(row.words in table for row in rows)
    assert table in README


def test_ratios_without_records(tmp_path):
    assert "Not yet" in ratios(tmp_path)


def test_every_page_is_in_the_contents():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    contents = "\n".join(re.findall(r"```{toctree}.*?```", text, re.S))
    listed = set(re.findall(r"^(?:[^<\n]+ <)?([\w-]+)>?$", contents, re.M))
    assert listed == {path.stem for path in PAGES} - {"index"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_included_is_there(path):
    for place, options in re.findall(
        r"```{include} (\S+)\n(.*?)```", path.read_text(encoding="utf-8"), re.S
    ):
        text = (path.parent / place).read_text(encoding="utf-8")
        for mark in re.findall(r"^:(?:start-after|end-before): (.+)$", options, re.M):
            assert text.count(mark) == 1, mark


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "benchmarks" / "README.md"], ids=lambda path: path.stem
)
def test_pictures_are_there(path):
    for place in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / place).is_file(), place


def test_every_made_table_is_used_and_made():
    used = {
        name
        for path in PAGES
        for name in re.findall(r"```{made} (\w+)", path.read_text(encoding="utf-8"))
    }
    assert used == set(TABLES)
    for name, make in TABLES.items():
        lines = [line for line in make().splitlines() if line.startswith("|")]
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(lines) > 2, name
        assert name == "settings" or len(bars) == 1, f"{name}: rows of {bars} bars"


WHOLE = '<a id="top" href="other.html#part">x</a><img src="picture.svg"><a href="#top">y</a>'


def site(folder, **changes):
    """A site of two pages and a picture that is right, but for the changed files."""
    files = {"index.html": WHOLE, "other.html": '<p id="part">x</p>', "picture.svg": "<svg/>"}
    for name, text in {**files, **changes}.items():
        if text is not None:
            (folder / name).write_text(text)
    return list(problems(folder))


def test_a_right_site_has_no_problems(tmp_path):
    assert site(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"other.html": None}, "leads to no file"),
        ({"other.html": "<p>x</p>"}, "leads to no anchor"),
        ({"picture.svg": None}, "leads to no file"),
        (
            {"other.html": '<p id="part"><script src="https://cdn/x.js"></script>'},
            "from the network",
        ),
        (
            {"other.html": '<p id="part"><link rel="stylesheet" href="//cdn/x.css">'},
            "from the network",
        ),
        ({"other.html": '<p id="part">$$x$$</p>'}, "a formula in TeX"),
    ],
)
def test_a_wrong_site_is_found(tmp_path, changes, problem):
    (found,) = site(tmp_path, **changes)
    assert problem in found


def test_a_site_without_pages_is_found(tmp_path):
    assert "holds no page" in next(problems(tmp_path))
