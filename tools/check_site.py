"""Checks the built site, and lists what each page weighs.

    python tools/check_site.py build/docs

Every link and picture leads to a file and an anchor that exist; no page needs the network to be
shown; no formula is left in TeX. The exit code is 1 if something is wrong. Links to other sites are
not asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

RESOURCES = {"img": "src", "script": "src", "link": "href", "source": "srcset", "iframe": "src"}


class Page(HTMLParser):
    """What a page links to, the resources that it loads, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[name] or "" for name in ("id", "name") if name in values}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        wanted = RESOURCES.get(tag)
        if wanted and values.get(wanted) and values.get("rel") not in ("next", "prev", "canonical"):
            self.resources.append(str(values[wanted]))


def problems(site: Path) -> Iterator[str]:
    """One line for everything that is wrong."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: holds no page"
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for resource in page.resources:
            parts = urlsplit(resource)
            if parts.scheme not in ("", "data") or parts.netloc:
                yield f"{name}: loads {resource} from the network"
        if "$$" in page.text or 'class="math notranslate nohighlight"' in page.text:
            yield f"{name}: holds a formula in TeX"
        for link in [*page.links, *page.resources]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{name}: {link} leads to no file"
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                yield f"{name}: {link} leads to no anchor"


def weights(site: Path) -> list[tuple[str, int, int]]:
    """For each page its name, its own bytes, and those with all that it loads."""
    found = []
    for path in sorted(site.glob("*.html")):
        loaded = {
            (path.parent / unquote(urlsplit(each).path)).resolve() for each in Page(path).resources
        }
        total = sum(each.stat().st_size for each in loaded if each.is_file())
        found.append((path.name, path.stat().st_size, path.stat().st_size + total))
    return found


def main(arguments: list[str]) -> int:
    site = Path(arguments[0] if arguments else "build/docs")
    for name, own, total in weights(site):
        print(f"{name:24} {own / 1024:7.0f} KiB {total / 1024:9.0f} KiB with what it loads")
    found = list(problems(site))
    print("\n".join(found) or "every link leads somewhere, and nothing is fetched")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
