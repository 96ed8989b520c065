"""A student that Trainer leaves on the CPU is tried and scored on the training's device."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from students import RENAMED, make_args, make_model, make_rows

from pad_fast.device import planning_for
from pad_fast.models import layout_trial
from pad_fast.training import anchor, batch_layout
from pad_fast.training.placement import placed, weight_bytes
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED
GPU = torch.device("cuda")


@pytest.fixture
def student():
    """A model that notes where it is moved, and stays."""
    model = make_model()
    model.moves = []
    model.to = lambda device: model.moves.append(str(device))
    return model


def test_a_model_that_fits_is_moved_for_the_block(student):
    with planning_for(int(weight_bytes(student) / 0.8) + 1), placed(student, GPU) as there:
        assert (there, student.moves) == (True, ["cuda"])
    assert student.moves == ["cuda", "cpu"]
    with pytest.raises(ZeroDivisionError), planning_for(2**40), placed(student, GPU):
        raise ZeroDivisionError
    assert student.moves[2:] == ["cuda", "cpu"]


def test_a_model_that_does_not_fit_stays(student):
    with planning_for(int(weight_bytes(student) / 0.8) - 4), placed(student, GPU) as there:
        assert not there
    assert student.moves == []


@pytest.mark.parametrize("where", ["spread", "split", "meta", "a CPU's training"])
def test_what_is_not_moved(student, where):
    first = next(student.parameters())
    if where == "spread":
        student.hf_device_map = {"": "cpu"}
    elif where == "split":
        first.ds_id = 0
    elif where == "meta":
        student.lm_head.weight = torch.nn.Parameter(torch.empty(2, 2, device="meta"))
    device = torch.device("cpu") if where == "a CPU's training" else GPU
    with planning_for(2**40), placed(student, device) as there:
        assert there
    assert student.moves == []


def nowhere(model, device):
    return nothing()


@contextmanager
def nothing():
    yield False


@pytest.mark.parametrize(("model_type", "layout"), [("llama", "shared"), ("mamba", "padded")])
def test_the_layout_of_one_that_does_not_fit_is_that_of_its_config(
    tmp_path, monkeypatch, caplog, model_type, layout
):
    monkeypatch.setattr(batch_layout, "placed", nowhere)
    monkeypatch.setattr(layout_trial, "_tried_problem", None)  # which cannot be called
    model = make_model()
    model.config.model_type = model_type
    with caplog.at_level(logging.WARNING, "pad_fast"):
        trainer = PADTrainer(model, make_args(tmp_path), make_rows(4))
    assert trainer.data_collator.slicing.layout == layout
    assert caplog.text.count("does not fit on cpu as a whole, so that its layout is chosen") == 1


def test_the_anchor_is_scored_where_the_training_is(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(anchor, "placed", nowhere)
    args = make_args(tmp_path, loss="dpo", anchor="start")
    with caplog.at_level(logging.WARNING, "pad_fast"):
        PADTrainer(make_model(), args, make_rows(4))
    assert "its rewards of 4 rows for the anchor are computed on the CPU" in caplog.text


def test_only_ranks_that_have_the_weights_score():
    """FSDP with cpu_ram_efficient_loading may leave the other ranks' weights empty."""
    whole, empty, missing = make_model(), make_model(), make_model()
    for weight in empty.parameters():
        weight.data.zero_()
    missing.lm_head.weight = torch.nn.Parameter(torch.empty(2, 2, device="meta"))
    digests = [anchor._digest(model) for model in (whole, empty, make_model(), missing)]
    assert digests[3] is None
    shares = [list(anchor._share(5, rank, digests)) for rank in range(4)]
    assert shares == [[0, 2, 4], [], [1, 3], []]


def test_split_weights_cannot_be_scored(tmp_path):
    model = make_model()
    next(model.parameters()).ds_id = 0
    rows = Dataset.from_dict({"teacher_rewards": [[0.0]], "anchor_rewards": [None]})
    with pytest.raises(ValueError, match=r"anchor=start needs the whole model .* anchor_rewards"):
        anchor.with_anchor_rewards(rows, model, make_args(tmp_path), SimpleNamespace())
