"""Rows that fill the last batch of several ranks up do not count: any number of ranks is one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from students import (
    PLAIN,
    RENAMED,
    SomeDead,
    assert_same,
    make_args,
    make_model,
    make_rows,
    parameters,
    trained,
)

from pad_fast.training.metrics import NAMES
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED

SIZE = 2  # prompts a rank
CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "num_train_epochs": 1},
    "sliced": {"max_tokens_per_step": 24, "num_train_epochs": 1},
    "both": {
        "gradient_accumulation_steps": 3,
        "max_tokens_per_step": 24,
        "num_train_epochs": 1,
    },
}
ROWS = (7, 10, 15)
REFUSED = ({"even_batches": False}, {"dispatch_batches": True})


def run_case(folder, rows, name, size, **options):
    """Parameters, log and evaluation of a training on so many rows."""
    options = {**PLAIN, **CASES[name], "per_device_train_batch_size": size, **options}
    trainer = trained(folder, make_rows(rows, seed=3), collator=SomeDead(), **options)
    args = make_args(folder, per_device_eval_batch_size=SIZE)
    evaluated = PADTrainer(make_model(), args, None, make_rows(rows)).evaluate()
    return parameters(trainer.model), trainer.state.log_history, evaluated


def resumed(folder, **options):
    """Log and parameters of a training on 7 rows, and of one that goes on from its third step."""
    options |= {"save_strategy": "steps", "save_steps": 3, **PLAIN, "logging_steps": 2}
    found = []
    for start in (None, f"{folder}/checkpoint-3"):
        trainer = PADTrainer(make_model(), make_args(folder, **options), make_rows(7, seed=3))
        trainer.train(resume_from_checkpoint=start)
        found.append((parameters(trainer.model), trainer.state.log_history))
    return found


RANKS = """
import os, sys, torch
sys.path[:0] = {folders!r}
torch.set_num_threads(1)
from test_uneven_ranks import *
found = {{}}
for rows in ROWS:
    for name in CASES:
        found[rows, name] = run_case({out!r}, rows, name, SIZE, ddp_backend="gloo")
world = torch.distributed.get_world_size()
split = {{"split_batches": True}}
found["split"] = run_case({out!r}, 7, "plain", SIZE * world, accelerator_config=split)
found["resumed"] = resumed({out!r} + "/resumed", per_device_train_batch_size=1)
refusals = []
for config in REFUSED:
    try:
        PADTrainer(make_model(), make_args({out!r}, accelerator_config=config), make_rows(3))
    except ValueError as error:
        refusals.append(str(error))
found["refusals"] = refusals
if torch.distributed.get_rank() == 0:
    torch.save(found, {out!r} + "/found.pt")
torch.distributed.barrier()
os._exit(0)  # without it the interpreter sometimes finds a thread of gloo alive, and aborts
"""


@pytest.mark.slow  # two or three interpreters that import everything
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_any_number_of_rows_on_several_ranks(ranks, tmp_path):
    script = tmp_path / "ranks.py"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script.write_text(RANKS.format(folders=folders, out=str(tmp_path)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc_per_node={ranks}", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    even, dispatched = found.pop("refusals")
    assert "even_batches: true on several ranks" in even
    assert "must not have dispatch_batches: true" in dispatched
    whole, again = found.pop("resumed")
    # DDP cuts its buckets anew after the first step, which is another order of sums.
    assert_same(again[0], whole[0], rtol=1e-5, atol=1e-6)
    assert [line["step"] for line in whole[1]] == [line["step"] for line in again[1]]
    for ours, theirs in zip(whole[1], again[1], strict=True):
        for name in {"loss", "train_loss", "grad_norm", *NAMES} & set(ours):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5, abs=1e-6), name
    for rows in ROWS:
        for name in CASES:
            wanted = run_case(tmp_path, rows, name, SIZE * ranks)
            assert_one(found[rows, name], wanted, f"{rows} rows, {name}")
    assert_one(found["split"], run_case(tmp_path, 7, "plain", SIZE * ranks), "split")


def assert_one(found, wanted, case):
    for name, value in wanted[0].items():
        assert torch.allclose(found[0][name], value, rtol=1e-3, atol=2e-6), (case, name)
    for theirs, ours in zip(found[1][:-1], wanted[1][:-1], strict=True):
        for name in {"loss", "grad_norm", *NAMES} & set(ours):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-6), (case, name)
    for name in NAMES:
        name = f"eval_{name}"
        assert found[2][name] == pytest.approx(wanted[2][name], rel=1e-5, abs=1e-6), (case, name)
