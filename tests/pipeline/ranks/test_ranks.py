"""Ranks as threads, which meet in one store of torch.distributed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from pad_fast.pipeline.ranks import ALONE, Ranks
from pad_fast.pipeline.shared_bar import SharedBar
from pad_fast.progress import bar


def on_all(work, world=3):
    """What each of ``world`` ranks returns from ``work``, in their order."""
    store = HashStore()
    with ThreadPoolExecutor(world) as pool:
        tasks = [pool.submit(work, Ranks(rank, world, store)) for rank in range(world)]
        return [task.result(timeout=30) for task in tasks]


def test_each_item_goes_to_one_rank():
    def work(ranks):
        return [list(ranks.share(range(50))), list(ranks.share("abc"))]

    found = on_all(work)
    numbers = [number for taken, _ in found for number in taken]
    assert sorted(numbers) == list(range(50))
    assert sorted(letter for _, taken in found for letter in taken) == ["a", "b", "c"]


def test_the_rank_with_the_store_leaves_last():
    """It may end before the others have seen that all have arrived."""

    def work(ranks):
        ranks.wait()
        time.sleep(0 if ranks.is_main else 0.2 * ranks.rank)
        before = time.monotonic()
        ranks.leave()
        return before, time.monotonic()

    (_, main), *others = on_all(work)
    assert main >= max(before for before, _ in others)


def test_a_slow_rank_takes_fewer_items():
    def work(ranks):
        taken = []
        for item in ranks.share(range(12)):
            time.sleep(0.2 if ranks.is_main else 0.01)
            taken.append(item)
        return taken

    slow, fast = on_all(work, 2)
    assert len(slow) < len(fast)


def test_more_ranks_than_items():
    found = on_all(lambda ranks: list(ranks.share(["only"])), 4)
    assert sorted(found) == [[], [], [], ["only"]]


def test_all_ranks_agree_with_the_main_one():
    assert on_all(lambda ranks: ranks.agree({"rank": ranks.rank})) == [{"rank": 0}] * 3


def test_values_are_gathered_in_the_order_of_the_ranks():
    def work(ranks):
        time.sleep(0.05 * (2 - ranks.rank))
        return ranks.gather(ranks.rank), ranks.gather(-ranks.rank)

    assert on_all(work) == [([0, 1, 2], [0, -1, -2])] * 3


def test_nobody_goes_on_before_all_have_come():
    late, drawn = threading.Event(), threading.Semaphore(0)

    def work(ranks):
        if ranks.rank == 2:
            # The bar of another is drawn while it waits.
            assert all(drawn.acquire(timeout=20) for _ in range(3))
            late.set()
        ranks.wait(drawn.release)
        return late.is_set()

    assert all(on_all(work))


def test_the_main_rank_writes_and_the_others_wait():
    written = []

    def work(ranks):
        ranks.on_main(lambda: (time.sleep(0.3), written.append(ranks.rank)))
        return list(written)

    assert on_all(work) == [[0]] * 3


def test_a_sum_over_all_ranks():
    def work(ranks):
        add = ranks.counter()
        add(ranks.rank + 1)
        ranks.wait()
        return add(0)

    assert on_all(work) == [6, 6, 6]


def test_ranks_of_which_only_the_main_one_works():
    def work(ranks):
        main = ranks.only_main()
        # What rank 0 calls in between is none of the others' business.
        return list(main.share(range(3))), list(ranks.share(["next"])), main.agree(ranks.rank)

    found = on_all(work)
    assert [taken for taken, _, _ in found] == [[0, 1, 2], [], []]
    assert sorted(taken for _, taken, _ in found) == [[], [], ["next"]]
    assert [agreed for *_, agreed in found] == [0, 0, 0]


def test_a_difference_is_an_error_of_all_ranks():
    def work(ranks):
        value = {"learning_rate": 0.1 if ranks.rank < 2 else 0.2, "seed": 1}
        with pytest.raises(ValueError, match="settings") as caught:
            ranks.check_equal("settings", value)
        ranks.check_equal("settings", {"seed": 1})  # the ranks are still in step
        return str(caught.value)

    first, *others = on_all(work)
    assert others == [first, first]
    assert first.startswith("settings: rank 0 (")
    assert ") and rank 2 (" in first
    assert "differ: learning_rate is 0.1 and 0.2; start all of them with the same" in first


def test_one_process_needs_no_store():
    assert list(ALONE.share([1, 2])) == [1, 2]
    assert ALONE.gather(3) == [3]
    add = ALONE.counter()
    assert (add(2), add(3)) == (2, 5)
    ALONE.wait(lambda: pytest.fail("there is nobody to wait for"))
    assert ALONE.only_main() is ALONE


def test_a_bar_counts_what_all_ranks_do(capsys, monkeypatch):
    monkeypatch.setattr(bar.LINES, "_last", float("-inf"))
    monkeypatch.setattr(bar, "LEAST", 0.0)

    def work(ranks):
        with SharedBar(ranks, 9, "sample", "response", done=3) as shared:
            shared.add_tokens(0)
            shared.update(2)
            shared.add_tokens(100)
        return shared.bar.work.done if ranks.is_main else None

    assert on_all(work)[0] == 9
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("sample: 3/9 responses")
    assert last.startswith("sample: 9/9 responses, 100%")
    assert "tokens/s" in last
