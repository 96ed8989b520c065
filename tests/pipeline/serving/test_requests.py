"""What servers are sent, field by field: what a request leaves out, the server fills in itself."""

from __future__ import annotations

import json

import pytest
from stub_server import Stub

from pad_fast.pipeline.sample.engines import Sampling

PROMPT = [3, 7, 9, 4]
ENDS = [1]  # <end>
UNUSUAL = Sampling(5, temperature=1.7, top_p=0.6, top_k=9)
# vLLM takes what is missing from the model's generation_config.json, SGLang from its defaults.
NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "skip_special_tokens": False,
}


def sent(stub: Stub, path: str) -> list[dict]:
    """The bodies of the requests to a path."""
    return [body for where, body in map(json.loads, stub.seen) if where == path]


def vllm_body(stub: Stub, **changes: object) -> dict:
    return {
        "model": stub.served_as,
        "prompt": PROMPT,
        "n": 1,
        "max_tokens": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        **NEUTRAL,
        "return_token_ids": True,
        **changes,
    }


@pytest.mark.parametrize(
    ("how", "fields"),
    [
        (UNUSUAL, {"temperature": 1.7, "top_p": 0.6, "top_k": 9}),
        (Sampling(5, temperature=0.0), {"temperature": 0.0, "top_p": 1.0, "top_k": -1}),
    ],
)
def test_sampling_is_sent_whole(stub_of, engine_of, how, fields):
    n = 1 if how.greedy else 3
    vllm, sglang = stub_of(kind="vllm"), stub_of(kind="sglang")
    for stub in (vllm, sglang):
        engine_of(stub).sample([PROMPT], n, how, 11)
    [body] = sent(vllm, "/v1/completions")
    seed = body["seed"]
    own = {"n": n, "max_tokens": 5, "seed": seed, "stop_token_ids": ENDS, "logprobs": 0}
    assert body == vllm_body(vllm, **own, **fields)
    params = {"max_new_tokens": 5, "stop_token_ids": ENDS, **NEUTRAL, **fields}
    assert sent(sglang, "/generate") == [
        {
            "input_ids": [PROMPT] * n,
            "sampling_params": [{**params, "sampling_seed": seed + k} for k in range(n)],
            "return_logprob": True,
            "return_text_in_logprobs": False,
            "logprob_start_len": -1,
        }
    ]


def test_scoring_is_sent_whole(stub_of, engine_of):
    vllm, sglang = stub_of(kind="vllm"), stub_of(kind="sglang")
    for stub in (vllm, sglang):
        engine_of(stub).logps([PROMPT], [[[9, 1]]])
    [body] = sent(vllm, "/v1/completions")
    assert body == vllm_body(vllm, prompt=[[*PROMPT, 9, 1]], prompt_logprobs=0)
    assert sent(sglang, "/generate") == [
        {
            "input_ids": [[*PROMPT, 9, 1]],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "return_text_in_logprobs": False,
            "logprob_start_len": len(PROMPT) - 1,
        }
    ]


def test_choosing_is_sent_whole(stub_of, engine_of):
    vllm, sglang = stub_of(kind="vllm"), stub_of(kind="sglang")
    for stub in (vllm, sglang):
        engine_of(stub).choices([PROMPT], [40, 41])
    [body] = sent(vllm, "/v1/completions")
    asked = {"logprob_token_ids": [40, 41], "return_tokens_as_token_ids": True}
    assert body == vllm_body(vllm, logprobs=0, **asked)
    assert sent(sglang, "/generate") == [
        {
            "input_ids": [PROMPT],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "return_text_in_logprobs": False,
            "logprob_start_len": -1,
            "token_ids_logprob": [[40, 41]],
        }
    ]
