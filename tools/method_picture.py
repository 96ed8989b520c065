"""The picture of the method, ``docs/pictures/method.svg``: ``python tools/method_picture.py``.

One file for light and dark pages. The bars of its third step are computed: the Plackett-Luce
probabilities of the rewards in its second step.
"""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "method.svg"
WIDTH, ROW, MARGIN, LEFT = 760, 168, 18, 292
BETA = 3.0
RESPONSES = {"A": "Plums, with sugar.", "B": "Plums.", "C": "Any, I think."}
TEACHER = {"A": -0.4, "B": -0.7, "C": -1.4}
STUDENT = {"A": -1.0, "B": -0.9, "C": -0.8}
SAMPLE = ["The student answers", "a prompt n times."]
SCORE = ["How likely is each response", "to either model? And which", "does the teacher pick?"]
TRAIN = [
    "Scores make probabilities of",
    "all n! rankings. The student's",
    "are brought to the teacher's.",
]
STYLE = """
  :root { --page: #ffffff; --card: #f4f6f8; --line: #d5dbe1; --ink: #1d2329; --soft: #55606b;
    --teacher: #2f6f9f; --student: #c8442b; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #17191c; --card: #22262b; --line: #3a4148; --ink: #e6e8ea; --soft: #a8b1ba;
      --teacher: #78bdea; --student: #f08f6f; }
  }
  text { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
  .title { font-size: 21px; font-weight: 600; }
  .text { font-size: 17px; fill: var(--soft); }
  .label { font-size: 16px; }
  .small { font-size: 15px; fill: var(--soft); }
  .tiny { font-size: 13px; fill: var(--soft); }
  .middle { text-anchor: middle; }
  .end { text-anchor: end; }
"""


def rankings(rewards: dict[str, float]) -> dict[str, float]:
    """The Plackett-Luce probability of each ranking."""
    found = {}
    for order in permutations(rewards):
        weights = [math.exp(BETA * rewards[name]) for name in order]
        found["".join(order)] = math.prod(
            weight / sum(weights[place:]) for place, weight in enumerate(weights)
        )
    return found


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, line: str = "none") -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
        f'fill="{fill}" stroke="{line}"/>'
    )


def step(number: int, title: str, lines: list[str]) -> list[str]:
    """The card of a step with its words at the left."""
    top = MARGIN + (number - 1) * (ROW + 12)
    parts = [box(MARGIN, top, WIDTH - 2 * MARGIN, ROW, "var(--card)", "var(--line)")]
    parts.append(text(MARGIN + 20, top + 38, f"{number}  {title}", "title"))
    parts += [text(MARGIN + 20, top + 68 + 24 * i, line, "text") for i, line in enumerate(lines)]
    return parts


def sampled(top: float) -> list[str]:
    """A prompt and the responses to it."""
    parts = [text(LEFT + 30, top + 36, "Which fruit for jam?", "label")]
    for i, (name, words) in enumerate(RESPONSES.items()):
        y = top + 54 + 36 * i
        parts.append(box(LEFT + 60, y, 340, 30, "var(--page)", "var(--student)"))
        parts.append(text(LEFT + 74, y + 21, f"{name}   {words}", "label"))
    return parts


def scored(top: float) -> list[str]:
    """Both models' rewards as bars; a longer bar is a better response."""
    parts = [text(LEFT + 30, top + 36, "nats per token", "small"), *legend(top)]
    for i, name in enumerate(RESPONSES):
        y = top + 54 + 36 * i
        parts.append(text(LEFT + 30, y + 21, name, "label"))
        for shift, reward, colour in (
            (1, TEACHER[name], "teacher"),
            (16, STUDENT[name], "student"),
        ):
            width = 250 * (reward + 1.6) / 1.6
            parts.append(box(LEFT + 60, y + shift, width, 13, f"var(--{colour})"))
            parts.append(text(LEFT + 68 + width, y + shift + 12, f"−{-reward:.1f}", "tiny"))
    return parts


def legend(top: float) -> list[str]:
    """Which colour is whose."""
    return [
        box(LEFT + 210, top + 20, 16, 16, "var(--teacher)"),
        text(LEFT + 234, top + 34, "teacher", "small"),
        box(LEFT + 310, top + 20, 16, 16, "var(--student)"),
        text(LEFT + 334, top + 34, "student", "small"),
    ]


def trained(top: float) -> list[str]:
    """Both distributions over the rankings, side by side."""
    parts, base, slot = legend(top), top + 128, 66
    teacher, student = rankings(TEACHER), rankings(STUDENT)
    scale = 84 / max(*teacher.values(), *student.values())
    for i, order in enumerate(teacher):
        x = LEFT + 30 + slot * i
        for shift, value, colour in (
            (4, teacher[order], "teacher"),
            (28, student[order], "student"),
        ):
            parts.append(
                box(x + shift, base - scale * value, 21, scale * value, f"var(--{colour})")
            )
        parts.append(text(x + 26, base + 24, order, "label middle"))
    return parts


def picture() -> str:
    """The whole SVG."""
    tops = [MARGIN + k * (ROW + 12) for k in range(3)]
    parts = [
        *step(1, "Sample", SAMPLE),
        *sampled(tops[0]),
        *step(2, "Score", SCORE),
        *scored(tops[1]),
        *step(3, "Train", TRAIN),
        *trained(tops[2]),
    ]
    height = tops[2] + ROW + MARGIN
    alone = "The three steps of preference-aligned distillation: sample, score, train."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{alone}">\n<style>{STYLE}</style>\n'
        + box(0, 0, WIDTH, height, "var(--page)")
        + "\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PLACE.parent.mkdir(exist_ok=True)
    PLACE.write_text(picture(), encoding="utf-8")
    print(f"wrote {PLACE}")
