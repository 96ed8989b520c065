"""The questions of the tiny world: six skills, each with a generator of tasks.

Slips:
    A slip is a wrong response that a careless pupil might give: a forgotten carry, a list in the
    wrong order, a copied string, a factor of ten. The teacher learns to choose against slips, and
    the student learns from some.

Splits:
    A hash of its text decides a prompt's split, so that no held-out prompt can leak into training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pad_fast.evaluation.answers import final_answer

NAMES = ("Ann", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pens")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# The multiple-choice question that the teacher learns; pad_fast/tiny_world/tiny.yaml asks it.
WORDING = "{query}\n\n{options}\n\nWhich answer is best? Reply with its letter."
# Large unit, small unit, small units in a large one, largest count that is asked for. A product has
# at most five digits.
UNITS = (
    ("km", "m", 1000, 99),
    ("kg", "g", 1000, 99),
    ("l", "ml", 1000, 99),
    ("m", "mm", 1000, 99),
    ("m", "cm", 100, 99),
    ("cm", "mm", 10, 99),
    ("hours", "minutes", 60, 20),
    ("minutes", "seconds", 60, 20),
    ("weeks", "days", 7, 20),
    ("days", "hours", 24, 9),
)
SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Task:
    """One question, its right response with the final answer, and wrong responses with repeats."""

    skill: str
    prompt: str
    response: str
    answer: str
    slips: tuple[str, ...]


def split_of(prompt: str) -> str:
    """The split of a prompt, by the first two bytes of its SHA-256: 70% train, 12% validation."""
    share = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:2], "big") / 65536
    return "train" if share < 0.70 else "validation" if share < 0.82 else "heldout"


def _task(skill: str, prompt: str, response: str, slips: Sequence[str]) -> Task:
    """A task without those slips that happen to be right."""
    answer = final_answer(response)
    wrong = tuple(slip for slip in slips if final_answer(slip) != answer)
    return Task(skill, prompt, response, answer, wrong)


def _near(rng: random.Random, value: int) -> int:
    """A number close to ``value``, but not equal to it and not negative."""
    return rng.choice([v for v in (value - 10, value - 1, value + 1, value + 10) if v >= 0])


def _columns(units: int, tens: int, result: int | str) -> str:
    return f"units {units}, tens {tens} #### {result}"


def addition(rng: random.Random) -> Task:
    """Two-digit addition, units first: 47 + 85 gives ``units 12, tens 13 #### 132``."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    prompt = rng.choice((f"What is {a} + {b}?", f"Add {a} and {b}."))
    units, plain = a % 10 + b % 10, a // 10 + b // 10
    tens = plain + units // 10
    wrong_carry = plain if units > 9 else plain + 1
    off = _near(rng, units) % 19
    shift = tens + rng.choice((-1, 1))
    slips = [
        _columns(units, wrong_carry, 10 * wrong_carry + units % 10),
        _columns(off, plain + off // 10, 10 * (plain + off // 10) + off % 10),
        _columns(units, shift, 10 * shift + units % 10),
        _columns(units, tens, f"{tens}{units}" if units > 9 else _near(rng, a + b)),
        f"#### {_near(rng, a + b)}",
    ]
    return _task("addition", prompt, _columns(units, tens, a + b), slips)


def subtraction(rng: random.Random) -> Task:
    """Two-digit subtraction, units first: 92 - 37 gives ``units 5, tens 5 #### 55``."""
    b, a = sorted(rng.sample(range(10, 100), 2))
    prompt = rng.choice((f"What is {a} - {b}?", f"Subtract {b} from {a}."))
    units, plain = (a - b) % 10, a // 10 - b // 10
    tens = (a - b) // 10
    wrong_borrow = plain if tens < plain else max(plain - 1, 0)
    absolute = abs(a % 10 - b % 10)
    off = (units + rng.choice((-1, 1))) % 10
    shift = abs(tens + rng.choice((-1, 1)))
    slips = [
        _columns(units, wrong_borrow, 10 * wrong_borrow + units),
        _columns(absolute, plain, 10 * plain + absolute),
        _columns(off, tens, 10 * tens + off),
        _columns(units, shift, 10 * shift + units),
        f"#### {_near(rng, a - b)}",
    ]
    return _task("subtraction", prompt, _columns(units, tens, a - b), slips)


def _steps(*steps: tuple[int, str, int, int]) -> str:
    work = ", ".join(f"{a} {sign} {b} = {c}" for a, sign, b, c in steps)
    return f"{work} #### {steps[-1][-1]}"


def word_problem(rng: random.Random) -> Task:
    """One or two steps with small numbers, in GSM8K's form: the working, then ``#### n``."""
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    two_steps = rng.random() < 0.5
    if rng.random() < 0.5:
        a, b = rng.randint(3, 12), rng.randint(2, 9)
        sign, total, other, wrong = "+", a + b, "-", abs(a - b)
        story = f"{name} has {a} {items} and buys {b} more."
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        sign, total, other, wrong = "*", a * b, "+", a + b
        story = f"{name} buys {a} boxes of {b} {items}."
    c = rng.randint(2, min(9, total - 1))
    near = _near(rng, total)
    if not two_steps:
        prompt = f"{story} How many {items} does {name} have now?"
        slips = [
            _steps((a, other, b, wrong)),
            _steps((a, sign, b, near)),
            f"#### {_near(rng, total)}",
        ]
        return _task("word_problem", prompt, _steps((a, sign, b, total)), slips)
    prompt = f"{story} Then {name} gives {c} away. How many {items} are left?"
    slips = [
        _steps((a, sign, b, total)),
        _steps((a, sign, b, total), (total, "+", c, total + c)),
        _steps((a, sign, b, near), (near, "-", c, max(near - c, 0))),
        _steps((a, sign, b, total), (total, "-", c, _near(rng, total - c))),
        f"#### {_near(rng, total - c)}",
    ]
    return _task(
        "word_problem", prompt, _steps((a, sign, b, total), (total, "-", c, total - c)), slips
    )


def _swap(rng: random.Random, items: Sequence[str]) -> list[str]:
    """The items with two neighbours exchanged."""
    swapped, i = list(items), rng.randrange(len(items) - 1)
    swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
    return swapped


def _drop(rng: random.Random, items: Sequence[str]) -> list[str]:
    """The items without one."""
    i = rng.randrange(len(items))
    return [item for j, item in enumerate(items) if j != i]


def sorting(rng: random.Random) -> Task:
    """Four to six one-digit numbers, up or down."""
    digits = [str(rng.randrange(10)) for _ in range(rng.randint(4, 6))]
    down = rng.random() < 0.5
    prompt = f"Sort {' '.join(digits)} {'down' if down else 'up'}."
    right = sorted(digits, reverse=down)
    slips = [right[::-1], _swap(rng, right), _drop(rng, right), digits, _swap(rng, right)]
    return _task("sorting", prompt, " ".join(right), [" ".join(slip) for slip in slips])


def string_edit(rng: random.Random) -> Task:
    """A word of four to six letters reversed, or with its first and last letters exchanged."""
    word = rng.sample(LETTERS, rng.randint(4, 6))
    reverse, ends = word[::-1], [word[-1], *word[1:-1], word[0]]
    backwards = rng.random() < 0.5
    right, other = (reverse, ends) if backwards else (ends, reverse)
    text = "".join(word)
    prompt = f'Reverse "{text}".' if backwards else f'Swap the first and last letters of "{text}".'
    slips = [word, other, _swap(rng, right), _drop(rng, right), _swap(rng, right)]
    return _task("string_edit", prompt, "".join(right), ["".join(slip) for slip in slips])


def conversion(rng: random.Random) -> Task:
    """Metric and time units, both ways, with the factor shown: ``37 * 100 = 3700 cm``."""
    large, small, factor, most = rng.choice(UNITS)
    count = rng.randint(2, most)
    expand = rng.random() < 0.5
    source, target, sign, value = (
        (large, small, "*", count) if expand else (small, large, "/", count * factor)
    )
    result = count * factor if expand else count
    prompt = rng.choice(
        (f"Convert {value} {source} to {target}.", f"How many {target} are {value} {source}?")
    )
    tenfold = result * 10 if rng.random() < 0.5 or result % 10 else result // 10
    wrong_factor = factor * 10 if factor % 10 == 0 and rng.random() < 0.5 else factor // 10 or 1
    near = _near(rng, result)
    slips = [
        f"{value} {sign} {factor} = {tenfold} {target}",
        f"{value} {sign} {wrong_factor} = {tenfold} {target}",
        f"{value} {sign} {factor} = {result} {source}",
        f"{value} {sign} {factor} = {near} {target}",
        f"{near} {target}",
    ]
    return _task("conversion", prompt, f"{value} {sign} {factor} = {result} {target}", slips)


SKILLS: dict[str, Callable[[random.Random], Task]] = {
    "addition": addition,
    "subtraction": subtraction,
    "word_problem": word_problem,
    "sorting": sorting,
    "string_edit": string_edit,
    "conversion": conversion,
}


def draw(rng: random.Random, skill: str, split: str) -> Task:
    """A task of a skill whose prompt belongs to a split."""
    while True:
        task = SKILLS[skill](rng)
        if split_of(task.prompt) == split:
            return task


def draw_distinct(seed: int, split: str, count: int) -> list[Task]:
    """Tasks with distinct prompts, equally many for each skill, in random order."""
    rng = random.Random(f"{seed}/{split}")
    tasks: dict[str, Task] = {}
    for i in range(count):
        skill = list(SKILLS)[i % len(SKILLS)]
        task = draw(rng, skill, split)
        while task.prompt in tasks:
            task = draw(rng, skill, split)
        tasks[task.prompt] = task
    chosen = list(tasks.values())
    rng.shuffle(chosen)
    return chosen
