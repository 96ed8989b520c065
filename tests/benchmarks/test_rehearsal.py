"""The rehearsal of a GPU's suites: the same code in small, with a made-up card."""

from dataclasses import replace

import pytest
import torch
from measured import contestant, named

from benchmarks import measure, peers, rehearsal
from benchmarks.contestants import NAIVE, OURS, Unsupported
from benchmarks.peers import PEERS
from benchmarks.rehearsal import complaint, rehearse, small
from benchmarks.step_cases import StepCase
from benchmarks.suites import SUITES

GPU = SUITES["gpu"]


KL = "kl, P=512 N=8, float32, forward+backward"


def only(label: str, contestants, suite=GPU):
    """The suite with the one case of this label, and some contestants."""
    (case,) = (case for case in suite.cases if case.label == label)
    return replace(suite, make_cases=lambda: [case], contestants=contestants)


# Triton's interpreter computes what is dropped, and NumPy warns of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value) encountered:RuntimeWarning", "default::DeprecationWarning"
)


@pytest.mark.parametrize("suite", [s for s in SUITES.values() if s.on_gpu], ids=lambda s: s.name)
def test_every_case_has_a_small_form_with_its_options(suite):
    for case in suite.cases:
        tiny = small(case)
        if isinstance(case, StepCase):
            assert tiny.checkpointing == case.checkpointing
            assert tiny.model.startswith("tiny")
            continue
        kept = ("job", "backward", "dtype", "live_share", "softcap", "frozen", "curve")
        assert all(getattr(tiny, name) == getattr(case, name) for name in kept)
        assert bool(tiny.memory_budget) == bool(case.memory_budget)
        assert tiny["P"] * tiny["N"] <= 8 if "P" in tiny.sizes else tiny.num_logits <= 8000
    assert suite.minutes <= 8  # a call of ten minutes, with the start and the first compilations


def test_cases_stand_in_the_order_of_worth():
    targets = [case.target_ms is not None for case in GPU.cases]
    assert targets == sorted(targets, reverse=True)
    assert sum(targets) == 10
    labels = [case.label for case in GPU.cases[:14]]
    assert any("V=50,257" in label for label in labels)
    assert any(label.startswith("PADLoss") for label in labels)
    curves = [i for i, case in enumerate(GPU.cases) if case.curve]
    assert min(curves) > max(i for i, c in enumerate(GPU.cases) if c.live_share < 1)


@pytest.mark.parametrize(
    ("case", "clock"),
    [
        ("linear_token_logprobs, M=300 D=4,096 V=128,256, bfloat16, forward+backward", "events"),
        (KL, "graph"),
        ("PADLoss, P=4 N=4 T=64 V=32,000, bfloat16, forward+backward", None),
    ],
)
def test_a_case_runs_as_on_a_card(case, clock):
    records = list(rehearse(only(case, named(GPU.contestants, OURS, NAIVE))))
    assert [record["contestant"] for record in records] == [NAIVE, OURS]
    for record in records:
        assert (record["status"], complaint(record)) == ("ok", None), record["reason"]
        assert record["clock"] == (f"cuda {clock}" if clock else measure.BY_HOST)
        assert record["case"] == case
    assert not torch.cuda.is_available() or torch.cuda.Event is not rehearsal._Event


def test_kernels_run_and_not_pytorch(monkeypatch):
    """Broken kernels are noticed: the rehearsal does not fall back."""
    from pad_fast.kernels.preference import launch

    def broken(*arguments, **options):
        raise RuntimeError("no kernel today")

    monkeypatch.setattr(launch, "forward", broken)
    (record,) = rehearse(only(KL, named(GPU.contestants, OURS)))
    assert "no kernel today" in complaint(record)


def test_peers_are_imported_and_built_but_not_called():
    def built(case, inputs):
        peers._refuse("torch", case, inputs, cpu=False)
        return lambda: pytest.fail("was called")

    def absent(case, inputs):
        import no_such_package  # noqa: F401

    def unsupported(case, inputs):
        raise Unsupported("no softcap")

    def broken(case, inputs):
        raise AttributeError("renamed")

    crowd = [
        replace(contestant(build), name=build.__name__, package="other")
        for build in (built, absent, unsupported, broken)
    ]
    found = list(rehearse(only(GPU.cases[0].label, crowd)))
    assert [r["status"] for r in found] == ["built", "absent", "unsupported", "failed"]
    assert [complaint(record) is None for record in found] == [True, True, True, False]
    assert "renamed" in complaint(found[3])
    assert peers.CPU_IS_REFUSED


def test_what_is_wrong_with_ours_is_said(capsys):
    record = {"contestant": OURS, "status": "ok", "reason": None, "dtype": "float32", "job": "kl"}
    assert complaint(record | {"error": {"results": 1e-6}}) is None
    assert "errors" in complaint(record | {"error": {"results": float("nan")}})
    assert complaint(record | {"job": "kl_sampled", "error": {"results": 0.1}}) is None
    assert "skipped: no room" in complaint(record | {"status": "skipped", "reason": "no room"})
    assert rehearsal.main(["gpu", "--case", "no such case"]) == 0
    with pytest.raises(SystemExit):
        rehearsal.main(["cpu"])
    assert "no suite of a GPU: cpu; there are gpu, gpu-steps" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu-steps", "gpu-longest"])
def test_whole_steps_run_as_on_a_card(name):
    first, second = SUITES[name].cases[:2]
    assert (first.model, second.model) == ("Llama-3.2-1B", "Gemma-2-2B")
    ours = [c for c in SUITES[name].contestants if c.package == "pad_fast"]
    for record in rehearse(only(second.label, ours, SUITES[name])):
        assert (record["status"], complaint(record)) == ("ok", None), record["reason"]


def test_every_peer_has_a_wheel_or_a_reason():
    text = (rehearsal.measure.machine.ROOT / "tools" / "gpu_wheels.sh").read_text()
    for peer in PEERS:
        assert f"{peer.package}==" in text or f"{peer.package} has no wheels" in text, peer.name
