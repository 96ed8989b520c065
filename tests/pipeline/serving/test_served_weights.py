"""Which student a server has, by its numbers and by its names, also after a short training."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worlds import run_config

from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.serving import run_engines, served_weights
from pad_fast.pipeline.serving.dialects import ServerError
from pad_fast.pipeline.serving.pool import Limits, Pool
from pad_fast.pipeline.serving.run_engines import RunEngines
from pad_fast.pipeline.serving.served_weights import FEW, MANY, Probe, Undecided, WeightsCheck
from pad_fast.pipeline.serving.server_engine import ServerEngine

ROUNDING = 0.03  # nats a token, as of a server in bfloat16


def moved(source: Path, folder: Path, by: float) -> Checkpoint:
    """A student after a training that changed every weight by about ``by``."""
    model = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn_like(weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return Checkpoint("student", str(folder))


def rows(count: int) -> list[dict]:
    draw = random.Random(3)
    return [
        {
            "prompt_ids": draw.choices(range(6, 60), k=5),
            "completion_ids": [draw.choices(range(6, 60), k=20)],
        }
        for _ in range(count)
    ]


@pytest.fixture
def students(world, tmp_path):
    """The base student and the one after a training, by how far it moved the weights."""

    def make(by: float) -> tuple[Checkpoint, Checkpoint]:
        old = Checkpoint("student", str(world / "student"))
        return old, moved(world / "student", tmp_path / "new", by)

    return make


@pytest.fixture
def server(stub_of):
    """Makes a server that rounds, with the weights of a student, and the engine that asks it."""

    def make(student: Checkpoint, rounding: float = ROUNDING, **changes) -> ServerEngine:
        stub = stub_of("student", **changes)
        stub.load(Path(student.path))
        exact, stub.salt = stub.model.logps, 0

        def logps(ids: list[int]) -> torch.Tensor:
            found = exact(ids)
            noise = torch.Generator().manual_seed(hash((*ids, stub.salt)) % 2**31)
            return found + rounding * torch.randn(found.shape, generator=noise).clamp(-3, 3)

        stub.model.logps = logps
        limits = Limits(concurrency=8, attempts=2, pause=0.02)
        engine = ServerEngine(student, "mean", Pool([stub.url], limits))
        engine.stub = stub
        return engine

    return make


def test_the_place_between_two_students_knows_its_error():
    """Over many servers of either student, the places scatter as far as their errors say."""
    draw = np.random.default_rng(0)
    other = [draw.normal(-2, 1, 30) for _ in range(40)]
    wanted = [logps + draw.standard_t(3, 30) * 0.01 for logps in other]
    for has, end in ((other, 0.0), (wanted, 1.0)):
        off = []
        for _ in range(200):
            found = [logps + draw.normal(0, 0.03, 30) for logps in has]
            at, error = served_weights.place(found, wanted, other)
            off.append((at - end) / error)
        assert abs(np.mean(off)) < 0.25
        assert 0.75 < np.std(off) < 1.15
    assert served_weights.place(other, other, other) == (1.0, 0.0)


def test_our_side_rounds_weights_and_not_arithmetic(world):
    """Rounded numbers of ours would put either student half-way between both."""
    probe, path = Probe.of(rows(3)), world / "student"
    found = probe.local(Checkpoint("student", str(path), dtype="bfloat16"))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).float()
    for prompt, ids, ours in zip(probe.prompts, probe.responses, found, strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        exact = [float(logps[len(prompt) - 1 + t, token]) for t, token in enumerate(ids)]
        assert ours == pytest.approx(exact, abs=1e-4)


def test_rounding_that_a_response_shares_counts_once_for_each_response():
    """Its tokens are not independent then."""
    draw = np.random.default_rng(0)
    other = [draw.normal(-2, 1, 30) for _ in range(40)]
    wanted = [logps + 0.01 for logps in other]
    off = []
    for _ in range(200):
        found = [logps + draw.normal(0, 0.03) for logps in other]
        at, error = served_weights.place(found, wanted, other)
        off.append(at / error)
    assert 0.8 < np.std(off) < 1.2


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_after_a_short_training_the_path_decides(students, server, kind):
    """The numbers of either student are as near to one as to the other."""
    old, new = students(1e-5)
    check = WeightsCheck(rows(MANY), new, [old])
    named = {"kind": kind, "served_as": "student"}
    check(server(new, **named, root=new.path))
    with pytest.raises(ServerError, match=f"it still serves {old.path}$"):
        check(server(old, **named, root=old.path))
    assert {count for _, count in check._known} == {FEW}, "more would tell no more than the path"
    for has in (old, new):
        engine = server(has, **named, root="/models/student")
        with pytest.raises(Undecided, match=r"serves /models/student, .*--served-model-name"):
            check(engine)
        engine = server(has, kind=kind, served_as=new.path, root="/models/student")
        check(engine)  # it is believed


def test_a_name_that_stays_is_no_proof_of_the_student_before(students, server):
    """`--student student` and `--served-model-name student` are usual."""
    old, new = students(1e-5)
    with pytest.raises(Undecided):
        WeightsCheck(rows(MANY), new, [old])(
            server(new, served_as=old.path, root="/models/student")
        )


def test_numbers_that_tell_come_before_names(students, server):
    """Weights may be loaded under an old path, and a server may be older than its files."""
    old, new = students(0.02)
    check = WeightsCheck(rows(FEW), new, [old])
    check(server(new, root=old.path))
    with pytest.raises(ServerError, match=f"it names {new.path}, and its log-probabilities are"):
        check(server(old, root=new.path))
    with pytest.raises(ServerError, match=f"it still serves the weights of {old.path}"):
        check(server(old, root="/models/student"))


def test_more_responses_are_read_where_few_do_not_tell(students, server, monkeypatch):
    old, new = students(4e-4)
    read = []
    local = Probe.local
    monkeypatch.setattr(
        Probe, "local", lambda probe, one: read.append(len(probe.prompts)) or local(probe, one)
    )
    check = WeightsCheck(rows(MANY), new, [old])
    check(server(new, root="/models/student"))
    assert read == [FEW, FEW, MANY, MANY]
    with pytest.raises(ServerError, match="it still serves the weights"):
        check(server(old, root="/models/student"))
    assert len(read) == 4, "what was computed is kept"


def test_a_student_that_lies_between_is_not_taken(students, server, world, tmp_path):
    """Such as one that was trained for half as long, which the run does not know."""
    old, new = students(0.02)
    half = moved(world / "student", tmp_path / "half", 0.01)
    with pytest.raises(Undecided, match=f"do not tell this student from {old.path}, since"):
        WeightsCheck(rows(FEW), new, [old])(server(half, 0.001, root="/models/student"))


def test_what_nothing_tells_is_not_waited_for_without_end(
    students, server, world, tmp_path, monkeypatch, capsys
):
    """Nobody may be there; and a server that is named goes on."""
    old, new = students(1e-5)
    engine = server(new, served_as="student", root="/models/student")
    [url], stub = engine.pool.urls, engine.stub
    config = run_config(world, student_server=[url], server_concurrency=4, server_patience=1.0)
    monkeypatch.setattr(run_engines, "POLL", 0.02)

    def try_out(engine, weights, load) -> None:
        stub.salt += 1  # it rounds otherwise each time
        weights(engine)

    monkeypatch.setattr(run_engines, "try_out", try_out)
    engines = RunEngines(
        config,
        SimpleNamespace(normalize="mean"),
        tmp_path,
        lambda *one: None,
        lambda: rows(MANY),
        lambda wanted: [old],
    )
    with (
        pytest.raises(ServerError, match=r"^student_server: .* What was finished is kept: do that"),
        engines.open(new),
    ):
        pass
    told = capsys.readouterr().out
    assert told.count("The run waits for servers") == 1
    assert f"--served-model-name {new.path}" in told
