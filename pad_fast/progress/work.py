"""What is known of some work, and the line that fits into a terminal."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rich.text import Text

RECENT = 20.0  # seconds over which tokens are counted for the rate
LONGEST_BAR, SHORTEST_BAR = 24, 6

# What a line of a terminal shows, from all of it to what has to be seen in a narrow one.
FORMS = (
    ("title", "share", "bar", "counted", "times", "rate", "note"),
    ("title", "share", "bar", "count", "times", "rate", "note"),
    ("title", "share", "count", "left", "rate", "note"),
    ("title", "share", "count", "left", "short_rate", "note"),
    ("title", "share", "count", "left", "short_rate"),
    ("title", "share", "left", "short_rate"),
)


@dataclass
class Work:
    """What is known of some work.

    Args:
        title: its name.
        unit: what is counted, such as "response".
        total: how much there is; None if that is not known.
        done: how much of it is done.
        began: when it was begun, in seconds of the clock.
        note: what is going on, or numbers such as the loss.
    """

    title: str
    unit: str
    total: int | None
    done: float
    began: float
    note: str = ""
    moved: tuple[float, float] | None = None  # when it moved for the first time, and to where
    tokens: deque[tuple[float, int]] = field(default_factory=deque)  # when, and how many so far

    def move_to(self, now: float, done: float) -> None:
        """Set how much is done."""
        if self.moved is None and done > self.done:
            self.moved = now, done  # what came before was loading, in part
        self.done = done

    def add_tokens(self, now: float, total: int) -> None:
        """Set how many tokens there are, and forget when there were few."""
        self.tokens.append((now, total))
        while len(self.tokens) > 2 and now - self.tokens[0][0] > RECENT:
            self.tokens.popleft()

    def seconds_left(self, now: float) -> float | None:
        """The time that the rest takes at the speed so far; None if that is not known."""
        if self.total is None or self.moved is None or self.done <= self.moved[1]:
            return None
        since, start = self.moved
        return (now - since) * (self.total - self.done) / (self.done - start)

    def tokens_per_second(self) -> float | None:
        """The rate of the last seconds; None before it can be known."""
        if len(self.tokens) < 2:
            return None
        (first, before), (last, now) = self.tokens[0], self.tokens[-1]
        return (now - before) / (last - first) if last > first else None

    def texts(self, now: float) -> dict[str, str]:
        """What can be shown, by the names in :data:`FORMS`; what is not known is empty."""
        left, rate = self.seconds_left(now), self.tokens_per_second()
        plural = self.unit + ("" if self.total == 1 else "s")
        spent, found = clock_text(now - self.began), {"title": self.title, "note": self.note}
        if self.total is not None:
            found["share"] = f"{100 * self.done / max(self.total, 1):.0f}%"
            found["count"] = f"{int(self.done)}/{self.total}"
            found["counted"] = f"{found['count']} {plural}"
        finished = self.total is not None and self.done >= self.total
        known = "" if left is None or finished else clock_text(left) + " left"
        found["times"] = ", ".join(filter(None, (spent, known)))
        found["left"] = known or spent
        if rate is not None:
            found["rate"], found["short_rate"] = f"{rate:,.0f} tokens/s", f"{rate:,.0f} tok/s"
        return found

    def sentence(self, now: float) -> str:
        """The work in a line of a log."""
        found = self.texts(now)
        if now - self.began < 1:
            found["times"] = ""
        names = ("counted", "share", "times", "rate", "note")
        known = [found[name] for name in names if found.get(name)]
        return f"{self.title}: {', '.join(known)}" if known else f"{self.title} begins"


def clock_text(seconds: float) -> str:
    """A duration as minutes and seconds, or hours, minutes and seconds.

    Example:
        >>> clock_text(95), clock_text(3725)
        ('1:35', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(work: Work, now: float, width: int) -> Text:
    """The line of some work in a terminal of ``width`` columns, one of which stays free."""
    found, room = work.texts(now), width - 1
    for form in FORMS:
        least = "━" * SHORTEST_BAR if "bar" in form and "share" in found else ""
        shown = [{**found, "bar": least}.get(name, "") for name in form]
        length = len("  ".join(filter(None, shown)))
        if length <= room:
            break
    else:
        form, cut = FORMS[-1], length - room + 1
        found["title"] = found["title"][: max(0, len(found["title"]) - cut)] + "…"
    line = Text(no_wrap=True, overflow="crop", end="")
    for name in form:
        part: Text | str = found.get(name, "")
        if name == "bar" and "share" in found:
            part = _bar(work, min(LONGEST_BAR, SHORTEST_BAR + room - length))
        if part:
            line.append("  " if line else "").append(part)
    return line


def _bar(work: Work, cells: int) -> Text:
    filled = round(cells * min(1.0, work.done / max(work.total or 1, 1)))
    return Text("━" * filled, style="green").append("─" * (cells - filled), style="dim")
