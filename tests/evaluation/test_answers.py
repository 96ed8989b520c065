"""Which responses are right, by each of the rules."""

import importlib
import itertools
import json
import os
import threading
from pathlib import Path

import pytest

from pad_fast.evaluation import exact_match
from pad_fast.evaluation.answers import (
    RULES,
    check_rule,
    extract_flexible,
    extract_strict,
    number,
    without_ignored,
)

TOOLS = Path(__file__).parents[2] / "tools"
# GSM8K's test split as JSON lines; the package does not come with it.
GSM8K = os.environ.get("PAD_FAST_GSM8K")
RECORD = [
    json.loads(line)
    for line in Path(__file__).with_name("lm_eval_verdicts.jsonl").read_text().splitlines()
][1:]


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("3 + 4 = 7 #### 7", "7", True),
        ("#### 8\nno, wait\n#### 7", "7", True),  # the last mark counts
        ("#### 7 #### 8", "7", False),
        ("####  a   b \n", "a b", True),  # white space counts as one blank
        ("work\n42", "42", True),  # no mark: the last line
        ("work\n42\n\n  \n", "42", True),  # blank lines at the end are no line
        ("42\nis it", "42", False),
        ("#### 7", "half of 14 is 7\n#### 7", True),  # a GSM8K solution given whole
        ("####7", "7", True),
        ("####\n7", "7", True),
        ("####", "7", False),
        ("", "7", False),
        ("", "", False),  # an empty response is never right
        ("#### Ab", "ab", False),
        # numbers are compared by their value
        ("#### 7.0", "7", True),
        ("#### $18", "18", True),
        ("18.", "18", True),
        ("18.00", "18", True),
        ("1,800", "1800", True),
        ("#### 1800", "1,800", True),
        ("#### −5", "-5", True),
        ("#### -$5", "-5", True),
        ("#### .5", "0.50", True),
        ("#### 007", "7", False),  # a name or a code
        ("#### 1,80", "180", False),
        ("#### 1/2", "0.5", False),
        ("#### 2/4", "1/2", False),
        ("#### " + "9" * 5000, "9" * 5000 + ".0", True),  # longer than Python's limit for int
        ("#### inf", "inf", True),
        ("#### nan", "nan", True),  # a word like others
        # what is written around and behind a final answer
        ("The answer is 18.", "18", True),
        ("The answer is: 18", "18", True),
        ("So the answer to all of it is: **$18.00**.", "18", True),
        ("**Answer:** 18", "18", True),
        ("The answer is Paris.", "Paris", True),
        ("The answer is 12 or 18.", "18", False),
        ("\\boxed{18}", "18", True),
        ("\\[ \\boxed{18} \\]", "18", True),
        ("So $\\boxed{\\frac{1}{2}}$ of it.", "\\frac{1}{2}", True),
        ("\\boxed{18", "18", True),
        ("**18**", "18", True),
        ("#### **18**", "18", True),
        ("`18`", "18", True),
        ("$18$", "18", True),
        ("#### \\boxed{18}", "18", True),
        ("#### 540\nThe answer is: 540", "540", True),
        ("#### 540 dollars in all", "540", True),
        ("#### 540 dollars", "540 dollars", True),
        ("#### 5 10 15", "5", False),
        ("12 and then 13", "12", False),
        ("So she has 18 apples.", "18", False),
    ],
)
def test_exact_match(response: str, answer: str, right: bool) -> None:
    assert exact_match(response, answer) is right


@pytest.mark.parametrize(
    ("text", "gold", "strict", "flexible"),
    [
        ("2+3 is 5\n#### 5", "... #### 5", True, True),
        # lm-eval's pattern leaves no room for a currency sign after the mark
        ("#### $1,234", "#### 1234", False, True),
        ("#### 18.", "#### 18", True, True),
        # lm-eval compares texts and says no to both; the values are equal
        ("#### 18.00", "#### 18", True, True),
        ("So she has 18 apples.", "#### 18", False, True),
        ("The result is \\boxed{18}", "#### 18", False, True),
        ("**18**", "#### 18", False, True),
        ("#### 540\nThe answer is: 540", "#### 540", True, True),
        ("12 and then 13", "#### 12", False, False),
        ("none at all", "#### 12", False, False),
        ("#### .", "#### ", False, False),  # nothing is left of either
        ("", "", False, False),
    ],
)
def test_lm_evals_rules(text: str, gold: str, strict: bool, flexible: bool) -> None:
    found = [RULES[name].is_right(text, gold) for name in ("strict-match", "flexible-extract")]
    assert found == [strict, flexible]


def test_the_rules_agree_with_what_lm_eval_said() -> None:
    """The record was written by tools/compare_answers.py, with lm-eval's own filters and metric."""
    assert len(RECORD) > 150
    for rule, extract in (("strict-match", extract_strict), ("flexible-extract", extract_flexible)):
        for row in RECORD:
            response, solution, (extracted, right) = row["response"], row["solution"], row[rule]
            assert (extract(response) or "[invalid]") == extracted
            by_value = number(without_ignored(extracted))
            if by_value is not None and by_value == number(without_ignored(solution)):
                right = True  # lm-eval may say no where 18.00 stands for 18
            assert RULES[rule].is_right(response, solution) is right, row


@pytest.mark.skipif(not GSM8K, reason="PAD_FAST_GSM8K names no file")
def test_every_solution_of_gsm8k_is_right_by_every_rule() -> None:
    lines = Path(str(GSM8K)).read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["answer"] for line in lines]
    assert len(solutions) == 1319
    for rule in ("exact", "strict-match", "flexible-extract"):
        for solution, other in itertools.pairwise(solutions):
            assert RULES[rule].is_right(solution, solution)
            final = [number(text.rpartition("#### ")[2]) for text in (solution, other)]
            assert RULES[rule].is_right(solution, other) is (final[0] == final[1])


@pytest.mark.skipif(not GSM8K, reason="PAD_FAST_GSM8K names no file")
def test_the_rules_agree_with_lm_eval_on_gsm8k(capsys, monkeypatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = importlib.import_module("compare_answers")
    assert tool.main([str(GSM8K)]) == 0, capsys.readouterr().out


def test_math_verify_is_refused_where_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr("pad_fast.evaluation.answers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'in a clone of pad-fast, pip install "\.\[math\]"'):
        check_rule("math-verify")
    with pytest.raises(ValueError, match="answer_rule: must be one of exact, strict-match"):
        check_rule("close")


def test_math_verify_compares_values() -> None:
    pytest.importorskip("math_verify")
    is_right = RULES["math-verify"].is_right
    cases = [("So \\boxed{\\frac{1}{2}}", "#### 0.5"), ("2/4", "1/2"), ("#### 18", "17")]
    expected = [True, True, False]
    assert [is_right(*case) for case in cases] == expected
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend(is_right(*case) for case in cases))
    thread.start()
    thread.join()
    assert found == expected
