"""Measuring: errors, memory and floors are right, and contestants do not disturb each other."""

from dataclasses import replace

import pytest
import torch
from measured import CPU, ROOFS, SMOKE, contestant, named

from benchmarks import memory, tables
from benchmarks.cases import IGNORE_INDEX, Case, Inputs, make_inputs
from benchmarks.contestants import NAIVE
from benchmarks.float64_truth import truth_of
from benchmarks.measure import floor_seconds, run_case
from benchmarks.suites import CONTESTANTS


def test_wrong_numbers_show_in_the_error():
    def off_by_a_little(case: Case, inputs: Inputs):
        labels = inputs.valid_labels[:, None]
        return lambda: inputs.logits.log_softmax(-1).gather(-1, labels)[:, 0] * 1.001

    (record,) = run_case(SMOKE[0], [contestant(off_by_a_little)], CPU, ROOFS)
    assert record["error"]["results"] > 1e-4
    assert record["error"]["logits"] == pytest.approx(1e-3, rel=0.01)


def test_inputs_that_a_contestant_overwrites_are_restored_for_the_others():
    def vandal(case: Case, inputs: Inputs):
        def call():
            labels = inputs.valid_labels[:, None]
            result = inputs.logits.log_softmax(-1).gather(-1, labels)[:, 0]
            inputs.logits.detach().zero_()
            return result

        return call

    crowd = [contestant(vandal, overwrites_inputs=True), *named(CONTESTANTS, NAIVE)]
    for record in run_case(replace(SMOKE[0], backward=False), crowd, CPU, ROOFS):
        assert record["error"]["results"] < 1e-5


def test_a_scalar_loss_is_compared_with_the_mean_and_marked():
    def mean(case: Case, inputs: Inputs):
        return lambda: torch.nn.functional.cross_entropy(
            inputs.logits, inputs.labels, ignore_index=IGNORE_INDEX
        )

    (record,) = run_case(SMOKE[0], [contestant(mean, sign=-1, scalar=True)], CPU, ROOFS)
    assert not record["same_job"]
    assert "another job" in tables.line(record)
    assert record["error"]["loss"] < 1e-5
    assert record["error"]["logits"] < 1e-5


def test_inputs_are_random_where_they_count_and_the_same_each_time():
    case = Case("linear_token_logprobs", (256, 16, 100), live_share=0.5)
    first, second = make_inputs(case, CPU), make_inputs(case, CPU)
    assert torch.equal(first.hidden, second.hidden)
    live = first.labels != IGNORE_INDEX
    assert live.sum() == 128
    assert first.upstream[live].std() > 0.5
    assert first.upstream[~live].abs().max() == 0
    assert truth_of(case, first).results[live].mean() > -8  # labels stand out


def test_truth_is_autograd_in_float64():
    case = Case("token_logprobs", (20, 50), live_share=0.5, softcap=4.0)
    inputs = make_inputs(case, CPU)
    logits = inputs.logits.detach().double().requires_grad_()
    logps = ((logits / 4).tanh() * 4).log_softmax(-1).gather(-1, inputs.valid_labels[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(logps, logits, inputs.upstream.double())
    truth = truth_of(case, inputs)
    assert truth.result_error(logps) < 1e-12
    assert truth.gradient_error("logits", gradient) < 1e-12


def test_memory_counts_temporaries_and_omits_earlier_allocations():
    there = torch.ones(1 << 20)

    def step():
        twice = there * 2
        return ((twice + 1).sum(),)

    peak, outputs = memory.allocated_peak(step, CPU)
    assert 8 << 20 <= peak < (8 << 20) + 4096
    assert outputs[0].item() == 3 * (1 << 20)
    big = torch.ones(1 << 24)
    resident = memory.resident_peak(lambda: ((big * 2).sum(),))
    assert resident is None or 60 << 20 < resident < 80 << 20


def test_floors_count_bytes_that_must_be_moved_and_operations():
    roofs = {"copy": 1.0, "float32": 1.0, "bfloat16": 2.0}
    case = Case("token_logprobs", (10, 100), dtype="bfloat16", live_share=0.5)
    assert floor_seconds(replace(case, backward=False), roofs) == 1000  # half the rows read
    assert floor_seconds(case, roofs) == 4000  # half the rows read twice, all gradients written
    linear = Case("linear_token_logprobs", (10, 7, 100), dtype="bfloat16")
    assert floor_seconds(linear, roofs) == 3 * 2 * 7000 / 2
    assert floor_seconds(replace(linear, frozen=True), roofs) == 2 * 2 * 7000 / 2
    assert floor_seconds(Case("kl", (2, 3)), roofs) is None
