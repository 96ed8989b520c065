"""One progress bar for all ranks, with the tokens that they make in a second."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm.auto import tqdm

from pad_fast.pipeline.ranks import Ranks


class SharedBar:
    """A progress bar that the main rank draws and all ranks move on.

    At the end of the block the ranks wait for one another, while the bar goes on.

    Args:
        ranks: those that work.
        total: what all of them do together.
        title: at the beginning of the bar.
        unit: what is counted, such as "response".
        done: what was done before.
        quiet: whether to draw nothing.
    """

    def __init__(
        self, ranks: Ranks, total: int, title: str, unit: str, done: int = 0, *, quiet: bool = False
    ) -> None:
        self._ranks, self._done = ranks, done
        self._sum, self._tokens = ranks.counter(), ranks.counter()
        self._started = time.monotonic()
        self._bar = tqdm(
            total=total, initial=done, desc=title, unit=unit, disable=quiet or not ranks.is_main
        )

    def update(self, count: int) -> None:
        """Move the bar on by ``count``."""
        self._draw(self._sum(count))

    def add_tokens(self, count: int) -> None:
        """Count tokens that were made or read, which the bar shows for each second."""
        tokens = self._tokens(count)
        if not self._bar.disable:
            seconds = max(time.monotonic() - self._started, 1e-3)
            self._bar.set_postfix_str(f"{tokens / seconds:,.0f} tokens/s")

    def __enter__(self) -> SharedBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._ranks.wait(lambda: self._draw(self._sum(0)))
            self._draw(self._sum(0))
        self._bar.close()

    def _draw(self, count: int) -> None:
        if not self._bar.disable:
            self._bar.update(self._done + count - self._bar.n)
