"""Rules by which a response is right: each finds its final answer and compares it.

:data:`RULES` is the one list of them. ``strict-match`` and ``flexible-extract`` are those of
EleutherAI's lm-eval for GSM8K (lm_eval/tasks/gsm8k/gsm8k.yaml, version 3.0 of the task, in lm-eval
0.4.13); ``tools/compare_answers.py`` compares them with lm-eval itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec

from pad_fast.environment import install_extra

MARK = "####"

# lm-eval's own patterns, letter for letter: its two filters, and what its metric ignores in both
# the extracted answer and the expected one, in this order.
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))

# A number with leading zeros is none: 007 is a name or a code.
_DIGITS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(rf"(?P<before>[-+]?)\\?[$€£]?(?P<after>[-+]?)(?P<digits>{_DIGITS})")
_LED_IN = re.compile(
    r".*\banswer\b[^.:=]{0,60}?(?:\bis\b|[:=])[:\s]*(?:(?:\*\*|__)[:\s]+)?(.+)", re.IGNORECASE
)
_WRAPPERS = (("**", "**"), ("__", "__"), ("`", "`"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_BOX = r"\boxed{"


def exact_match(response: str, answer: str) -> bool:
    r"""Whether the final answers of a response and of the expected text are the same.

    The final answer is the line after the last ``####``, else the last ``\boxed{}``, else what the
    last line says after "answer is" or "answer:", else the last line that is not blank.

    Args:
        response: what the model wrote.
        answer: the expected answer, or a full GSM8K solution that ends with one.

    Returns:
        True if both are the same text (white space counts as one blank, bold and math marks as
        nothing), or numbers of the same value. After ``####`` words without digits may follow a
        number. A response without a final answer is never right.

    Example:
        >>> from pad_fast.evaluation import exact_match
        >>> exact_match("3 + 4 = 7 #### 7", "7")
        True
        >>> exact_match("I think it is\n42", "half of 84 is 42\n#### 42")
        True
        >>> exact_match("The answer is $1,800.00.", "1800")
        True
        >>> exact_match("12 and then 13", "12")
        False
    """
    found, expected = final_answer(response), final_answer(answer)
    if not found:
        return False
    words = re.fullmatch(r"(\S+)\s[^0-9]+", found) if MARK in response else None
    return found == expected or _same_value(words[1] if words else found, expected)


def strict_match(response: str, answer: str) -> bool:
    """Whether lm-eval's ``strict-match`` calls a response right, or would if it compared values.

    The answer is the number after the first ``####`` and one blank, without a currency sign.

    Args:
        response: what the model wrote.
        answer: the expected answer, or a full GSM8K solution that ends with one.

    Example:
        >>> from pad_fast.evaluation.answers import strict_match
        >>> strict_match("#### 18.00 in all", "18"), strict_match("It is 18.", "18")
        (True, False)
    """
    return _equal(extract_strict(response), answer)


def flexible_extract(response: str, answer: str) -> bool:
    """Whether lm-eval's ``flexible-extract`` calls a response right, or would by value.

    The answer is the last number in the response.

    Args:
        response: what the model wrote.
        answer: the expected answer, or a full GSM8K solution that ends with one.

    Example:
        >>> from pad_fast.evaluation.answers import flexible_extract
        >>> flexible_extract("So she has 18 apples.", "18"), flexible_extract("12 or 13", "12")
        (True, False)
    """
    return _equal(extract_flexible(response), answer)


def math_verify(response: str, answer: str) -> bool:
    """Whether the package math-verify calls a response equal to the answer, fractions included.

    Args:
        response: what the model wrote.
        answer: the expected answer, or a full GSM8K solution that ends with one.

    Raises:
        ValueError: math-verify is not installed.
    """
    check_rule("math-verify")
    from math_verify import parse, verify

    # Its time limits are signals, which only the main thread receives.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    expected = parse(final_answer(answer), parsing_timeout=seconds)
    found = parse(response, parsing_timeout=seconds)
    return bool(verify(expected, found, timeout_seconds=seconds))


def extract_strict(text: str) -> str | None:
    """What lm-eval's filter ``strict-match`` takes from a text; None where it finds nothing."""
    found = STRICT.search(text)
    return found[1].strip() if found else None


