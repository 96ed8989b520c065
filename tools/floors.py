"""The oldest releases that pyproject.toml allows, as constraints for pip: ``make floors``.

``python tools/floors.py`` prints ``name==version`` for each bound ``name>=version`` of the
dependencies and extras; ``python tools/floors.py torch`` prints that package's version alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

BOUND = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)")


def floors(pyproject: Path) -> dict[str, str]:
    """The version after ``>=`` of each package of the project's dependencies and extras.

    Raises:
        ValueError: a package has no such bound, or two different ones.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    extras = project["optional-dependencies"].values()
    for requirement in chain(project["dependencies"], *extras):
        bound = BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"{pyproject}: {requirement!r} must have a lower bound, as name>=1.0")
        name, version = bound.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(f"{pyproject}: {name} has two bounds, {found[name]} and {version}")
    return found


def main(names: list[str]) -> None:
    found = floors(Path(__file__).resolve().parents[1] / "pyproject.toml")
    print("\n".join([found[name] for name in names] or [f"{n}=={v}" for n, v in found.items()]))


if __name__ == "__main__":
    main(sys.argv[1:])
