"""One progress bar for all ranks, with the tokens that they make in a second."""

from __future__ import annotations

from types import TracebackType

from pad_fast.allocator import InBetween
from pad_fast.pipeline.ranks import Ranks
from pad_fast.progress.bar import Bar


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
        self._give_memory_back = InBetween()
        self.bar = Bar(title, unit, total, done, quiet=quiet or not ranks.is_main)

    def update(self, count: int) -> None:
        """Move the bar on by ``count``, after a batch: memory that it left free may go back."""
        self.bar.move_to(self._done + self._sum(count))
        self._give_memory_back()

    def add_tokens(self, count: int) -> None:
        """Count tokens that were made or read, which the bar shows for each second."""
        self.bar.count_tokens(self._tokens(count))

    def __enter__(self) -> SharedBar:
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._ranks.wait(lambda: self.update(0))
            self.update(0)
        self.bar.__exit__(kind, error, trace)
