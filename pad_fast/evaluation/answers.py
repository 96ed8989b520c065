"""Exact match of final answers, by GSM8K's convention (Cobbe et al. 2021)."""

MARK = "####"


def exact_match(response: str, answer: str) -> bool:
    """Whether the final answer of a response is the expected one, compared as text.

    The final answer is the text after the last ``####``, or the last line that is not blank if
    there is no mark. White space around it is dropped, and white space within it counts as one
    blank.

    Args:
        response: what the model wrote.
        answer: the expected answer, or a full GSM8K solution that ends with one.

    Returns:
        True if both final answers are the same text. A response without one is never right.

    Example:
        >>> from pad_fast.evaluation import exact_match
        >>> exact_match("3 + 4 = 7 #### 7", "7")
        True
        >>> exact_match("I think it is\\n42", "half of 84 is 42\\n#### 42")
        True
        >>> exact_match("#### 7.0", "7")  # text, not numbers
        False
    """
    found = final_answer(response)
    return bool(found) and found == final_answer(answer)


def final_answer(text: str) -> str:
    """The text after the last ``####``, else the last line that is not blank."""
    _, mark, tail = text.rpartition(MARK)
    if not mark:
        tail = text.strip().rpartition("\n")[2]
    return " ".join(tail.split())
