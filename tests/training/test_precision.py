"""Training in bfloat16, with recomputed activations, with adapters and with dropout."""

import pytest
import torch
import transformers
from students import (
    RENAMED,
    assert_same,
    make_args,
    make_model,
    make_rows,
    parameters,
    trained,
)

from pad_fast.models.scoring import score_responses
from pad_fast.training.trainer import PADTrainer, disable_dropout

pytestmark = RENAMED


def test_bfloat16_autocast_keeps_float32_parameters_and_gradients(tmp_path):
    rows, seen = make_rows(6), {}

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.update(
                {name: parameter.grad.dtype for name, parameter in model.named_parameters()}
            )

    model, hidden = make_model(), []
    args = make_args(tmp_path, per_device_train_batch_size=3, bf16=True, logging_steps=1)
    trainer = PADTrainer(model, args, rows, callbacks=[Look()])
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: hidden.append(output.dtype)
    )
    trainer.train()
    assert set(hidden) == {torch.bfloat16}
    assert set(seen.values()) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    whole = trained(tmp_path, rows, per_device_train_batch_size=3, logging_steps=1)
    losses = [
        [line["loss"] for line in t.state.log_history if "loss" in line] for t in (trainer, whole)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_a_model_given_by_its_name_is_trained_in_float32(tmp_path, tokenizer):
    """Whatever its files hold, unless model_init_kwargs name another data type."""
    make_model().to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    for kwargs, dtype in ((None, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16)):
        args = make_args(tmp_path, model_init_kwargs=kwargs)
        saved, rows = str(tmp_path / "saved"), make_rows(2)
        model = PADTrainer(saved, args, rows, processing_class=tokenizer).model
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_slices_are_trained_as_whole_batches_are(tmp_path):
    """In the mode of training, also after an evaluation, and under autocast, recomputed."""
    rows, seen = make_rows(6), []
    args = make_args(
        tmp_path,
        per_device_train_batch_size=3,
        max_tokens_per_step=40,
        eval_strategy="steps",
        eval_steps=1,
        activation_checkpointing=True,
        bf16=True,
    )
    trainer = PADTrainer(make_model().eval(), args, rows, eval_dataset=rows[:2])
    slices = [len(batch["slices"]) for batch in trainer.get_train_dataloader()]
    assert slices == [2, 2]

    def look(module, inputs, output):
        seen.append((torch.is_grad_enabled(), module.training))
        assert output.dtype == torch.bfloat16

    trainer.model.model.layers[0].mlp.gate_proj.register_forward_hook(look)
    trainer.train()
    # Both slices are read for the loss's weights, then read and recomputed for the gradient.
    step = [(False, True)] * 2 + [(True, True)] * 4
    evaluated = [(False, False)] * 2
    assert seen == 2 * (step + evaluated)


def test_checkpointed_activations_change_nothing(tmp_path):
    rows, called, found = make_rows(6), [], {}
    for on in (True, False):
        trainer = PADTrainer(
            make_model(),
            make_args(tmp_path, per_device_train_batch_size=3, activation_checkpointing=on),
            rows,
        )
        trainer.model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, on=on: called.append(on)
        )
        trainer.train()
        found[on] = parameters(trainer.model)
    assert called.count(True) == 2 * called.count(False) > 0  # recomputed once
    assert_same(found[True], found[False])


@pytest.mark.parametrize("checkpointing", [True, False])
def test_adapters(checkpointing, tmp_path):
    peft = pytest.importorskip("peft")
    model = make_model()
    before = {name: value for name, value in parameters(model).items() if "q_proj" not in name}
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    args = make_args(
        tmp_path, per_device_train_batch_size=3, activation_checkpointing=checkpointing
    )
    trainer = PADTrainer(model, args, make_rows(6), peft_config=config)
    trainer.train()
    after = parameters(trainer.model)
    assert all(after[name].abs().max() > 0 for name in after if "lora_B" in name)  # 0 at first
    assert_same(
        {name.removeprefix("base_model.model."): value for name, value in after.items()},
        before,
        rtol=0,
        atol=0,
    )
    trainer.save_model(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
    assert score_responses(again, [[3]], [[[4, 5]]]) == score_responses(
        trainer.model, [[3]], [[[4, 5]]]
    )
    with pytest.raises(ValueError, match="adapter on its output head"):
        PADTrainer(
            make_model(),
            args,
            make_rows(6),
            peft_config=peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"),
        )


def test_dropout_is_off_unless_asked_for(tmp_path):
    rows = make_rows(6)
    options = {"per_device_train_batch_size": 6, "max_steps": 1, "logging_steps": 1}

    def loss(rate, **more):
        model = make_model(attention_dropout=rate)
        return trained(tmp_path, rows, model, **options, **more).state.log_history[0]["loss"]

    assert loss(0.5) == loss(0.0)
    assert loss(0.5, disable_dropout=False) != loss(0.0)
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)
    ).train()
    disable_dropout(gpt2)
    with torch.no_grad():
        assert torch.equal(gpt2(torch.arange(5)[None]).logits, gpt2(torch.arange(5)[None]).logits)
