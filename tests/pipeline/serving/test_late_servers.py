"""Servers that do not answer at the start, or come back as others than they were."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import worlds

from pad_fast.pipeline.serving.dialects import Request, ServerError
from pad_fast.pipeline.serving.own_server import free_port
from pad_fast.pipeline.serving.pool import Limits, Pool, _Call
from pad_fast.pipeline.serving.trial import try_out

PROMPTS = [[3, 7 + place, 9, 4] for place in range(8)]
LETTERS = [40, 41, 42]
HASTY = Limits(concurrency=2, patience=0.5, pause=0.02)


def asked_until(engine, done) -> None:
    """Ask until something has happened, as the shards of a run do."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        engine.choices(PROMPTS, LETTERS)


@pytest.fixture
def with_one_gone(stub_of, engine_of):
    """Two servers, of which one does not answer when the trial is made."""
    stubs = [stub_of(), stub_of()]
    stubs[0].stop()
    engine = engine_of(*stubs)
    try_out(engine, LETTERS)
    yield stubs[0], stubs[1], engine
    stubs[0].fault = None


def test_the_others_do_its_work_and_it_is_taken_up_when_it_is_there(with_one_gone, caplog):
    late, there, engine = with_one_gone
    wanted = engine.choices(PROMPTS, LETTERS)
    assert list(engine.pool.down) == [late.url]
    late.start()
    asked_until(engine, lambda: not engine.pool.down)
    tried = late.answered
    assert tried > 3, "it has gone through the trial"
    told = [record.getMessage() for record in caplog.get_records("setup")]
    assert len(told) == 1, "it is no error"
    assert told[0].startswith(f"{late.url} does not answer: ConnectError")
    there.fault = lambda handler, body: bool(time.sleep(0.05))
    assert engine.choices(PROMPTS, LETTERS) == wanted
    assert late.answered > tried


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"raw": False}, "log-probabilities after the temperature"),
        ({"version": "0.31.0"}, "by vllm 0.31.0; give servers that are alike"),
        ({"window": 90}, "takes 90 tokens, and .* takes 256; start it with the same --max-model"),
        ({"letters": False}, "no log-probabilities of given tokens"),
    ],
)
def test_one_that_is_no_use_is_told_of_once_and_not_asked(with_one_gone, caplog, change, told):
    late, _, engine = with_one_gone
    vars(late).update(change)
    late.start()
    asked_until(engine, lambda: "is not used" in caplog.text)
    for _ in range(3):
        engine.choices(PROMPTS, LETTERS)
    [record] = [one for one in caplog.records if "is not used" in one.getMessage()]
    assert record.levelno == logging.WARNING
    caplog.clear()
    with pytest.raises(ServerError, match=told):
        engine.pool.admit(late.url)
    assert list(engine.pool.down) == [late.url]


def test_one_that_ends_in_the_trial_is_left(stub_of, engine_of):
    stubs = [stub_of(), stub_of()]

    def leave(handler, body) -> bool:
        handler.close_connection = True
        return True

    stubs[1].fault = leave
    engine = engine_of(*stubs)
    try_out(engine, LETTERS)
    assert list(engine.pool.down) == [stubs[1].url]


def test_one_that_comes_back_with_other_weights_is_left_alone(stub_of, engine_of, world):
    stub = stub_of(served_as="teacher")
    engine = engine_of(stub, limits=HASTY)
    try_out(engine)
    stub.load(world / "student")
    engine.pool.down[stub.url] = "it was gone"
    with pytest.raises(
        ServerError, match=r"no server has answered for .* other log-probabilities than before"
    ):
        engine.choices([[7, 8]], LETTERS)
    stub.load(world / "teacher")
    assert engine.choices([[7, 8]], LETTERS)


def test_the_check_of_weights_is_made_of_late_ones_too(stub_of, engine_of, world, tmp_path):
    """Nothing else tells a student after a small step from the one before."""
    late, there = stub_of("student"), stub_of("student")
    late.stop()
    engine = engine_of(late, there, role="student")
    seen = []
    try_out(engine, weights=lambda single: seen.append(single.first))
    assert seen == [there.url]
    late.load(worlds.save_model(tmp_path / "next", 0))
    late.start()
    asked_until(engine, lambda: not engine.pool.down)
    assert seen == [there.url, late.url]


def test_a_server_that_cannot_be_started_again_ends_the_call_at_once():
    """Whoever waits for its slots would wait for ever."""

    def restart(url: str) -> None:
        raise OSError("no more processes")

    limits = Limits(concurrency=2, patience=2.0, pause=0.02)
    pool = Pool([f"http://127.0.0.1:{free_port()}"], limits, restart)
    requests = [Request("/v1/completions", {}, dict) for _ in range(5)]
    begin = time.monotonic()
    with pytest.raises(OSError, match="no more processes"):
        asyncio.run(asyncio.wait_for(_Call(pool).run(requests, print), 5))
    assert time.monotonic() - begin < 1