def extract_flexible(text: str) -> str | None:
    """What lm-eval's filter ``flexible-extract`` takes from a text; None where there is nothing."""
    found = list(FLEXIBLE.finditer(text))
    return found[-1][0].strip() if found else None


def without_ignored(text: str) -> str:
    """A text as lm-eval's metric compares it."""
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def number(text: str) -> Decimal | None:
    """The exact value of a text that is one number, with a currency sign or without.

    Example:
        >>> from pad_fast.evaluation.answers import number
        >>> number("$1,800.0") == number("1800"), number("12,34"), number("007")
        (True, None, None)
    """
    found = _NUMBER.fullmatch(text.strip().replace("−", "-"))
    if found is None or (found["before"] and found["after"]):
        return None
    return Decimal(found["before"] + found["after"] + found["digits"].replace(",", ""))


def final_answer(text: str) -> str:
    r"""The line after the last ``####``, else what is boxed or led in by "answer", else the end."""
    _, mark, tail = text.rpartition(MARK)
    if mark:
        return _bare(tail.strip().partition("\n")[0])
    if _BOX in text:
        return _bare(_boxed(text))
    last = text.strip().rpartition("\n")[2]
    led_in = _LED_IN.fullmatch(last)
    return _bare(led_in[1].strip().removesuffix(".") if led_in else last)


@dataclass(frozen=True)
class Rule:
    """A rule by which responses are right.

    Args:
        help: what it compares, for the help of the setting ``answer_rule``.
        is_right: the rule, of a response and the expected answer.
        package: the module that it needs; empty if none.
        install: how to install that.
    """

    help: str
    is_right: Callable[[str, str], bool]
    package: str = ""
    install: str = ""


RULES = {
    "exact": Rule("the same text, or numbers of the same value", exact_match),
    "strict-match": Rule("lm-eval's rule, the number after ####", strict_match),
    "flexible-extract": Rule("lm-eval's rule, the last number", flexible_extract),
    "math-verify": Rule(
        "the same value in the package math-verify",
        math_verify,
        "math_verify",
        install_extra("math"),
    ),
}


def check_rule(name: str) -> None:
    """Raise ValueError unless there is a rule of this name, and its package is installed."""
    if name not in RULES:
        raise ValueError(f"answer_rule: must be one of {', '.join(RULES)}, got {name!r}")
    rule = RULES[name]
    if rule.package and find_spec(rule.package) is None:
        raise ValueError(f"answer_rule: {name} is not installed; {rule.install}")


def _equal(extracted: str | None, answer: str) -> bool:
    """Whether lm-eval's metric calls both the same, or they are numbers of the same value."""
    if extracted is None:
        return False
    found, expected = without_ignored(extracted), without_ignored(answer).strip()
    return bool(found) and (found == expected or _same_value(found, expected))


def _same_value(one: str, other: str) -> bool:
    value = number(one)
    return value is not None and value == number(other)


def _bare(text: str) -> str:
    """The text without the marks around it that only say how to print it."""
    text = " ".join(text.split())
    for start, end in _WRAPPERS:
        inner = text.removeprefix(start).removesuffix(end)
        if len(text) - len(inner) == len(start) + len(end) and start not in inner:
            return _bare(inner)
    return _bare(_boxed(text)) if text.startswith(_BOX) else text


def _boxed(text: str) -> str:
    r"""What stands in the last ``\boxed{...}``, up to its own closing brace."""
    inside, depth = text.rpartition(_BOX)[2], 1
    for place, letter in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return inside[:place]
    return inside
