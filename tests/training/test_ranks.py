"""Training on two ranks equals training on one."""

import copy
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pad_fast import attach_rewards_forward, encode_responses
from pad_fast.training.collator import PADCollator
from pad_fast.training.dataset_rows import RowReader
from pad_fast.training.metrics import NAMES
from pad_fast.training.prepared_rows import prepare_dataset
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


COMPOSED = {"loss": "dpo", "anchor": "start", "likelihood_weight": 2.0, "likelihood_on": "weighted"}
RANKS = """
import os, sys, torch
sys.path[:0] = {folders!r}
torch.set_num_threads(1)
from test_ranks import *
trainer = trained({out!r}, make_rows(12, seed=3), collator=SomeDead(), **{options!r})
composed = trained({out!r}, make_rows(11, seed=4), **COMPOSED, **{options!r})
args = make_args({out!r}, per_device_eval_batch_size=2)
metrics, received = evaluated(args)
streamed = trained({out!r}, stream(), max_steps=3, **{options!r})
check_sharded_gradients()
loop = own_loop(batch=2, accumulate=2)
if trainer.args.process_index == 0:
    found = (parameters(trainer.model), trainer.state.log_history, metrics)
    found += (parameters(composed.model), list(composed.train_dataset["anchor_rewards"]))
    found += (torch.tensor(received), parameters(streamed.model), loop)
    torch.save(found, {out!r} + "/found.pt")
torch.distributed.barrier()
os._exit(0)  # without it the interpreter sometimes finds a thread of gloo alive, and aborts
"""


def stream():
    return Dataset.from_list(make_rows(12, seed=5)).to_iterable_dataset()


def own_loop(batch, accumulate):
    """The losses and the student of the example, of 16 prompts in two steps."""
    example = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"
    return runpy.run_path(str(example))["main"](16, batch, accumulate)


def evaluated(args):
    """The metrics of 7 rows, and the student's rewards that compute_metrics received."""
    received = []

    def count(found):
        received.append(found.predictions)
        return {"rows": len(found.predictions)}

    trainer = PADTrainer(make_model(), args, None, make_rows(7), compute_metrics=count)
    return trainer.evaluate(), received[0]


def check_sharded_gradients():
    """Under FSDP2 the forward has all of the output head; gradients are the mean over the ranks."""
    model = make_model()
    attach_rewards_forward(model)
    whole = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    # A head that is sharded by itself is gathered for its own call only.
    for part in (*model.model.layers, model.lm_head, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    batch = PADCollator(max_tokens=24)(
        list(prepare_dataset(make_rows(4, seed=torch.distributed.get_rank()), RowReader()))
    )
    rank = torch.distributed.get_rank()
    ids = encode_responses([[1, 2 + rank]], [[[3, 4], [5]]])  # those of a loop of one's own
    for twin in (model, whole):
        twin(**ids, want_rewards=True).square().sum().backward()
    slices, most = batch["slices"], torch.tensor(len(batch["slices"]))
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    assert most > 1
    for index in range(int(most)):  # a rank with fewer slices reads one more for nothing
        part, counts = slices[min(index, len(slices) - 1)], float(index < len(slices))
        for twin in (model, whole):
            rewards = twin(**part, num_responses=batch["mask"].numel())
            (counts * rewards.square().sum()).backward()
    for (name, found), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.distributed.all_reduce(wanted.grad)
        mean = wanted.grad / torch.distributed.get_world_size()
        torch.testing.assert_close(
            found.grad.full_tensor(), mean, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow  # two interpreters that import everything
def test_two_ranks_are_one(tmp_path):
    # A batch has several slices, and more on one rank than on the other.
    options = {
        "per_device_train_batch_size": 3,
        "ddp_backend": "gloo",
        "max_tokens_per_step": 24,
        **PLAIN,
    }
    script = tmp_path / "ranks.py"
    script.write_text(
        RANKS.format(
            folders=[str(Path(__file__).parent), str(Path(__file__).parents[1])],
            out=str(tmp_path),
            options=options,
        )
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, history, metrics, composed, anchors, received, streamed, loop = torch.load(
        tmp_path / "found.pt"
    )
    trainer = trained(
        tmp_path, make_rows(12, seed=3), collator=SomeDead(), per_device_train_batch_size=6, **PLAIN
    )
    assert_same(found, parameters(trainer.model), rtol=1e-3, atol=2e-5)
    for ours, theirs in zip(trainer.state.log_history[:-1], history[:-1], strict=True):
        for name in {"loss", "grad_norm", *NAMES} & set(ours):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name
    # Each rank scores its share of the rows for the anchor, and all have all.
    options = {**COMPOSED, **PLAIN, "per_device_train_batch_size": 6}
    one = trained(tmp_path, make_rows(11, seed=4), **options)
    for ours, theirs in zip(one.train_dataset["anchor_rewards"], anchors, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    assert_same(composed, parameters(one.model), rtol=1e-3, atol=2e-5)
    alone, wanted = evaluated(make_args(tmp_path))
    assert metrics["eval_rows"] == 7
    torch.testing.assert_close(received, torch.tensor(wanted), equal_nan=True, rtol=1e-4, atol=1e-4)
    options = {**PLAIN, "max_steps": 3, "per_device_train_batch_size": 6}
    one = trained(tmp_path, stream(), **options)
    assert_same(streamed, parameters(one.model), rtol=1e-3, atol=2e-5)
    losses, student = own_loop(batch=8, accumulate=1)
    assert sum(loop[0]) / len(loop[0]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert_same(loop[1], student, rtol=0, atol=1e-6)
    # 7 rows on two ranks: the row that pads the last batch is not counted twice.
    for name in NAMES:
        assert metrics[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-5), name
