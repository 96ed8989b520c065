"""The planner's peaks against measured ones, and its flops against formulas by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planning import CPU, MANY, SETTINGS, N, near, real_model, setting, step
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.memory import allocated_peak, resident_peak
from pad_fast import PADConfig, PADTrainer
from pad_fast.models.scoring import score_responses
from pad_fast.plan import footprint
from pad_fast.plan.footprint import GroupShape, Reading, TrainingOptions, count_parameters
from pad_fast.training.batch_layout import tokens_that_fit


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# peaks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "bf16"),
    [*((name, False) for name in SETTINGS), ("llama-long", True), ("gemma2-long", True)],
)
def test_peak_of_a_training_step(name, bf16, checkpointing):
    config, prompt, response = setting(name)
    model = real_model(config, checkpointing=checkpointing)
    measured, _ = allocated_peak(lambda: step(model, (prompt, response, N), bf16=bf16) or (), CPU)
    found = footprint.training_step(
        config,
        1,
        GroupShape(prompt, response, N),
        TrainingOptions(checkpointing=checkpointing, bf16=bf16, optimizer_bytes=0),
    )
    near(found.peak - found.start, measured)
    assert found.start == sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize(
    ("name", "checkpointing", "limit"),
    [
        ("llama-long", False, None), ("llama-long", True, 300), ("gemma2-long", False, 300), ("gemma2-long", True, None),
        ("llama-vocabulary", True, 64),
    ],
)  # fmt: skip
def test_peak_with_shared_prompts_and_slices(name, checkpointing, limit):
    config, prompt, response = setting(name)
    shape = GroupShape(2 * prompt, response, N)
    model = real_model(config, checkpointing=checkpointing)
    if limit:
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)  # as an earlier slice leaves them
    measured, _ = allocated_peak(
        lambda: step(model, shape, layout="shared", limit=limit) or (), CPU
    )
    how = TrainingOptions(checkpointing=checkpointing, optimizer_bytes=0, max_tokens=limit)
    found = footprint.training_step(config, 1, shape, how, Reading(shared=True))
    near(found.peak - found.start, measured)


@pytest.mark.parametrize("budget", [0, 200 * 2**20, 2**30])
@pytest.mark.parametrize("name", ["llama-vocabulary", "gemma2-vocabulary"])
def test_peak_under_a_budget_of_the_head(name, budget):
    """None of the rows keeps its scores, some do, and all; more rows than a tile of the backward has."""
    config, prompt, response = setting(name)
    shape = GroupShape(prompt, 16 * response, N)
    model = real_model(config, memory_budget=budget)
    measured, _ = allocated_peak(lambda: step(model, shape) or (), CPU)
    how = TrainingOptions(checkpointing=False, optimizer_bytes=0, memory_budget=budget)
    found = footprint.training_step(config, 1, shape, how)
    near(found.peak - found.start, measured)


def test_what_sharing_and_slices_save():
    config, prompt, response = setting("llama-long")
    shape, how = GroupShape(4 * prompt, response, N), TrainingOptions(optimizer_bytes=0)
    alone = footprint.training_step(config, 1, shape, how)
    shared = footprint.training_step(config, 1, shape, how, Reading(shared=True, gpu=True))
    sliced = footprint.training_step(
        config, 1, shape, replace(how, max_tokens=600), Reading(shared=True, gpu=True)
    )
    assert shared.flops < 0.7 * alone.flops
    assert shared.peak - shared.start < 0.8 * (alone.peak - alone.start)
    assert sliced.flops > 1.2 * shared.flops  # one more forward, and the prompt in each slice
    assert sliced.peak - sliced.start < 0.7 * (shared.peak - shared.start)


@pytest.mark.parametrize(
    ("name", "checkpointing", "micro", "share"),
    [
        ("llama-long", False, 1, "false"),
        ("llama-vocabulary", True, 2, "false"),
        ("gemma2-long", True, 2, "true"),
    ],
)
def test_peak_of_the_trainer(name, checkpointing, micro, share, tmp_path):
    """From the model's making to the last of two steps: weights, gradients that wait for the next micro-batch, AdamW's moments."""
    config, prompt, response = setting(name, tie_word_embeddings=True)
    row = {
        "prompt_ids": [1] * prompt,
        "completion_ids": [[i + 1] * response for i in range(N)],
        "teacher_rewards": [float(i) for i in range(N)],
    }
    args = PADConfig(
        output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=checkpointing, per_device_train_batch_size=2, max_steps=2,
        gradient_accumulation_steps=micro, disable_tqdm=True, report_to="none", save_strategy="no", share_prefix=share,
    )  # fmt: skip

    def train():
        PADTrainer(
            AutoModelForCausalLM.from_config(config, dtype=torch.float32), args, [row] * 4 * micro
        ).train()
        return ()

    measured, _ = allocated_peak(train, CPU)
    how = TrainingOptions(checkpointing=checkpointing, accumulating=micro > 1)
    near(
        footprint.training_step(
            config, 2, GroupShape(prompt, response, N), how, Reading(shared=share == "true")
        ).peak,
        measured,
    )


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_peak_of_scoring(name, share):
    config, prompt, response = setting(name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    prompt, response = 4 * prompt, 4 * response  # a batch of kilobytes would be all small change
    arguments = {
        "prompts": [[1] * prompt],
        "responses": [[[i + 1] * response for i in range(N)]],
        "share_prefix": share,
    }
    score_responses(model, **arguments)  # looks at the head and tries the layout, once
    measured, _ = allocated_peak(lambda: score_responses(model, **arguments) and (), CPU)
    found = footprint.scoring_batch(
        config, 1, GroupShape(prompt, response, N), torch.float32, 8192, Reading(shared=share)
    )
    near(found.peak - found.start, measured)


@pytest.mark.parametrize("name", SETTINGS)
def test_peak_of_sampling(name):
    config, prompt, _ = setting(name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.ones(1, prompt, dtype=torch.long)
    sampling = GenerationConfig(
        max_new_tokens=24, do_sample=True, num_return_sequences=N, temperature=0.8, pad_token_id=0
    )

    def generate():
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=sampling
            )
        return ()

    generate()
    measured, _ = allocated_peak(generate, CPU)
    first, last = footprint.sampling_batch(config, GroupShape(prompt, 24, N), torch.float32)
    near(max(first.peak, last.peak) - first.start, measured)
    per_token = N * 2 * 16 * 2 * 2 * 4  # keys and values of two heads of 16, two layers, float32
    kept = (
        min(prompt + 23, 31) + prompt + 23 if config.model_type == "gemma2" else 2 * (prompt + 23)
    )  # a layer slides over 32
    assert last.start - first.start == pytest.approx(per_token * kept / 2, rel=0.01)


def process_peaks() -> None:
    """Run in a process of its own by the test below: estimates and peaks of the resident memory as JSON."""
    torch.set_num_threads(1)
    found = {}
    for name in ("llama-long", "llama-vocabulary", "gemma2-long"):
        config, prompt, response = setting(name, hidden_size=128, intermediate_size=512)
        step(real_model(config), (2, 2, 2))  # libraries take memory for themselves at first
        estimate = footprint.training_step(
            config,
            1,
            GroupShape(prompt, response, MANY),
            TrainingOptions(checkpointing=False, optimizer_bytes=0),
        ).peak
        found[name] = (
            estimate,
            resident_peak(
                lambda c=config, p=prompt, r=response: step(real_model(c), (p, r, MANY)) or ()
            ),
        )
    print(json.dumps(found))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_of_the_process():
    """glibc raises the size from which memory goes back at once when it is freed, and keeps holes below it: fixed, it does not."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONPATH": f"{root}:{root / 'tests'}:{root / 'tests' / 'plan'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "import test_peaks; test_peaks.process_peaks()",
    ]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert output.returncode == 0, output.stderr
    for estimate, measured in json.loads(output.stdout.splitlines()[-1]).values():
        near(estimate, measured, 0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_peak_on_a_gpu(name, checkpointing, share):
    """As torch.cuda.max_memory_allocated has it, under bf16 autocast, with AdamW's moments in place."""
    larger = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 6,
        "head_dim": 256,
    }
    config, prompt, response = setting(name, **larger)
    shape, device = GroupShape(4 * prompt, 4 * response, N), torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = real_model(config, checkpointing=checkpointing).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    for _ in range(2):
        step(model, shape, layout="shared" if share else "padded", bf16=True, device=device)
        optimizer.step()
        optimizer.zero_grad()
    measured = torch.cuda.max_memory_allocated() - before
    how = TrainingOptions(checkpointing=checkpointing, bf16=True)
    near(
        footprint.training_step(config, 1, shape, how, Reading(shared=share, gpu=True)).peak,
        measured,
        0.2,
    )


