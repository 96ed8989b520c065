"""Training with shared prompts, in slices or compiled follows the same curve as without."""

import logging

import pytest
import torch
import transformers
from students import (
    PLAIN,
    RENAMED,
    VOCABULARY,
    SomeDead,
    assert_same,
    long_rope,
    make_args,
    make_model,
    make_rows,
    parameters,
    trained,
)

from pad_fast.linear_logprob import memory_budget as memory_budget_module
from pad_fast.training.batch_layout import head_budget
from pad_fast.training.collator import PADCollator, Slicing
from pad_fast.training.config import PADConfig
from pad_fast.training.metrics import NAMES
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


def test_twenty_steps_are_the_same_shared_or_not_whole_or_in_slices(tmp_path):
    rows, curves, read = make_rows(20, seed=5), {}, {}
    options = {
        **PLAIN,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 4,
        "activation_checkpointing": False,
    }
    for share, limit in ((True, None), (False, None), (True, 30), (False, 30)):
        model, tokens = make_model(), []
        trainer = PADTrainer(
            model,
            make_args(tmp_path, share_prefix=share, max_tokens_per_step=limit, **options),
            rows,
            rows,
        )
        assert trainer.data_collator.slicing.layout == ("shared" if share else "packed")
        model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, out, tokens=tokens: tokens.append(inputs[0].numel())
        )
        trainer.train()
        read[share, limit] = list(tokens)
        lines = [line for line in trainer.state.log_history if "loss" in line]
        evaluated = trainer.evaluate()
        curves[share, limit] = [
            [line[name] for name in ("loss", "grad_norm", *NAMES) if name in line] for line in lines
        ]
        curves[share, limit].append([evaluated[f"eval_{name}"] for name in NAMES])
        assert trainer.state.total_flos > 0
    assert len(curves[True, None]) == 21
    for curve in curves.values():
        for found, wanted in zip(curve, curves[False, None], strict=True):
            assert found == pytest.approx(wanted, rel=2e-4, abs=2e-5)
    assert curves[False, None][0][0] > 1.1 * curves[False, None][19][0]  # it learns
    assert len(read[True, None]) == 20
    assert sum(read[True, None]) < 0.7 * sum(read[False, None])
    assert max(read[True, 30]) <= 30
    assert len(read[True, 30]) > 2 * 20 * 2


@pytest.mark.parametrize("given", ["auto", 0, "0", 2**30])
def test_the_budget_reaches_the_output_head(given, tmp_path, monkeypatch):
    budgets = []

    def saved_rows(memory_budget, *sizes, own=memory_budget_module.saved_rows):
        budgets.append(memory_budget)
        return own(memory_budget, *sizes)

    monkeypatch.setattr(memory_budget_module, "saved_rows", saved_rows)
    (args,) = transformers.HfArgumentParser(PADConfig).parse_args_into_dataclasses(
        ["--memory_budget", str(given)]
    )
    assert head_budget(args) == head_budget(make_args(tmp_path, memory_budget=given))
    trained(tmp_path, make_rows(3), memory_budget=given, max_steps=1)
    assert budgets[-1] == ("auto" if given == "auto" else int(given))  # the trial's came before


@pytest.mark.parametrize(
    "options",
    [{"activation_checkpointing": True}, {"bf16": True}, {"gradient_accumulation_steps": 2}],
)
def test_slices_go_with_everything(options, tmp_path):
    rows, found = make_rows(12, seed=3), []
    for limit in (None, 30):
        size = {"per_device_train_batch_size": 3, "max_tokens_per_step": limit}
        trainer = trained(
            tmp_path,
            rows,
            collator=SomeDead(),
            **{**PLAIN, **size, "num_train_epochs": 1, **options},
        )
        found.append(
            (
                parameters(trainer.model),
                [line["loss"] for line in trainer.state.log_history if "loss" in line],
            )
        )
    tolerance = {"rtol": 0.1, "atol": 2e-2} if "bf16" in options else {"rtol": 1e-3, "atol": 2e-5}
    assert_same(found[1][0], found[0][0], **tolerance)
    assert found[1][1] == pytest.approx(found[0][1], rel=tolerance["rtol"])


