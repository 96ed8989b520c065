"""Counts of Markdown in an answer, as Arena-Hard's style control wants them."""

from __future__ import annotations

import re

# The expressions of arena-hard-auto (utils/add_markdown_info.py), so that counts are the same.
_CODE = re.compile("```([^`]*)```")
_HEADERS = {f"h{level}": re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7)}
_LISTS = {
    "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}
_GROUPS = {"header_count": _HEADERS, "list_count": _LISTS, "bold_count": _BOLD}


def style_counts(text: str) -> dict[str, dict[str, int]]:
    r"""Headers by level, list items and bold passages of a text outside of its code blocks.

    Args:
        text: an answer in Markdown.

    Returns:
        ``header_count`` with h1 to h6, ``list_count`` with ordered and unordered, and
        ``bold_count`` with ``**`` and ``__``.

    Example:
        >>> style_counts("# Plan\n- **one**\n- two")["list_count"]
        {'ordered': 0, 'unordered': 2}
    """
    # The official function removes what stands in a block wherever it occurs, and keeps the fences.
    for block in _CODE.findall(text):
        text = text.replace(block, "")
    return {
        group: {name: len(pattern.findall(text)) for name, pattern in patterns.items()}
        for group, patterns in _GROUPS.items()
    }
