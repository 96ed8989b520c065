"""Links between the site and the repository.

The documents link to files by paths that work on a disk and in a repository's browser. On the site,
a path of a document that is a page leads to that page, and any other file is a download.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
# Documents outside of docs/, and the pages that include them.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "speed-records.md",
    "pad_fast/tiny_world/README.md": "tiny-world.md",
}
LINK = re.compile(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def to_pages(text: str, folder: Path) -> str:
    """``text`` of a document in ``folder``, with links to documents made links to pages."""

    def link(found: re.Match) -> str:
        target = os.path.relpath(folder / found["path"], ROOT)
        if target.startswith("docs/") and target.endswith(".md"):
            return f"](/{target.removeprefix('docs/')}{found['anchor'] or ''})"
        page = PAGES.get(target)
        if page is None and (ROOT / target).is_dir():
            page = PAGES.get(f"{target}/README.md")
            if page is None:
                return f"] `{target}/`"
        place = os.path.relpath(ROOT / target, ROOT / "docs") if page is None else f"/{page}"
        return f"]({place}{found['anchor'] or ''})"

    return LINK.sub(link, text)


def read_source(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = to_pages(source[0], ROOT / "docs")


def read_included(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    source[0] = to_pages(source[0], (ROOT / "docs" / path).resolve().parent)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_source)
    app.connect("include-read", read_included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