# The compiler looks at the .grad of every tensor.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_student_shares_prompts(tmp_path):
    rows, losses = make_rows(6), []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        trainer = trained(
            tmp_path, rows, per_device_train_batch_size=3, share_prefix=True, **PLAIN, **options
        )
        assert trainer.data_collator.slicing.layout == "shared"
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_one_long_group_trains_where_one_response_fits(tmp_path):
    """No forward with a gradient holds more than a prompt and the responses that fit with it."""
    row = {
        "prompt_ids": [3] * 8,
        "completion_ids": [[i % VOCABULARY] * 19 + [i // VOCABULARY] for i in range(64)],
        "teacher_rewards": [i / 64 for i in range(64)],
    }
    model, sizes = make_model(), []
    options = {
        "max_tokens_per_step": 50,
        "loss": "vpd",
        "max_steps": 1,
        "warmup_steps": 0,
        "per_device_train_batch_size": 1,
    }
    trainer = PADTrainer(model, make_args(tmp_path, **options), [row, row])
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: (
            sizes.append(inputs[0].numel()) if torch.is_grad_enabled() else None
        )
    )
    before = parameters(model)
    trainer.train()
    assert len(sizes) == 32
    assert max(sizes) == 8 + 2 * 19
    assert any(not torch.equal(before[name], value) for name, value in parameters(model).items())


def _mamba():
    return transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4
        )
    )


def test_each_trainer_chooses_for_its_own_model(tmp_path):
    """Of one collator: the layout that a first model takes would end the training of a second."""
    collator, rows = PADCollator(max_tokens=64), make_rows(3)
    first = PADTrainer(make_model(), make_args(tmp_path), rows, data_collator=collator)
    assert first.data_collator.slicing == Slicing("shared", 64)
    for given in (collator, first.data_collator):
        second = PADTrainer(
            _mamba(), make_args(tmp_path, max_steps=1, **PLAIN), rows, data_collator=given
        )
        assert second.data_collator.slicing == Slicing("padded", 64)
    second.train()
    assert collator.slicing == Slicing("padded", 64)  # as it was given


def test_sharing_is_refused_or_given_up_with_a_reason(tmp_path, caplog):
    with pytest.raises(
        ValueError, match=r"share_prefix=True, but MambaForCausalLM cannot share .* carries a state"
    ):
        PADTrainer(_mamba(), make_args(tmp_path, share_prefix=True), make_rows(3))
    with caplog.at_level(logging.WARNING, "pad_fast"):
        trainer = PADTrainer(_mamba(), make_args(tmp_path), make_rows(3))
    assert trainer.data_collator.slicing.layout == "padded"
    assert (
        "MambaForCausalLM shares no prompt among its responses: mamba carries a state"
        in caplog.text
    )
    given = PADTrainer(
        make_model(), make_args(tmp_path), make_rows(3), data_collator=PADCollator("padded")
    )
    assert given.data_collator.slicing.layout == "padded"


def test_sharing_with_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    found = []
    for share in (True, False):
        torch.manual_seed(1)
        config = peft.LoraConfig(
            target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM", init_lora_weights=False
        )
        args = make_args(tmp_path, per_device_train_batch_size=3, share_prefix=share, **PLAIN)
        trainer = PADTrainer(make_model(), args, make_rows(6), peft_config=config)
        trainer.train()
        found.append(parameters(trainer.model))
    assert_same(found[0], found[1], rtol=1e-3, atol=2e-5)


def test_long_rope_does_not_look_at_the_rest_of_a_batch(tmp_path):
    rows, found = make_rows(6, seed=5), {}
    for share in (True, False):
        args = make_args(tmp_path, share_prefix=share, per_device_train_batch_size=3, **PLAIN)
        trainer = PADTrainer(long_rope(12), args, rows, rows)
        assert trainer.data_collator.slicing.layout == ("shared" if share else "packed")
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert len(batch["slices"]) == 2
        with torch.no_grad():
            _, rewards = trainer._losses(trainer.model.eval(), batch)
        for p, row in enumerate(trainer.train_dataset):
            for i in batch["mask"][p].nonzero()[:, 0].tolist():
                prompt, response = row["prompt_ids"], row["completion_ids"][i]
                with torch.no_grad():
                    logits = trainer.model(torch.tensor([prompt + response[:-1]])).logits[0]
                logps = logits[len(prompt) - 1 :].log_softmax(-1)
                wanted = logps[torch.arange(len(response)), torch.tensor(response)].mean()
                torch.testing.assert_close(rewards[p, i], wanted, rtol=1e-5, atol=1e-5)
        trainer.train()
        found[share] = parameters(trainer.model)
    assert_same(found[True], found[False], rtol=1e-3, atol=1e-5)
