"""The learning rate of an adapter: ten times that of full training, unless one is given."""

from __future__ import annotations

import json

import pytest
from students import RENAMED, make_args, make_model, make_rows
from worlds import changed_config

from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.findings import adapter
from pad_fast.pipeline.run import RunContext
from pad_fast.pipeline.settings import Settings
from pad_fast.pipeline.train.adapter import tell_of_rate
from pad_fast.training import adapter_rate
from pad_fast.training.config import PADConfig
from pad_fast.training.trainer import PADTrainer

COMPARED = json.dumps({"RFT": {"loss": "rft", "train_on": "best"}, "DPO": {"learning_rate": 2e-7}})
LORA = ("--use_peft", "true")


@pytest.fixture
def settings(world, tmp_path):
    """The settings of a run, with flags and without a learning rate of the file."""
    path = changed_config(world, tmp_path, learning_rate=None)
    return lambda *flags: parse_settings("run", [str(path), *flags])


def rate(found: Settings) -> float:
    return RunContext(found).training.learning_rate


def test_an_adapter_gets_ten_times_the_rate(settings, tmp_path):
    assert PADConfig(str(tmp_path), use_cpu=True).learning_rate == 8e-7
    assert rate(settings()) == 8e-7
    assert rate(settings(*LORA)) == pytest.approx(10 * 8e-7)
    assert settings(*LORA).resolved(RunContext(settings(*LORA)).training)["learning_rate"] == 8e-6
    compared = RunContext(settings(*LORA, "--compare", COMPARED)).learning_rates
    assert compared == {"the run": 8e-6, "RFT": 8e-6, "DPO": 2e-7}


@pytest.mark.parametrize("given", ["8e-7", "3e-4"])
def test_a_rate_that_is_given_is_kept(settings, given):
    """Also the one that full training has by default."""
    assert rate(settings(*LORA, "--learning_rate", given)) == float(given)


def test_the_log_says_a_rate_that_nobody_gave(settings, capsys):
    tell_of_rate(settings())
    tell_of_rate(settings(*LORA, "--learning_rate", "8e-7"))
    assert capsys.readouterr().out == ""
    tell_of_rate(settings(*LORA))
    assert "learning_rate: 8e-06, ten times that of full training" in capsys.readouterr().out


def test_a_rate_of_full_training_is_a_finding():
    found = adapter.rate({"the run": 8e-6, "DPO": 8e-7})
    assert (found.verdict, found.numbers) == ("look", {"rates": [8e-6, 8e-7]})
    assert "DPO: 8e-07" in found.found
    assert "the run" not in found.found
    assert "8e-6" in found.advice
    assert adapter.rate({"the run": 5e-6}).verdict == "ok"


@RENAMED
def test_the_trainer_warns_of_it_once(tmp_path, caplog):
    peft = pytest.importorskip("peft")
    adapter_rate._warn.cache_clear()
    lora = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    for given in (8e-7, 8e-7, 1e-5):
        args = make_args(tmp_path, learning_rate=given)
        PADTrainer(make_model(), args, make_rows(2), peft_config=lora)
    said = [line for line in caplog.messages if "an adapter hardly moves" in line]
    assert len(said) == 1
    PADTrainer(make_model(), make_args(tmp_path, learning_rate=9e-7), make_rows(2))
    assert "9e-07" not in caplog.text
