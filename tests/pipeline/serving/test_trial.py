"""What a server is refused for, and that the refusal says what mends it."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import worlds

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.serving import run_engines
from pad_fast.pipeline.serving.connection import KEY
from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.full_load import Load, check_load
from pad_fast.pipeline.serving.pool import Limits, Pool
from pad_fast.pipeline.serving.served_weights import Probe
from pad_fast.pipeline.serving.server_engine import ServerEngine
from pad_fast.pipeline.serving.trial import try_out

LETTERS = [40, 41, 42]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_good_server_passes(stub_of, engine_of, kind, caplog):
    with caplog.at_level(logging.WARNING, "pad_fast"):
        try_out(engine_of(stub_of(kind=kind)), LETTERS)
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"raw": False}, r"after the temperature.*--logprobs-mode raw_logprobs"),
        (
            {"raw": False, "kind": "sglang"},
            "after the temperature.*SGLANG_RETURN_ORIGINAL_LOGPROB=1",
        ),
        ({"ids": False}, "no token ids.*return_token_ids"),
        ({"letters": False}, "logprob_token_ids, or mcq_style: none"),
        ({"served_as": "org/other", "root": "org/other"}, "serves org/other, and the teacher is"),
    ],
)
def test_what_a_server_lacks(stub_of, engine_of, changes, told):
    with pytest.raises(ServerError, match=told):
        try_out(engine_of(stub_of(**changes)), LETTERS)


def test_another_name_is_no_other_model(stub_of, engine_of):
    """An alias is taken where the root is the teacher, and where the alias is its name."""
    try_out(engine_of(stub_of(served_as="judge")))
    engine = engine_of(stub_of(served_as="teacher", root="/elsewhere/quantised"))
    try_out(engine)
    assert engine.identity == "vllm 0.32.0 serving /elsewhere/quantised"


def changed_choices(change):
    """A fault that changes every choice of an answer that has token ids."""

    def fault(handler, body) -> bool:
        if handler.path != "/v1/completions":
            return False
        answer = handler.server.stub.completions(body)
        for choice in answer["choices"]:
            change(choice, body)
        handler.reply(answer)
        return True

    return fault


def cut_early(choice, body) -> None:
    if body["max_tokens"] > 1:
        choice.update(finish_reason="length", token_ids=choice["token_ids"][:1])
        choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:1]


def stop_elsewhere(choice, body) -> None:
    if body["max_tokens"] > 1:
        choice.update(finish_reason="stop", token_ids=[*choice["token_ids"][:-1], 9])


def add_bos(choice, body) -> None:
    choice["prompt_token_ids"] = [0, *choice["prompt_token_ids"]]


def coarse(choice, body) -> None:
    for row in choice.get("prompt_logprobs") or []:
        for entry in (row or {}).values():
            entry["logprob"] -= 0.3


def logits(choice, body) -> None:
    if "logprobs" in choice:
        found = choice["logprobs"]
        found["token_logprobs"] = [value + 50 for value in found["token_logprobs"]]


def minus_infinity(choice, body) -> None:
    for row in choice.get("prompt_logprobs") or []:
        for entry in (row or {}).values():
            entry["logprob"] = -9999.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (cut_early, "cut a response at 1 tokens.*--generation-config vllm"),
        (stop_elsewhere, "the token 9, which ends none of the checkpoint's"),
        (add_bos, "read 2?[0-9]+ other tokens than .* were sent"),
        (coarse, "other log-probabilities than the same tokens in a prompt.*--kv-cache-dtype auto"),
        (logits, "above 0; it takes --logprobs-mode raw_logprobs"),
        (minus_infinity, "minus infinity, and nothing of it is kept"),
    ],
)
def test_answers_that_cannot_be_trusted(stub_of, engine_of, change, told):
    with pytest.raises(ServerError, match=told):
        try_out(engine_of(stub_of(fault=changed_choices(change))))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_another_vocabulary(stub_of, engine_of, kind):
    """By /tokenize, and where there is none by the texts of samples."""
    stub = stub_of(kind=kind)
    stub.model.tokenizer = worlds.character_tokenizer(worlds.CHARACTERS[::-1])
    with pytest.raises(ServerError, match=r"another vocabulary than the teacher.*--tokenizer"):
        try_out(engine_of(stub))


def test_seeds_that_are_not_followed_are_a_warning(stub_of, engine_of, caplog):
    stub, count = stub_of(), [0]
    own = stub.model.sample

    def sample(body, prompt, seed, raw):
        count[0] += 1
        return own(body, prompt, seed + 100 * count[0], raw)

    stub.model.sample = sample
    with caplog.at_level(logging.WARNING, "pad_fast"):
        try_out(engine_of(stub))
    assert "samples other responses to the same seeds" in caplog.text


def test_nobody_is_there(world):
    checkpoint = Checkpoint("teacher", str(world / "teacher"))
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9 does not answer: ConnectError"):
        ServerEngine(checkpoint, "mean", Pool(["http://127.0.0.1:9"], Limits()))


def test_somebody_else_is_there(stub_of, engine_of):
    with pytest.raises(ServerError, match="'openai', which is neither vllm nor sglang"):
        engine_of(stub_of(kind="openai"))


def test_servers_that_differ(stub_of, engine_of):
    with pytest.raises(ServerError, match=r"vllm 0.32.0, and .* by vllm 0.31.0; give servers that"):
        engine_of(stub_of(), stub_of(version="0.31.0"))


def test_servers_of_different_weights(stub_of, engine_of, world):
    other = stub_of(served_as="teacher")
    other.load(world / "student")
    with pytest.raises(ServerError, match=r"gives other log-probabilities than .* serve the same"):
        try_out(engine_of(stub_of(served_as="teacher"), other))


def test_weights_are_told_apart_by_the_ends_of_prompts():
    """With many processes each has one CPU thread."""
    sampled = {"prompt_ids": list(range(1800)), "completion_ids": [[], [7, 8]]}
    probe = Probe.of([sampled, {"prompt_ids": list(range(400))}, {"prompt_ids": [1, 2, 3, 4]}])
    assert probe.prompts == [list(range(1672, 1800)), list(range(72, 200)), [1, 2]]
    assert probe.responses == [[7, 8], list(range(200, 264)), [3, 4]]


def test_the_key_is_sent_and_asked_for(stub_of, engine_of, monkeypatch):
    def locked(handler, body) -> bool:
        if handler.headers.get("Authorization") == "Bearer sesame":
            return False
        handler.reply({}, 401)
        return True

    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):  # which is for other machines
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    engine = engine_of(stub_of(fault=locked))
    with pytest.raises(ServerError, match=rf"wants a key and got none \(status 401\); set {KEY}"):
        try_out(engine)
    monkeypatch.setenv(KEY, "of another")
    with pytest.raises(ServerError, match=rf"wants a key and got another .* set {KEY}"):
        engine.choices([[3, 7]], [40])
    monkeypatch.setenv(KEY, "sesame")
    try_out(engine)


def test_every_server_is_tried(stub_of, engine_of):
    """Also those that would have been asked nothing in a trial of all at a time."""
    processed = stub_of(raw=False)
    with pytest.raises(ServerError, match=rf"{processed.url} returns log-probabilities after the"):
        try_out(engine_of(stub_of(), processed))


def dies_of(most: int):
    """A fault of servers that answer a step of more tokens no more, nor anything after it."""

    def fault(handler, body) -> bool:
        texts = body.get("prompt") if handler.path == "/v1/completions" else body.get("input_ids")
        rows = texts if texts and isinstance(texts[0], list) else []
        if sum(map(len, rows)) <= most:
            return False
        handler.reply({"error": "EngineCore encountered an issue"}, 500)
        return True

    return fault


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("vllm", "--max-num-batched-tokens 2048 and a lower --gpu-memory-utilization"),
        ("sglang", "SGLANG_ENABLE_LOGITS_PROCESSER_CHUNK=1"),
    ],
)
def test_a_server_that_dies_of_a_full_load(stub_of, engine_of, kind, told):
    engine, load = engine_of(stub_of(kind=kind, fault=dies_of(800))), Load(64, 12, 80)
    try_out(engine)  # which sends too few tokens to see it
    with pytest.raises(ServerError, match=rf"to score 16,320 tokens at a time.*500.*{told}"):
        try_out(engine, load=load)


def test_a_runs_load_is_that_of_a_shards_groups(stub_of, world, monkeypatch, tmp_path):
    settings = {"teacher_server": [stub_of().url], "shard_size": 5, "max_new_tokens": 24}
    config = worlds.run_config(world, heldout_num_generations=6, **settings)
    loads, scores = [], SimpleNamespace(normalize="mean")
    monkeypatch.setattr(run_engines, "try_out", lambda engine, letters, load: loads.append(load))
    engines = run_engines.RunEngines(config, scores, tmp_path, print, list, lambda own: [])
    engines.try_servers([Checkpoint("teacher", str(world / "teacher"))], own=False)
    assert loads == [Load(requests=5, sequences=6, tokens=48)]


def test_a_load_is_bounded_and_fits_the_window(stub_of, engine_of):
    assert Load(64, 4, 1024).within(512) == Load(8, 4, 512)
    assert Load(64, 4, 100_000).within(None) == Load(1, 4, 100_000)
    stub = stub_of()
    engine = engine_of(stub)
    limits = engine.pool.limits
    check_load(engine, Load(2, 4, 10))  # fills no step
    assert not any("/v1/completions" in asked for asked in stub.seen)
    check_load(engine, Load(3, 2, 10_000))
    rows = [json.loads(asked)[1]["prompt"] for asked in stub.seen if "completions" in asked]
    assert [[len(row) for row in texts] for texts in rows] == [[255, 255]] * 3
    assert engine.pool.limits == limits


def test_the_smallest_window_counts(stub_of, engine_of):
    assert engine_of(stub_of(window=200), stub_of(window=100)).checkpoint.window == 99
