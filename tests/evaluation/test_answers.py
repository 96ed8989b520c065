"""Exact match compares final answers as text."""

import pytest

from pad_fast.evaluation import exact_match


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
        ("####", "7", False),
        ("", "7", False),
        ("", "", False),  # an empty response is never right
        ("#### 7.0", "7", False),  # text, not numbers
        ("#### Ab", "ab", False),
    ],
)
def test_exact_match(response: str, answer: str, right: bool) -> None:
    assert exact_match(response, answer) is right


def test_final_answer_needs_no_space_after_the_mark() -> None:
    assert exact_match("####7", "7")
