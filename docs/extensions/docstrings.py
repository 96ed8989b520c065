"""Docstrings are written for a terminal; this makes them fit for the site.

A bar, as in |y|, is a bar and no substitution. A reference to a name that the API page does not
show is checked against the code, and shown as a name.
"""

import re
from importlib import import_module

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import pad_fast

LITERAL = re.compile(r"(``.*?``|^\s*>>>.*$|^\s*\.\.\. .*$)")


def escape_bars(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    for number, line in enumerate(lines):
        parts = LITERAL.split(line)
        lines[number] = "".join(
            part if LITERAL.fullmatch(part) else part.replace("|", "\\|") for part in parts
        )


def documented_or_there(
    app: Sphinx, env: object, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """A link to where a public name is documented, or the bare name of what is in the code."""
    target = node.get("reftarget", "")
    module, _, name = target.rpartition(".")
    if node.get("refdomain") != "py" or not name.isidentifier():
        return None
    if pad_fast._HOME.get(name) == module:
        domain = app.env.domains["py"]
        public = f"pad_fast.{name}"
        return domain.resolve_xref(
            app.env, node["refdoc"], app.builder, node["reftype"], public, node, content
        )
    return content if any(map(exists, places(node, target))) else None


def places(node: pending_xref, target: str) -> list[str]:
    """The full names that a reference may mean: as it stands, and within its own module."""
    own = node.get("py:module") or ""
    homes = [own, pad_fast._HOME.get((node.get("py:class") or "").partition(".")[0], "")]
    described = node.parent.parent if node.parent is not None else None
    source = getattr(described, "source", None) or ""
    if "docstring of " in str(source):
        homes.append(str(source).rpartition("docstring of ")[2].rpartition(".")[0])
    return [target, *(f"{home}.{target}" for home in homes if home)]


def exists(name: str) -> bool:
    """Whether ``pad_fast.module.thing`` is a module or something within one."""
    parts = name.split(".")
    if parts[0] != "pad_fast":
        return False
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("missing-reference", documented_or_there)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
