"""The directive ``{made} NAME``: a table that is made from the code, see tools/site_tables.py.

Its option ``:class:`` names classes of the style sheet for the table.
"""

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tools.site_tables import TABLES


class Made(SphinxDirective):
    required_arguments = 1
    option_spec = {"class": directives.class_option}  # noqa: RUF012, as docutils has it

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"no table {name!r}; there are {', '.join(TABLES)}")
        container = nodes.Element()
        lines = with_classes(TABLES[name]().splitlines(), self.options.get("class", []))
        self.state.nested_parse(StringList(lines, name), 0, container, match_titles=True)
        return container.children


def with_classes(lines: list[str], classes: list[str]) -> list[str]:
    """The lines, with a line in front of each table that gives it classes."""
    marked: list[str] = []
    for line in lines:
        if classes and line.startswith("|") and not (marked and marked[-1].startswith("|")):
            marked.append(f"{{{' '.join(f'.{name}' for name in classes)}}}")
        marked.append(line)
    return marked


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("made", Made)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
