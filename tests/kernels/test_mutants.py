"""The tests can fail: they notice broken kernels.

tools/mutate_kernels.py has run all mutants and recorded which test noticed. Two run again here.
"""

import json
from pathlib import Path

import pytest

from tools import mutate_kernels


def test_every_mutant_was_caught():
    record = json.loads(Path(mutate_kernels.RECORD).read_text())
    assert record.keys() == mutate_kernels.MUTANTS.keys(), "run tools/mutate_kernels.py --write"
    assert all(record.values())


@pytest.mark.parametrize("name", mutate_kernels.MUTANTS)
def test_mutants_still_apply(name):
    mutant = mutate_kernels.MUTANTS[name]
    assert (mutate_kernels.ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new


@pytest.mark.parametrize("name", ["forward: an unread tail", "backward: wrong scale"])
def test_broken_kernels_are_caught(name):
    assert mutate_kernels.run(name).startswith("test_values_and_gradients")
