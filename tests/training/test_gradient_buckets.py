"""Under DDP gradients lie in its buckets alone, and have the bits that they have in DDP's way."""

from pathlib import Path

import launched
import pytest
import torch
from students import RENAMED, SomeDead, make_args, make_model, make_rows, parameters
from transformers import Trainer, TrainerCallback

from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED

# Micro-batches and slices; DDP that looks for unused weights adds up outside of its buckets.
CASES = {
    "one": {},
    "accumulated": {"gradient_accumulation_steps": 3},
    "sliced": {"max_tokens_per_step": 24},
    "both": {"gradient_accumulation_steps": 2, "max_tokens_per_step": 24},
    "searched": {"gradient_accumulation_steps": 2, "ddp_find_unused_parameters": True},
}


class WithTwoSets(PADTrainer):
    """PADTrainer with the DDP that Trainer makes."""

    create_accelerator_and_postprocess = Trainer.create_accelerator_and_postprocess


class Watch(TrainerCallback):
    """Keeps the averaged gradients, and where gradients lie after each micro-batch."""

    def __init__(self):
        self.gradients, self.places = [], []

    def look(self, model):
        weights = list(model.parameters())
        places = {weight.grad.untyped_storage().data_ptr() for weight in weights}
        self.places.append((len(places), len(weights)))

    def on_substep_end(self, *args, model, **kwargs):
        self.look(model)

    def on_pre_optimizer_step(self, *args, model, **kwargs):
        self.look(model)
        self.gradients.append([weight.grad.clone() for weight in model.parameters()])


def trained(folder, kind, name):
    options = {"per_device_train_batch_size": 1, "max_steps": 3, "ddp_backend": "gloo"}
    options |= {"ddp_find_unused_parameters": False, **CASES[name]}
    watch, rows = Watch(), make_rows(24, seed=3)
    collator = SomeDead()
    args = make_args(folder, **options)
    trainer = kind(make_model(), args, rows, data_collator=collator, callbacks=[watch])
    trainer.train()
    return {"weights": parameters(trainer.model), **vars(watch)}


def both_ways(folder):
    """Run by each of two ranks: all cases in both ways."""
    torch.set_num_threads(1)
    found = {
        (kind.__name__, name): trained(folder, kind, name)
        for name in CASES
        for kind in (PADTrainer, WithTwoSets)
    }
    if torch.distributed.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.barrier()


@pytest.mark.slow  # two interpreters that import everything
def test_gradients_are_in_the_buckets_and_have_the_same_bits(tmp_path):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = tmp_path / "ranks.py"
    script.write_text(
        f"import os, sys\nfrom pathlib import Path\nsys.path[:0] = {folders!r}\n"
        "import test_gradient_buckets\n"
        f"test_gradient_buckets.both_ways(Path({str(tmp_path)!r}))\n"
        "os._exit(0)  # or the interpreter sometimes finds a thread of gloo alive, and aborts\n"
    )
    launched.script(2, script)
    found = torch.load(tmp_path / "found.pt")
    for name in CASES:
        ours, theirs = found["PADTrainer", name], found["WithTwoSets", name]
        for step, gradients in enumerate(theirs["gradients"]):
            for place, wanted in enumerate(gradients):
                assert torch.equal(ours["gradients"][step][place], wanted), (name, step, place)
        for weight, wanted in theirs["weights"].items():
            assert torch.equal(ours["weights"][weight], wanted), (name, weight)
        own_memory = [places == weights for places, weights in theirs["places"]]
        assert all(own_memory), name
        if name != "searched":
            assert all(places < weights for places, weights in ours["places"]), name
    # Gradients that were found in buckets after the averaging alone would not do.
    assert len(found["PADTrainer", "accumulated"]["places"]) == 9
