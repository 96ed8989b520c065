"""The rules of the layout hold; tests/layout_rules.py says what they are."""

import ast

import pytest
from layout_rules import RULES, cycles, module_name, parsed, python_files


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    assert list(rule()) == []


def test_a_cycle_is_seen(monkeypatch):
    """The rules can fail: two modules that import one another are named."""
    first, second = python_files("benchmarks")[1:3]
    trees = {
        path: ast.parse(f"import {module_name(other)}")
        for path, other in ((first, second), (second, first))
    }
    monkeypatch.setattr("layout_rules.parsed", lambda path: trees.get(path) or parsed(path))
    found = "\n".join(cycles())
    assert module_name(first) in found
    assert module_name(second) in found
