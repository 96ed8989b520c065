"""How many bytes the fused scoring kernel reads from memory, in a model of the second-level cache.

    python tools/l2_model.py [--rows 16384] [--width 4096] [--vocabulary 128256]

Programs run in step and share one cache, which forgets what was not read for the longest time. The
order of work items is the kernel's own. A GPU's programs drift apart, so the numbers compare orders
of work, and are no times to the millisecond.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# (item, blocks of rows, parts of the vocabulary) -> (block, part)
Order = Callable[[int, int, int], tuple[int, int]]


@dataclass(frozen=True)
class Device:
    """What the model knows of a GPU."""

    cache: int  # bytes of the second-level cache
    bandwidth: float  # bytes a second from memory
    multiprocessors: int


H200 = Device(cache=50 << 20, bandwidth=4.8e12, multiprocessors=132)


@dataclass(frozen=True)
class Work:
    """A call of the kernel."""

    rows: int
    width: int
    vocabulary: int
    itemsize: int = 2
    block: int = 128  # rows and columns of a tile
    parts: int = 8  # parts of the vocabulary
    pieces: int = 8  # pieces of a tile along D, which are read one after another

    @property
    def blocks(self) -> int:
        """Blocks of rows."""
        return -(-self.rows // self.block)

    @property
    def columns_of_part(self) -> int:
        """Tiles of a part of the vocabulary."""
        tiles = -(-self.vocabulary // self.block)
        return -(-tiles // self.parts)

    @property
    def piece_bytes(self) -> int:
        """Bytes of a piece of a tile of hidden states or of weights."""
        return self.block * self.width * self.itemsize // self.pieces


class Cache:
    """Equal pieces, of which the one that was not read for the longest time is dropped."""

    def __init__(self, pieces: int):
        self.room, self.misses = pieces, 0
        self._held: OrderedDict[tuple, None] = OrderedDict()

    def read(self, piece: tuple) -> None:
        """Read a piece, from memory if it is not held."""
        if piece in self._held:
            self._held.move_to_end(piece)
            return
        self.misses += 1
        self._held[piece] = None
        if len(self._held) > self.room:
            self._held.popitem(last=False)


def bytes_read(work: Work, order: Order, device: Device = H200) -> int:
    """Bytes that the kernel reads from memory if programs take items in this order."""
    cache = Cache(device.cache // work.piece_bytes)
    items = work.blocks * work.parts
    for first in range(0, items, device.multiprocessors):
        wave = [
            order(item, work.blocks, work.parts)
            for item in range(first, min(first + device.multiprocessors, items))
        ]
        for column in range(work.columns_of_part):
            for piece in range(work.pieces):
                for block, part in wave:
                    cache.read(("hidden", block, piece))
                    cache.read(("weight", part, column, piece))
    return cache.misses * work.piece_bytes


def kernel_order(item: int, blocks: int, parts: int) -> tuple[int, int]:
    """The order of the kernel, from its source."""
    from pad_fast.kernels.linear_logprob.fused import block_and_part

    return block_and_part.fn(item, parts)


def parts_outside(item: int, blocks: int, parts: int) -> tuple[int, int]:
    """The other order: all blocks of rows with the first part of the vocabulary, then the next."""
    return item % blocks, item // blocks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=128256)
    work = Work(**vars(parser.parse_args()))
    for name, order in (("the kernel's order", kernel_order), ("parts outside", parts_outside)):
        read = bytes_read(work, order)
        print(f"{name:20} {read / 1e9:7.1f} GB  {read / H200.bandwidth * 1e3:6.1f} ms")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
