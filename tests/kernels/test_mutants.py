"""The tests can fail: they notice broken kernels.

tools/mutate_kernels.py has run all mutants and recorded which test noticed. Two run again here.
"""

import shutil

import pytest

from tools import mutate_kernels
from tools.mutate_kernels import MUTANTS, ROOT, code_of

KERNEL = """
def kernel(x):
    return 2 * x
"""
TESTS = """
SIZE = 3

def test_one():
    assert kernel(SIZE) == 6

def test_other():
    assert kernel(0) == 0
"""


def test_every_mutant_was_caught_with_the_code_as_it_is():
    old = mutate_kernels.stale(mutate_kernels.read_record())
    assert not old, f"older than the code, run `python tools/mutate_kernels.py`: {old}"
    assert mutate_kernels.read_record().keys() == MUTANTS.keys()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_still_apply(name):
    mutant = MUTANTS[name]
    assert mutant.new in mutate_kernels.mutated(mutant)
    assert mutant.old != mutant.new


def test_words_imports_and_other_tests_do_not_make_an_answer_old():
    said = KERNEL.replace("return", '"""Twice."""  # of x\n\n    return')
    assert code_of(said) == code_of(KERNEL)
    other = TESTS.replace("(0) == 0", "(1) == 2")
    assert code_of(other, "test_one") == code_of(TESTS, "test_one")
    more = "import math\n" + TESTS + "def test_third(): pass"
    assert code_of(more, "test_one") == code_of(TESTS, "test_one")


@pytest.mark.parametrize(("old", "new"), [("SIZE = 3", "SIZE = 0"), ("== 6", "!= 7"), ("one", "")])
def test_what_the_test_that_noticed_says_makes_an_answer_old(old, new):
    changed = TESTS.replace(old, new)
    assert code_of(changed, "test_one") != code_of(TESTS, "test_one")


@pytest.mark.parametrize(
    ("file", "is_old"),
    [
        ("kernels/logprob/forward.py", True),
        ("tests/kernels/logprob/test_values.py", True),
        ("tests/kernels/logprob/cases.py", True),
        ("kernels/logprob/backward.py", False),
        ("tests/kernels/preference/cases.py", False),
    ],
)
def test_a_change_of_one_file_makes_answers_old(file, is_old, tmp_path):
    for folder in ("kernels", "tests/kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    name, test = "forward: an unread tail", "test_values_and_gradients[plain-torch.float32]"
    before = mutate_kernels.digest(name, test, tmp_path)
    changed = tmp_path / file
    changed.write_text(changed.read_text() + "\nCHANGED = 1\n")
    assert (mutate_kernels.digest(name, test, tmp_path) != before) == is_old


def test_a_survivor_has_no_answer(tmp_path, monkeypatch):
    record = tmp_path / "mutants.json"
    monkeypatch.setattr(mutate_kernels, "RECORD", record)
    one, other = list(MUTANTS)[:2]
    for name in (other, one):
        mutate_kernels.write_answer(name, "test_values_and_gradients[plain]", ROOT)
    answers = mutate_kernels.read_record()
    assert list(answers) == [one, other]
    assert mutate_kernels.stale(answers) == list(MUTANTS)[2:]
    mutate_kernels.write_answer(one, "", ROOT)
    assert list(mutate_kernels.read_record()) == [other]
    assert one in mutate_kernels.stale(mutate_kernels.read_record())


@pytest.mark.parametrize("name", ["forward: an unread tail", "backward: wrong scale"])
def test_broken_kernels_are_caught(name):
    assert mutate_kernels.run(name).startswith("test_values_and_gradients")
