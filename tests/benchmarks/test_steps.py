"""Whole steps of whole models: every way to do them gives the same rewards."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from measured import CPU, ROOFS

from benchmarks import steps, tables
from benchmarks.contestants import NAIVE, OURS
from benchmarks.step_cases import StepCase, StepInputs, make_model
from benchmarks.step_profile import (
    ATTENTION,
    HEAD,
    LOSS,
    MLP,
    OPTIMIZER,
    OTHER,
    profiled,
    profiled_parts,
    sums_by_part,
)
from benchmarks.suites import SUITES


@pytest.mark.parametrize("case", SUITES["steps-smoke"].cases, ids=lambda case: case.label)
def test_every_way_of_a_whole_step_is_right_or_says_why_not(case):
    records = steps.run_step_case(replace(case, rounds=1), steps.STEP_CONTESTANTS, CPU, ROOFS)
    names = [contestant.name for contestant in steps.STEP_CONTESTANTS]
    if case.brief:
        names.remove(steps.OURS_UNSHARED)
    assert [record["contestant"] for record in records] == names
    for record in records:
        assert json.loads(json.dumps(record)) == record
        if record["status"] == "ok":
            assert record["error"]["results"] < 1e-5
            assert record["peak_bytes"] > 0
            assert record["tokens_per_second"] > 0
        else:
            assert (record["status"], bool(record["reason"])) == ("absent", True)
    ran = {record["contestant"] for record in records if record["status"] == "ok"}
    assert ran >= {NAIVE, OURS}
    text = tables.LAYOUTS["both"]({case.label: records})
    assert "| **pad_fast** |" in text
    assert case.label in tables.summary({case.label: records})
    profile = next(record for record in records if record["contestant"] == OURS).get("profile")
    if case.trains and not case.brief:
        assert sum(profile.values()) == pytest.approx(1.0)
        assert min(profile[part] for part in (HEAD, ATTENTION, MLP, LOSS, OPTIMIZER)) > 0
        assert "of the step with loss and AdamW: " in text
    else:
        assert profile is None


def test_repeats_are_read_once_by_ours_and_each_by_others():
    (case,) = (case for case in SUITES["steps-smoke"].cases if case.repeats == 0.25)
    inputs = StepInputs(case, CPU)
    responses = inputs.group.responses
    assert (case.distinct, len(responses), len({tuple(ids) for ids in responses})) == (6, 8, 6)
    assert "25% repeats" in case.label
    read = []
    inputs.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: read.append(args[0].numel())
    )
    built = {one.name: one.build(inputs) for one in steps.STEP_CONTESTANTS[::4]}
    read.clear()
    rewards = {name: call() for name, call in built.items()}
    assert read == [8 * (12 + 5), 12 + 6 * 4]
    torch.testing.assert_close(rewards[OURS], rewards[NAIVE], rtol=0, atol=1e-5)


def test_the_parts_of_a_step_are_those_of_its_modules():
    """Products are counted: six layers have six times those of one, and the head has the same."""
    counts = []
    for layers in (1, 6):
        case = SUITES["steps-smoke"].cases[0]
        model = make_model(case, CPU)
        model.model.layers = torch.nn.ModuleList(
            copy.deepcopy(model.model.layers[0]) for _ in range(layers)
        )
        model.config.num_hidden_layers = layers  # the forward takes so many
        inputs = StepInputs(case, CPU, model)
        events = profiled(inputs, steps.STEP_CONTESTANTS[0].build(inputs))
        counts.append(sums_by_part(events, lambda event: event.name == "aten::mm"))
    one, six = counts
    assert (one[MLP], one[ATTENTION]) == (9, 12)  # 3 and 4 layers, each forward and for 2 gradients
    assert (six[MLP], six[ATTENTION]) == (54, 72)
    assert six[HEAD] == one[HEAD] > 0
    assert {one[part] for part in (LOSS, OPTIMIZER, OTHER)} == {0}


def test_the_shares_of_a_step_are_of_its_time():
    inputs = StepInputs(SUITES["steps-smoke"].cases[0], CPU)
    shares = profiled_parts(inputs, steps.STEP_CONTESTANTS[0].build(inputs))
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())


def test_the_longest_response_is_found():
    asked = []

    def fits(length: int) -> bool:
        asked.append(length)
        return length <= 5000

    assert 4750 <= steps.search(fits, 256, 1 << 18) <= 5000
    assert len(asked) < 15
    assert steps.search(lambda length: False, 256, 1 << 18) == 0
    assert steps.search(lambda length: True, 256, 1024) == 1024
    case = StepCase("longest response", "tiny", 3, 12, 4, most=8)
    records = steps.longest_response(case, CPU)
    found = [(record["contestant"], record["tokens"]) for record in records]
    assert found == [(NAIVE, 8), (OURS, 8)]
    assert "longest response: 8 tokens" in tables.full({case.label: records})
