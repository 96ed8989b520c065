"""Was the final answer right? The GSM8K convention (Cobbe et al. 2021): what follows ``####`` is the answer."""

MARK = "####"


def exact_match(response: str, answer: str) -> bool:
    """Whether the final answer of ``response`` is that of ``answer``, as text.

    The final answer is what follows the last ``####``, or the last line of a text without one; the space around it is
    dropped and runs of white space count as one blank. ``answer`` is read in the same way, so that a GSM8K solution can be
    given whole. A response without a final answer is never right.
    """
    found = final_answer(response)
    return bool(found) and found == final_answer(answer)


def final_answer(text: str) -> str:
    """What :func:`exact_match` compares: the text after the last ``####``, else the last line that is not blank."""
    _, mark, tail = text.rpartition(MARK)
    if not mark:
        tail = text.strip().rpartition("\n")[2]
    return " ".join(tail.split())
