"""What servers answer, against the engine of this process, while they are made to fail."""

from __future__ import annotations

import threading
import time

import pytest
from worlds import run_config

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.sample.engines import Sampling
from pad_fast.pipeline.sample.transformers_engine import TransformersEngine
from pad_fast.pipeline.score.model_scores import ModelScores
from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.pool import Limits

PROMPTS = [[3, 7 + place, 9, 4] + [20] * (place % 3) for place in range(8)]
RESPONSES = [
    [[9 + place, 10], [11], [], [12, 13 + place % 5, 1]][: 1 + place % 4] for place in range(8)
]
LETTERS = [40, 41, 42]
HOT = Sampling(5, temperature=2.0)


@pytest.fixture(scope="module")
def own(world):
    """What this process computes itself."""
    engine = TransformersEngine(
        Checkpoint("teacher", str(world / "teacher")), ModelScores(run_config(world), "mean")
    )
    return {
        "logps": engine.logps(PROMPTS, RESPONSES),
        "rewards": engine.rewards(PROMPTS, RESPONSES),
        "choices": engine.choices(PROMPTS, LETTERS),
        "engine": engine,
    }


def same(found, wanted) -> None:
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for ours, others in zip(found, wanted, strict=True):
        assert ours == pytest.approx(others, abs=1e-5)


def everything(engine, own) -> list:
    """All three questions, checked against this process; returns the samples."""
    counted = []
    same(engine.logps(PROMPTS, RESPONSES, counted.append), own["logps"])
    assert sum(counted) == sum(map(len, RESPONSES))
    same(engine.rewards(PROMPTS, RESPONSES), own["rewards"])
    same(engine.choices(PROMPTS, LETTERS), own["choices"])
    groups = engine.sample(PROMPTS, 3, HOT, 11)
    assert [len(group) for group in groups] == [3] * len(PROMPTS)
    ids = [[sample.ids for sample in group] for group in groups]
    same([[s.logp for s in group] for group in groups], own["engine"].logps(PROMPTS, ids))
    for sample in (sample for group in groups for sample in group):
        assert (sample.ids[-1] == 1) == (sample.finish_reason == "stop")
        assert 1 not in sample.ids[:-1]
        assert sample.finish_reason == "stop" or len(sample.ids) == HOT.max_new_tokens
    return ids


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_numbers_are_those_of_this_process(stub_of, engine_of, own, kind):
    engine = engine_of(stub_of(kind=kind))
    ids = everything(engine, own)
    assert engine.identity == f"{kind} 0.32.0"
    assert everything(engine, own) == ids
    assert engine.sample(PROMPTS, 3, HOT, 12) != engine.sample(PROMPTS, 3, HOT, 11)
    # A prompt's responses do not depend on how many there are beside it, and differ.
    [alone] = engine.sample(PROMPTS[:1], 3, HOT, 11)
    assert [sample.ids for sample in alone] == ids[0]
    assert len({tuple(response) for group in ids for response in group}) > 20
    [[greedy]] = engine.sample(PROMPTS[:1], 1, Sampling(5, temperature=0.0), 3)
    [[wanted]] = own["engine"].sample(PROMPTS[:1], 1, Sampling(5, temperature=0.0), 4)
    assert (greedy.ids, greedy.finish_reason) == (wanted.ids, wanted.finish_reason)
    engine.normalize = "sum"
    same(engine.rewards(PROMPTS, RESPONSES), own["logps"])


def sometimes(answer):
    """A fault in every third request, by a lock-protected counter."""
    count, lock = [0], threading.Lock()

    def fault(handler, body) -> bool:
        with lock:
            count[0] += 1
            hit = count[0] % 3 == 1
        return bool(hit and answer(handler))

    return fault


def slow(handler) -> bool:
    time.sleep(0.05)
    return False


