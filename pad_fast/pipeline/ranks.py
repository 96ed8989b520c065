"""The processes that work on one run: who they are, and how they share shards.

They meet in the key-value store of torch.distributed, which every launcher sets up. A rank takes
the next shard from a counter there when it has finished one, so that nobody waits for a slow one.
Files are the only record of progress; the store only lasts as long as the processes.
"""

from __future__ import annotations

import functools
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pad_fast.launch.process import common_store, world_size

Item = TypeVar("Item")
PREFIX = "pad_fast"
POLL = 0.05, 1.0  # seconds between two looks into the store: at first, and at most


class Ranks:
    """All processes of a run, of which this one has the number ``rank``.

    Every rank has to call the methods in the same order, as with collective operations. They wait
    without a limit, since one shard may take hours; a launcher ends all ranks when one dies.

    Args:
        rank: the number of this process, from 0.
        world: the number of processes.
        store: torch.distributed's store; not needed by one process alone.

    Example:
        >>> alone = Ranks(0, 1)
        >>> list(alone.share(["a", "b"])), alone.gather(7)
        (['a', 'b'], [7])
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None) -> None:
        self.rank, self.world, self._store = rank, world, store
        self._prefix, self._calls = PREFIX, 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what there is one of: the manifest, the report, students."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.world == 1

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items that this rank takes, each when it asks for the next one.

        All ranks give equal items. Each item goes to one of them.
        """
        if self.alone:
            yield from items
            return
        counter = self._key("next")
        while (index := self._store.add(counter, 1) - 1) < len(items):
            yield items[index]

    def wait(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until every rank is here.

        Args:
            meanwhile: called again and again, such as to draw a progress bar.
        """
        if self.alone:
            return
        counter, pause = self._key("arrived"), POLL[0]
        self._store.add(counter, 1)
        while self._store.add(counter, 0) < self.world:
            meanwhile()
            time.sleep(pause)
            pause = min(2 * pause, POLL[1])

    def leave(self) -> None:
        """End the common work. Rank 0, whose process may hold the store, stays until all are done.

        The others would find the store gone while they still wait for one another.
        """
        if self.alone:
            return
        counter = self._key("left")
        self._store.add(counter, 1)
        while self.is_main and self._store.add(counter, 0) < self.world:
            time.sleep(POLL[0])

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank.

        Args:
            value: of this rank, such as JSON can hold.
        """
        if self.alone:
            return [value]
        name = self._key("values")
        self._store.set(f"{name}/{self.rank}", json.dumps(value))
        self.wait()
        return [json.loads(self._store.get(f"{name}/{rank}")) for rank in range(self.world)]

    def counter(self) -> Callable[[int], int]:
        """A sum over all ranks: called with a number it adds it and returns the sum so far."""
        if self.alone:
            total = 0

            def add(count: int) -> int:
                nonlocal total
                total += count
                return total

            return add
        name = self._key("sum")
        return lambda count: int(self._store.add(name, count))

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank.

        What depends on the files that are there has to be decided once, since a rank that looks
        later may see more of them.
        """
        return self.gather(value)[0]

    def on_main(self, function: Callable[[], object]) -> None:
        """Call a function on the main rank, while the others wait for its end."""
        if self.is_main:
            function()
        self.wait()

    def only_main(self) -> Ranks:
        """Ranks of which the main one takes all items, such as those that a server works on."""
        return (
            self if self.alone else _OnlyMain(self.rank, self.world, self._store, self._key("main"))
        )

    def check_equal(self, what: str, value: Any) -> None:
        """Raise ValueError on every rank unless ``value`` is the same on all of them.

        Args:
            what: the name of what is compared, which the message begins with.
            value: of this rank, such as JSON can hold.
        """
        found = self.gather({"value": value, "host": socket.gethostname()})
        for rank, other in enumerate(found):
            if other["value"] != found[0]["value"]:
                hosts = f"rank 0 ({found[0]['host']}) and rank {rank} ({other['host']})"
                raise ValueError(
                    f"{what}: {hosts} differ: {_difference(found[0]['value'], other['value'])}; "
                    "start all of them with the same command in the same environment"
                )

    def _key(self, name: str) -> str:
        self._calls += 1
        return f"{self._prefix}/{self._calls}/{name}"


class _OnlyMain(Ranks):
    """See :meth:`Ranks.only_main`."""

    def __init__(self, rank: int, world: int, store: Any, prefix: str) -> None:
        super().__init__(rank, world, store)
        self._prefix = prefix

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        yield from items if self.is_main else ()


def _difference(first: Any, other: Any) -> str:
    """The first value that differs, in words."""
    if isinstance(first, dict) and isinstance(other, dict):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                return f"{name} is {first.get(name)!r} and {other.get(name)!r}"
    return f"{first!r:.200} and {other!r:.200}"


ALONE = Ranks()


def current_ranks() -> Ranks:
    """The ranks of this run. The process group has to be set up, which TrainingArguments does."""
    if world_size() == 1:
        return ALONE
    return _launched()


@functools.cache  # two that count their calls from 0 would use each other's keys
def _launched() -> Ranks:
    import torch.distributed

    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), common_store())
