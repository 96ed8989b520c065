"""The planner's peaks of scoring and sampling against measured ones."""

from __future__ import annotations

import pytest
import torch
from planning import CPU, SETTINGS, N, near, setting
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.memory import allocated_peak
from pad_fast.footprint import steps as footprint
from pad_fast.footprint.steps import GroupShape, Reading
from pad_fast.models.scoring import score_responses


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_peak_of_scoring(name, share):
    config, prompt, response = setting(name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    prompt, response = 4 * prompt, 4 * response  # large compared with what is not counted
    arguments = {
        "prompts": [[1] * prompt],
        "responses": [[[i + 1] * response for i in range(N)]],
        "share_prefix": share,
    }
    score_responses(model, **arguments)  # tries the head and the layout, once
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
    tokens = prompt + 23
    # one of Gemma-2's layers has a window of 32
    kept = min(tokens, 31) + tokens if config.model_type == "gemma2" else 2 * tokens
    assert last.start - first.start == pytest.approx(per_token * kept / 2, rel=0.01)