# counts


@pytest.mark.parametrize("tied", [False, True])
def test_parameters(tied):
    config, *_ = setting("llama-vocabulary", tie_word_embeddings=tied)
    assert count_parameters(config) == sum(
        weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters()
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops(checkpointing):
    """Two a weight and token forward, four backward, two more where activations are computed again; attention by its own sizes."""
    config, prompt, response = setting("llama-long")
    tokens, rows, hidden = N * (prompt + response - 1), N * response, config.hidden_size
    weights = AutoModelForCausalLM.from_config(config).get_decoder().layers.parameters()
    layers = sum(weight.numel() for weight in weights if weight.ndim == 2)
    attention = (
        2
        * 2
        * N
        * config.num_attention_heads
        * (prompt + response - 1) ** 2
        * config.head_dim
        * config.num_hidden_layers
    )
    head = 2 * rows * config.vocab_size * hidden
    products, scores, again = 2 * tokens * layers, attention, int(checkpointing)
    # the backward of fused attention computes the scores again: five products in place of two
    expected = (
        products * (3 + again) + scores * (1 + 2.5 + again) + 3 * head
    )  # whose rows all keep their scores
    unneeded = (
        2 * tokens * config.intermediate_size * hidden * config.num_hidden_layers
    )  # a layer's output is not computed again
    expected -= again * unneeded
    found = footprint.training_step(
        config, 1, GroupShape(prompt, response, N), TrainingOptions(checkpointing=checkpointing)
    ).flops
    small = 0.01 * expected  # rotary angles
    assert abs(found - expected) < small
    scored = footprint.scoring_batch(
        config, 1, GroupShape(prompt, response, N), torch.float32, 8192
    ).flops
    assert abs(scored - (products + scores + head)) < small


def test_flops_of_shared_attention():
    """Of a shared row only those pairs count that see each other, whatever stands in for FlexAttention."""
    config, prompt, response = setting("llama-long")
    shared = footprint.scoring_batch(
        config,
        1,
        GroupShape(prompt, response, N),
        torch.float32,
        8192,
        Reading(shared=True, gpu=True),
    ).flops
    tokens, own = (
        896,
        response - 1,
    )  # 48 + 4 * 207 in blocks of 128; what fills the last is a sequence by itself
    weights = AutoModelForCausalLM.from_config(config).get_decoder().layers.parameters()
    layers = sum(weight.numel() for weight in weights if weight.ndim == 2)
    filling = tokens - prompt - N * own
    pairs = prompt**2 + N * own * (prompt + own) + filling**2
    attention = (
        2 * 2 * config.num_attention_heads * pairs * config.head_dim * config.num_hidden_layers
    )
    expected = (
        2 * tokens * layers + attention + 2 * N * response * config.vocab_size * config.hidden_size
    )
    assert abs(shared - expected) < 0.01 * expected


@pytest.mark.parametrize("name", ["llama-long", "gemma2-long"])
def test_slices_that_the_trainer_takes_by_itself_fit(name):
    """The trainer's own count of the tokens that a GPU holds, against the planner's peak of as many."""
    config, *_ = setting(name, num_hidden_layers=4, hidden_size=256, intermediate_size=1024)
    memory = 2**30
    with footprint.fake():
        tokens = tokens_that_fit(
            footprint.fake_model(config, torch.float32), memory, width=2, checkpointing=True
        )
    how = TrainingOptions(bf16=True, checkpointing=True, accumulating=True)
    found = footprint.training_step(
        config, 1, GroupShape(512, (tokens - 512) // 8, 8), how, Reading(shared=True, gpu=True)
    )
    assert found.peak < memory