def cut(handler) -> bool:
    """The connection ends in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True
    return True


FAULTS = {
    "429": lambda handler: handler.reply({"error": "too many"}, 429) or True,
    "500": lambda handler: handler.reply({"error": "broken"}, 500) or True,
    "503": lambda handler: handler.reply(b"", 503) or True,
    "no JSON": lambda handler: handler.reply(b"<html>") or True,
    "no choices": lambda handler: handler.reply({"choices": []}) or True,
    "other JSON": lambda handler: handler.reply([1, None, {}]) or True,
    "cut": cut,
    "slow": slow,
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("count", [1, 2])
def test_faults_change_nothing(stub_of, engine_of, own, name, count):
    """Nothing is lost, nothing is twice, whether there is another server or not."""
    stubs = [stub_of() for _ in range(count)]
    engine = engine_of(*stubs)
    clean = everything(engine, own)
    stubs[0].fault = sometimes(FAULTS[name])
    assert everything(engine, own) == clean


@pytest.mark.parametrize("count", [1, 2])
def test_a_server_that_dies_and_comes_back(stub_of, engine_of, own, count):
    stubs = [stub_of() for _ in range(count)]
    engine = engine_of(*stubs)
    clean = everything(engine, own)
    dead = threading.Event()

    def die(handler, body) -> bool:
        if stubs[0].answered % 10 == 5 and not dead.is_set():
            dead.set()
            threading.Thread(target=stubs[0].stop).start()
            threading.Timer(0.3, stubs[0].start).start()
            handler.close_connection = True
            return True
        return False

    stubs[0].fault = die
    assert everything(engine, own) == clean
    assert dead.is_set()
    stubs[0].fault, before = None, stubs[0].answered
    end = time.monotonic() + 20
    while stubs[0].answered == before:
        assert time.monotonic() < end, "a server that is back is taken up again"
        everything(engine, own)


def test_both_of_two_servers_are_busy_and_no_request_is_sent_twice(stub_of, engine_of, own):
    stubs = [stub_of(fault=lambda handler, body: slow(handler)) for _ in range(2)]
    everything(engine_of(*stubs), own)
    assert min(stub.answered for stub in stubs) > 10
    # Rewards ask what logps asked before; all else differs.
    sent = sum((stub.seen for stub in stubs), start=type(stubs[0].seen)())
    scored = sum("prompt_logprobs" in request for request in sent)
    assert sorted(sent.values())[-scored:] == [2] * scored
    assert set(sent.values()) == {1, 2}


def test_at_most_so_many_requests_at_a_time(stub_of, engine_of):
    now, most, lock, three = [0], [0], threading.Lock(), threading.Event()

    def count(handler, body) -> bool:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 3:
                three.set()
        three.wait(20)
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return False

    stub = stub_of(fault=count)
    engine_of(stub, limits=Limits(concurrency=3, pause=0.02)).choices(PROMPTS, LETTERS)
    assert most[0] == 3


@pytest.mark.parametrize(
    ("fault", "limits", "told"),
    [
        (FAULTS["500"], Limits(attempts=3, pause=0.01), "failed 3 times.*status 500"),
        (FAULTS["no JSON"], Limits(attempts=2, pause=0.01), "makes no sense.*<html>"),
        (FAULTS["503"], Limits(attempts=999, pause=0.01, patience=0.2), "no server has answered"),
        (
            lambda handler: handler.reply({"error": "max_tokens"}, 400) or True,
            Limits(pause=0.01),
            "refuses a request with status 400.*max_tokens",
        ),
    ],
)
def test_what_does_not_mend_itself_is_an_error(stub_of, engine_of, fault, limits, told):
    stub = stub_of()
    engine = engine_of(stub, limits=limits)
    stub.fault = lambda handler, body: fault(handler)
    if "no server" in told:
        stub.kind = "gone"
        stub.stop()
    with pytest.raises(ServerError, match=told):
        engine.choices(PROMPTS, LETTERS)
    if "no server" in told:
        stub.start()


def test_a_timeout_is_a_failed_attempt(stub_of, engine_of, own, caplog):
    seen, over = [], threading.Event()

    def hang(handler, body) -> bool:
        seen.append(1)
        if len(seen) == 1:
            over.wait(60)
        return False

    # A second is short for one that never answers, and long for the others under any load.
    engine = engine_of(stub_of(fault=hang), limits=Limits(timeout=1.0, pause=0.02))
    same(engine.choices(PROMPTS, LETTERS), own["choices"])
    over.set()
    assert len(seen) == len(PROMPTS) + 1
    [told] = [record.getMessage() for record in caplog.records]
    assert "no answer within the 1 seconds of server_timeout; it answers other questions" in told


def test_a_server_that_is_always_too_slow(stub_of, engine_of, caplog):
    """One that is busy is not left, and the error says what helps; one that is silent is left."""
    over = threading.Event()
    stub = stub_of(fault=lambda handler, body: over.wait(60))
    engine = engine_of(stub, limits=Limits(timeout=0.3, attempts=2, pause=0.02, patience=0.1))
    with pytest.raises(ServerError, match=r"2 times.* raise server_timeout or lower server_conc"):
        engine.choices(PROMPTS[:1], LETTERS)
    assert not engine.pool.down
    stub.silent = over
    with pytest.raises(ServerError, match=r"no server has answered"):
        engine.choices(PROMPTS[:1], LETTERS)
    assert "does not answer (no answer within the 0.3 seconds" in caplog.text
    over.set()


def test_a_sequence_beyond_the_servers_window(stub_of, engine_of):
    engine = engine_of(stub_of(window=8))
    assert engine.checkpoint.window == 7
    with pytest.raises(ServerError, match=r"takes 8 tokens.*--max-model-len"):
        engine.sample(PROMPTS, 1, HOT, 0)
    with pytest.raises(ServerError, match="a prompt of 6 with a response"):
        engine.logps(PROMPTS[2:3], [[[9, 9]]])
