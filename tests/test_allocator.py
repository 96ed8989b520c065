"""Freed memory: used again while work goes on, given back when it is done; kept products."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pad_fast import allocator
from pad_fast.pipeline.ranks import ALONE
from pad_fast.pipeline.shared_bar import SharedBar

KNOWN = (*allocator.VARIABLES, allocator.HEAPS, *allocator.PRODUCTS)

pytestmark = pytest.mark.skipif(
    allocator._of_glibc("malloc_trim") is None, reason="the C library is not glibc"
)

FAULTS = """
import resource, sys
from pad_fast.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def batch():
    blocks = [b"x" * (20 << 20) for _ in range(3)]
batch(); batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): batch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HOLES = """
import random
from pad_fast.allocator import give_memory_back, keep_freed_memory
from pad_fast.files.process_memory import resident
keep_freed_memory()
draw, living, before = random.Random(0), [], resident()
for _ in range(4):  # batches of different lengths, of which something small is kept each time
    blocks = []
    for _ in range(100):
        blocks.append(b"x" * draw.randrange(100_000, 600_000))
        living.append(bytes(2000))
    del blocks
held = resident() - before
give_memory_back()
print(held >> 20, (resident() - before) >> 20)
"""
THREADS = """
import threading
from pad_fast.allocator import give_memory_back, keep_freed_memory
from pad_fast.files.process_memory import resident
keep_freed_memory()
before, held = resident(), []
def load():  # as a thread that reads a model's file does
    blocks = [b"x" * (1 << 20) for _ in range(20)]
    held.append(resident() - before)
def begin():
    found = [threading.Thread(target=load) for _ in range(3)]
    [one.start() for one in found]
    [one.join() for one in found]
begin(); begin()
give_memory_back()
print(max(held) >> 20, (resident() - before) >> 20)
"""
PRODUCTS = """
from pad_fast.allocator import keep_few_products
keep_few_products()
import random, torch
from pad_fast.allocator import give_memory_back
from pad_fast.files.process_memory import resident
draw, weight, sizes = random.Random(0), torch.ones(512, 512, dtype=torch.bfloat16), []
for _ in range(2):
    for length in draw.sample(range(20, 400), 64):
        torch.ones(length, 512, dtype=torch.bfloat16) @ weight
    give_memory_back()
    sizes.append(resident() >> 10)
print(*sizes)
"""
FIRST = """
import os, sys
from pad_fast import allocator
asked = []
allocator._of_glibc = lambda name: lambda *given: asked.append(given) or 1
class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("pyarrow", "torch"):
            print(name, asked, [os.environ.get(name) for name in allocator.PRODUCTS], flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
from pad_fast.cli import main
main(["plan", "nowhere.yaml"])
"""


def said(code: str, *words: str, **variables: str) -> list[str]:
    """What a process of its own prints."""
    known = {name: value for name, value in os.environ.items() if name not in KNOWN}
    found = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**known, **variables},
    )
    return found.stdout.split()


def test_later_batches_get_the_pages_of_earlier_ones():
    pages = 4 * 3 * (20 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int(said(FAULTS, "as it is")[1]) > pages // 2
    kept, faults = said(FAULTS, "keep")
    assert (kept, int(faults) < pages // 50) == ("True", True)


def test_what_a_user_has_chosen_is_left_alone():
    assert said(FAULTS, "keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


def test_holes_between_living_blocks_are_given_back():
    """What lives on holds 1 MiB, and the holes some 30 times as much."""
    held, left = map(int, said(HOLES))
    assert held > 25
    assert left < 5


def test_a_long_piece_gives_back_now_and_then(monkeypatch):
    """After each batch there is time for it, but fresh pages every time would cost a third."""
    clock, given = [100.0], []
    monkeypatch.setattr(allocator.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(allocator, "give_memory_back", lambda: given.append(clock[0]))
    with SharedBar(ALONE, 7, "sample", "response", quiet=True) as bar:
        for seconds in (101, 102, 103, 103.9, 104, 105):
            clock[0] = seconds
            bar.update(1)
        assert given == [102, 104]
        clock[0] = 106
        bar.update(1)
    assert given == [102, 104, 106]


def test_what_threads_have_freed_is_given_back():
    held, left = map(int, said(THREADS))
    assert held >= 20
    assert left < 5
    if os.cpu_count() != 1:  # on one core glibc makes few heaps by itself
        assert int(said(THREADS, MALLOC_ARENA_MAX="8")[1]) > 15, "a user's own number of heaps"


def test_the_last_few_compiled_products_are_kept():
    """What the second half of 128 shapes takes is little beside what it takes without a limit."""
    limited, open_ended = (
        list(map(int, said(PRODUCTS, **variables)))
        for variables in ({}, dict.fromkeys(allocator.PRODUCTS, "1024"))
    )
    without = open_ended[1] - open_ended[0]
    if without < 10_000:  # KiB
        pytest.skip("this CPU compiles no 16-bit products")
    assert limited[1] - limited[0] < without / 10


def test_a_command_chooses_before_it_imports_what_would_not_hear_of_it():
    """PyTorch reads the variables once, and a heap that a thread has begun stays."""
    heaps = (allocator.M_ARENA_MAX, 1)
    limits = (allocator.M_MMAP_THRESHOLD, allocator.OWN_PAGES)
    asked = [heaps, limits, (allocator.M_TRIM_THRESHOLD, allocator.KEPT)]
    kept = [str(allocator.KEPT_PRODUCTS)] * 2
    assert " ".join(said(FIRST)) == f"pyarrow {asked} {kept}"


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    allocator.give_memory_back()
