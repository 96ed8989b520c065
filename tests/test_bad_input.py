"""Errors for bad arguments of the functional API, and how an implementation is chosen."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from logprobs import draw
from torch._dynamo.exc import Unsupported
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import pad_fast
from pad_fast import functional
from pad_fast.evaluation import ranking_agreement


def good():
    hidden, weight, bias, labels, _ = draw()
    return {
        "logits": hidden @ weight.T,
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "labels": labels,
    }


LOGITS_ERRORS = {
    "labels must have the shape of logits": {"labels": torch.zeros(2, 5, dtype=torch.int64)},
    "labels must be int32 or int64, got torch.float32": {"labels": torch.zeros(2, 4)},
    "float32 or float64, got torch.float8_e4m3fn": {
        "logits": torch.zeros(2, 4, 45, dtype=torch.float8_e4m3fn)
    },
    "logits must be float16, bfloat16, float32 or float64, got torch.int64": {
        "logits": torch.zeros(2, 4, 45, dtype=torch.int64)
    },
    "logits must have a last dimension": {"logits": torch.zeros(2, 4, 0)},
    "labels must be on the device of logits, cpu, got meta": {
        "labels": torch.zeros(2, 4, dtype=torch.int64, device="meta")
    },
    "labels must be in 0..44 or ignore_index (-100), got 45": {"labels": torch.full((2, 4), 45)},
    "labels must be in 0..44 or ignore_index (-100), got -1": {"labels": torch.full((2, 4), -1)},
    "temperature must be a positive finite number, got 0": {"temperature": 0},
    "softcap must be None or a positive finite number, got -3.0": {"softcap": -3.0},
    "logit_scale must be a finite number, got inf": {"logit_scale": float("inf")},
    "impl must be one of auto, torch, triton, got 'cuda'": {"impl": "cuda"},
    "temperature must be a positive finite number, got '1'": {"temperature": "1"},
    "softcap must be None or a positive finite number, got [30]": {"softcap": [30]},
    "logit_scale must be a finite number, got None": {"logit_scale": None},
    "ignore_index must be an int, got 1.5": {"ignore_index": 1.5},
    "labels must be a torch.Tensor, got list": {"labels": [[1, 2, 3, 4]] * 2},
    "logits must be a torch.Tensor, got NoneType": {"logits": None},
    "/ temperature must lie within 1e-30 and 1e+30, which float32 can hold, got 1e-300": {
        "temperature": 1e300
    },
    "softcap / temperature must lie within 1e-30 and 1e+30, which float32 can hold, got 3e+38": {
        "softcap": 3e38
    },
    "logit_scale / softcap must lie within 1e-30 and 1e+30": {
        "softcap": 1e31,
        "temperature": 1e5,
        "logit_scale": -1.0,
    },
}


@pytest.mark.parametrize("message", LOGITS_ERRORS)
def test_errors_of_logits(message):
    arguments = {
        key: value for key, value in good().items() if key in ("logits", "labels")
    } | LOGITS_ERRORS[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        functional.token_logprobs(**arguments)


LINEAR_ERRORS = {
    "weight must be (V, D) with D of hidden, 12, got (45, 11)": {"weight": torch.zeros(45, 11)},
    "ZeRO-3 leaves a weight empty outside of its gather context: call this inside of the forward": {
        "weight": torch.zeros(0)
    },
    "weight must have the dtype and device of hidden": {
        "weight": torch.zeros(45, 12, dtype=torch.float64)
    },
    "on cpu, got torch.float32 on meta; move or cast": {
        "weight": torch.zeros(45, 12, device="meta")
    },
    "got torch.float8_e4m3fn; dequantise it first": {
        "weight": torch.zeros(45, 12, dtype=torch.float8_e4m3fn)
    },
    'memory_budget must be "auto" or a number of bytes, an int of at least 0, got -1': {
        "memory_budget": -1
    },
    "an int of at least 0, got 'much'": {"memory_budget": "much"},
    "an int of at least 0, got 1.5": {"memory_budget": 1.5},
    "live_rows must be None or int64 of shape (L,) on cpu, got torch.int32 (8,)": {
        "live_rows": torch.arange(8, dtype=torch.int32)
    },
    "live_rows must be in 0..7, got 0..8": {"live_rows": torch.tensor([0, 8])},
    "got row 1 with label": {"live_rows": torch.tensor([0, 3, 4, 5, 6])},
    "got row 2 with label -100 1 times": {"live_rows": torch.arange(8)},
    "bias must be (V,) = (45,), got (44,)": {"bias": torch.zeros(44)},
    "labels must have the shape of hidden": {"labels": torch.zeros(8, dtype=torch.int64)},
    "labels must be in 0..44": {"labels": torch.full((2, 4), 99)},
}


@pytest.mark.parametrize("message", LINEAR_ERRORS)
def test_errors_of_hidden_states(message):
    arguments = {key: value for key, value in good().items() if key != "logits"} | LINEAR_ERRORS[
        message
    ]
    with pytest.raises(ValueError, match=re.escape(message)):
        functional.linear_token_logprobs(**arguments)


def test_a_sharded_weight_is_refused(tmp_path):
    """FSDP2 before its gathering and tensor parallelism pass a DTensor."""
    arguments = {key: value for key, value in good().items() if key != "logits"}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        arguments["weight"] = distribute_tensor(arguments["weight"], mesh, [Shard(0)])
        with pytest.raises(
            ValueError,
            match=r"weight must be whole, got a DTensor.*inside of the forward.*full_tensor",
        ):
            functional.linear_token_logprobs(**arguments)
    finally:
        torch.distributed.destroy_process_group()


IDS = torch.zeros(8, dtype=torch.int64)


REWARD_ERRORS = {
    "normalize must be one of mean, sum, got 'max'": {"normalize": "max"},
    "labels must be (M,), packed, when response_ids are given": {"response_ids": IDS},
    "num_responses must be R of the padded labels, 2": {"num_responses": 3},
}


PACKED_ERRORS = {
    "response_ids must be integers of shape (8,)": {"response_ids": IDS.float()},
    "num_responses must not be negative, got -1": {"response_ids": IDS, "num_responses": -1},
    "response_ids must be below num_responses (2), -1 for a row of none; got 5": {
        "response_ids": IDS + 5,
        "num_responses": 2,
    },
    "labels must be (R, T), one response a row, unless response_ids are given": {},
}


@pytest.mark.parametrize("message", [*REWARD_ERRORS, *PACKED_ERRORS])
def test_errors_of_responses(message):
    logits, labels = good()["logits"], good()["labels"]
    packed = message in PACKED_ERRORS
    arguments = PACKED_ERRORS[message] if packed else REWARD_ERRORS[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        functional.response_rewards(
            *((logits.view(8, -1), labels.view(8)) if packed else (logits, labels)), **arguments
        )


@pytest.mark.parametrize(
    "message",
    [
        "labels must have the shape of logits",
        "labels must be in 0..44 or ignore_index (-100), got 45",
    ],
)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_the_same_errors_under_compile(message, fullgraph):
    """The compiler raises ours, or under fullgraph=True an error of its own that quotes it."""
    torch.compiler.reset()
    arguments = {
        key: value for key, value in good().items() if key in ("logits", "labels")
    } | LOGITS_ERRORS[message]
    function = torch.compile(
        lambda logits, labels: functional.token_logprobs(logits, labels),
        backend="aot_eager",
        fullgraph=fullgraph,
    )
    with pytest.raises(
        (ValueError, Unsupported) if fullgraph else ValueError, match=re.escape(message)
    ):
        function(**arguments)


def test_environment_chooses_and_does_not_fall_back(monkeypatch):
    arguments = {key: value for key, value in good().items() if key in ("logits", "labels")}
    monkeypatch.setenv("PAD_FAST_IMPL", "fast")
    with pytest.raises(
        ValueError, match="PAD_FAST_IMPL must be one of auto, torch, triton, got 'fast'"
    ):
        functional.token_logprobs(**arguments)
    monkeypatch.setenv("PAD_FAST_IMPL", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        functional.token_logprobs(**arguments)
    functional.token_logprobs(**arguments, impl="torch")  # an argument goes first
    monkeypatch.setenv("PAD_FAST_IMPL", "")  # the same as unset
    functional.token_logprobs(**arguments)


def test_numbers_of_numpy_are_numbers():
    arguments = {key: value for key, value in good().items() if key in ("logits", "labels")}
    options = {
        "temperature": np.float32(0.5),
        "softcap": np.int64(30),
        "ignore_index": np.int64(-100),
    }
    got = functional.token_logprobs(**arguments, **options)
    assert torch.equal(got, functional.token_logprobs(**arguments, temperature=0.5, softcap=30.0))
    functional.token_logprobs(**arguments, logit_scale=0)  # 0 is allowed


def test_import_loads_torch_alone():
    heavy = ("triton", "transformers", "datasets", "matplotlib")
    code = f"import sys, pad_fast; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert pad_fast.token_logprobs is functional.token_logprobs


def test_meta_tensors_tell_shapes() -> None:
    """The meta device knows no autocast: asking whether it is on would raise an error."""
    hidden, weight = torch.empty(2, 3, 4, device="meta"), torch.empty(7, 4, device="meta")
    labels = torch.empty(2, 3, dtype=torch.long, device="meta")
    assert functional.linear_token_logprobs(hidden, weight, labels).shape == (2, 3)
    assert functional.linear_response_rewards(hidden, weight, labels).shape == (2,)


REWARDS = torch.zeros(1, 2)
OUTPUT, HEAD = SimpleNamespace(logits=REWARDS, last_hidden_state=REWARDS), torch.nn.Linear(2, 9)
TENSOR = "must be a torch.Tensor, got"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("response_rewards(OUTPUT, ids)", f"logits {TENSOR} SimpleNamespace; give its logits"),
        ("response_rewards(states, [[1]])", f"labels {TENSOR} list; torch.tensor(...) makes one"),
        ("response_lengths([[1]])", f"labels {TENSOR} list; torch.tensor"),
        ("response_lengths(ids[0], response_ids=[0, 1, 1])", f"response_ids {TENSOR} list"),
        ("token_logprobs(states, {'input_ids': ids})", f"labels {TENSOR} dict"),
        ("linear_token_logprobs(OUTPUT, weight, ids)", "SimpleNamespace; give its last_hidden_st"),
        ("linear_token_logprobs(states, HEAD, ids)", f"weight {TENSOR} Linear; give its weight"),
        ("linear_token_logprobs(states, weight, ids, bias=[0.0])", f"bias {TENSOR} list"),
        ("linear_token_logprobs(states, weight, ids, live_rows=[0])", f"live_rows {TENSOR} list"),
        (
            "linear_response_rewards(states.numpy(), weight, ids)",
            f"hidden {TENSOR} ndarray",
        ),
        ("PADLoss()(OUTPUT, ids, REWARDS)", f"logits {TENSOR} SimpleNamespace; give its logits"),
        ("PADLoss()(states, ids, [[0.0, 1.0]])", f"teacher_rewards {TENSOR} list; torch.tensor"),
        ("PADLoss()(states, ids, REWARDS, mask=[[1, 1]])", f"mask {TENSOR} list"),
        ("PADLoss()(states, ids, REWARDS, read_as=[[0, 1]])", f"read_as {TENSOR} list"),
        ("LinearPADLoss()(OUTPUT, weight, ids, REWARDS)", "give its last_hidden_state"),
        ("LinearPADLoss()(states, HEAD, ids, REWARDS)", f"weight {TENSOR} Linear; give its weight"),
        ("vanilla_preference_loss(REWARDS, [[0.0, 1.0]])", f"teacher_rewards {TENSOR} list"),
        ("vanilla_preference_loss(REWARDS, REWARDS, mask=[[1, 1]])", f"mask {TENSOR} list"),
        (
            "preference_loss('dpo', REWARDS, REWARDS, anchor_rewards=[[0.0, 1.0]])",
            f"anchor_rewards {TENSOR} list",
        ),
        ("preference_loss('vpd', REWARDS, REWARDS, lengths=[[3, 4]])", f"lengths {TENSOR} list"),
        ("preference_loss('vpd', REWARDS, REWARDS, lengths=REWARDS)", "lengths must be int32 or"),
        ("preference_loss('vpd', REWARDS, REWARDS, lengths=ids)", "lengths must be (1, 2) on cpu"),
        ("ranking_agreement([[0.0, 1.0]], REWARDS)", f"student_rewards {TENSOR} list"),
        ("ranking_agreement(REWARDS, REWARDS, [[1, 1]])", f"mask {TENSOR} list"),
    ],
)
def test_what_is_no_tensor_is_named_everywhere(call, message):
    """Lists, a model's output and its head as a module: what stands nearest to a tensor."""
    states, weight, ids = torch.zeros(2, 3, 2), torch.zeros(9, 2), torch.ones(2, 3).long()
    names = {**vars(functional), **{name: getattr(pad_fast, name) for name in pad_fast.__all__}}
    names |= {"ranking_agreement": ranking_agreement, "OUTPUT": OUTPUT, "HEAD": HEAD}
    names |= {"states": states, "weight": weight, "ids": ids, "REWARDS": REWARDS}
    with pytest.raises(ValueError, match=re.escape(message)):
        eval(call, names)
