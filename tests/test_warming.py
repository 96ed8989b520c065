"""Compiling in advance: exactly the forms of kernels that later calls ask for, and no failure."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pad_fast
from pad_fast import device, warming
from pad_fast.models.output_head import output_head
from pad_fast.pipeline.train import compile_ahead as ahead
from pad_fast.warming import LossSizes, WarmUp, loss_calls
from tests.students import make_args, make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def asked() -> dict[str, tuple[set[str], set[str]]]:
    """What warming up asks for, and what the calls after it do, by the job."""
    script = Path(__file__).with_name("asked_kernels.py")
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {job: (set(first), set(then)) for job, (first, then) in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("job", ["logits", "odd", "linear", "frozen"])
def test_later_calls_ask_for_exactly_what_was_compiled(asked, job):
    first, then = asked[job]
    assert len(first) >= 4
    assert first == then


@pytest.mark.slow
def test_a_training_step_finds_all_of_its_kernels(asked):
    """More is compiled: what a head with little memory takes where nothing is differentiated."""
    first, then = asked["training"]
    assert then <= first
    assert {name.split()[0] for name in first - then} == {
        "linear_logprob_fwd",
        "linear_logprob_join",
        "logprob_bwd",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", ["another dtype", "another number of responses", "a mask", "another vocabulary"]
)
def test_other_arguments_compile_other_forms(asked, job):
    """The comparison can fail: this is what a wrong argument of ``warm_up`` would leave out."""
    first, then = asked[job]
    assert then - first


@pytest.mark.parametrize(
    "loss",
    [
        pad_fast.PADLoss("simpo", impl="torch"),
        pad_fast.LinearPADLoss("ppd", reduction="none", impl="torch"),
        pad_fast.PADLoss(
            "plackett_luce_dpo", likelihood_weight=0.1, likelihood_on="teacher", impl="torch"
        ),
    ],
    ids=["logits", "linear", "more columns"],
)
def test_the_calls_run_and_draw_no_random_numbers(loss):
    before = torch.get_rng_state()
    for call in loss_calls(loss, LossSizes(4, 33, torch.float32, masked=True), CPU):
        call()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("anchor", ["none", "start"])
def test_the_calls_of_a_training_run(tmp_path, anchor):
    args = make_args(
        tmp_path, loss="vpd" if anchor == "none" else "dpo", anchor=anchor, impl="torch"
    )
    head = output_head(make_model())
    for frozen in (False, True):
        for call in ahead.training_calls(head, args, 3, frozen=frozen, device=CPU):
            call()


def test_without_a_gpu_there_is_nothing_to_do(caplog, monkeypatch):
    monkeypatch.setattr(warming, "loss_calls", None)  # not even looked at
    with caplog.at_level(logging.INFO, "pad_fast"):
        ready = pad_fast.warm_up(pad_fast.PADLoss(), responses=8, vocabulary=9, device="cpu")
    assert ready.state == "there are no kernels to compile on cpu"
    assert ready.wait(0)
    assert caplog.messages == [ready.state]


@pytest.mark.parametrize(("name", "value"), [("responses", 0), ("vocabulary", -1)])
def test_wrong_sizes(name, value):
    sizes = {"responses": 2, "vocabulary": 9} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        pad_fast.warm_up(pad_fast.PADLoss(), **sizes)


def test_a_thread_compiles_beside_other_work():
    begin, threads = threading.Event(), []

    def call():
        assert begin.wait(10)
        threads.append(threading.current_thread())

    ready = WarmUp([call], CPU, background=True)
    assert ready.state == "compiling"
    assert not ready.wait(0)
    begin.set()
    assert ready.wait(10)
    assert ready.state == "compiled"
    assert threads != [threading.current_thread()]
    assert threads[0].daemon  # so that it keeps no process alive


class Gpus:
    """Three GPUs, of which each thread has a current one: at first GPU 0."""

    def __init__(self) -> None:
        self._own = threading.local()

    def current_device(self) -> int:
        return getattr(self._own, "index", 0)

    @contextlib.contextmanager
    def device(self, device):
        before, self._own.index = self.current_device(), device.index
        yield
        self._own.index = before


@pytest.fixture
def gpus(monkeypatch) -> Gpus:
    found = Gpus()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("current_device", "device"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found


@pytest.mark.parametrize("place", [None, "cuda", "cuda:1"])
def test_a_thread_compiles_on_the_gpu_of_the_one_that_asked(gpus, monkeypatch, place):
    used = []
    call = lambda: used.append(gpus.current_device())  # noqa: E731
    monkeypatch.setattr(warming, "loss_calls", lambda *args: [call])
    with gpus.device(torch.device("cuda", 2)):
        ready = pad_fast.warm_up(
            pad_fast.PADLoss(impl="triton"), responses=2, vocabulary=9, device=place
        )
        assert ready.wait(10)
    assert ready.state == "compiled"
    assert used == [1 if place == "cuda:1" else 2]


def test_a_run_compiles_on_its_ranks_gpu(gpus, tmp_path, monkeypatch):
    used = []
    call = lambda: used.append(gpus.current_device())  # noqa: E731
    monkeypatch.setattr(ahead, "training_calls", lambda *args, **options: [call])
    run = SimpleNamespace(
        training=make_args(tmp_path, impl="triton"),
        config=SimpleNamespace(use_peft=False, responses_per_prompt=4),
        student=lambda round: SimpleNamespace(config=make_model().config),
    )
    with gpus.device(torch.device("cuda", 2)):
        assert ahead.compile_ahead(run).wait(10)
    assert used == [2]


@pytest.mark.parametrize("background", [True, False])
def test_a_failure_is_said_once_and_raised_never(caplog, monkeypatch, background):
    monkeypatch.setattr(warming, "_said", set())
    done = []

    def fail():
        raise RuntimeError("PTX was refused")

    for _ in range(2):
        ready = WarmUp([fail, lambda: done.append(1)], CPU, background)
        assert ready.wait(10)
        assert ready.state == "failed: RuntimeError: PTX was refused"
    assert not done
    assert len(caplog.messages) == 1
    assert "could not be compiled in advance (RuntimeError: PTX was refused)" in caplog.text


@pytest.mark.parametrize(("impl", "gpu"), [("auto", True), ("auto", False), ("torch", True)])
def test_a_run_compiles_where_there_is_a_gpu(tmp_path, monkeypatch, impl, gpu):
    """The student's head is read without weights, in the run's own thread."""
    started = []
    monkeypatch.setattr(device, "is_gpu", lambda device: gpu)
    monkeypatch.setattr(
        ahead, "WarmUp", lambda *args, background: started.append((*args, background))
    )
    config = make_model().config
    run = SimpleNamespace(
        training=make_args(tmp_path, impl=impl),
        config=SimpleNamespace(use_peft=False, responses_per_prompt=4),
        student=lambda round: SimpleNamespace(config=config),
    )
    ahead.compile_ahead(run)
    ((calls, _, background),) = started
    assert background == bool(calls) == (gpu and impl == "auto")


def test_a_student_without_a_linear_head_stops_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda device: True)
    wrong = SimpleNamespace(config=SimpleNamespace())
    run = SimpleNamespace(training=make_args(tmp_path), student=lambda round: wrong)
    assert ahead.compile_ahead(run).wait(0)


def test_the_environment_may_ask_for_pytorch(monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda device: True)
    assert warming.compiles("auto", CPU)
    monkeypatch.setenv("PAD_FAST_IMPL", "torch")
    assert not warming.compiles("auto", CPU)
    assert warming.compiles("triton", CPU)
