"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import pad_fast

MODULES = [
    found.name
    for found in pkgutil.walk_packages(pad_fast.__path__, "pad_fast.")
    if not found.name.startswith("pad_fast.kernels.")  # device code, without examples
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0
