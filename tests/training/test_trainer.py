"""The trainer takes the gradient of the mean loss, and refuses what it cannot train."""

import copy
from types import SimpleNamespace

import pytest
import torch
from students import (
    GOOD,
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
from transformers import TrainingArguments

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.models.causal_lm import is_spread
from pad_fast.preference.reward_inputs import counted_prompts
from pad_fast.training import batch_layout
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "jsd"},
        {"divergence": "kl", "teacher_beta": 5.0},
        {"divergence": "reverse_kl", "normalize": "sum", "temperature": 1.7, "beta": 0.3},
        {"loss": "vpd", "group_size": 2, "group_reduction": "sum"},
    ],
)
def test_one_step_by_hand(options, tmp_path):
    """A step of plain SGD with learning rate 1 subtracts the gradient of the mean loss.

    The gradient is taken here from whole logits, one response at a time.
    """
    rows, model = make_rows(6), make_model()
    twin = copy.deepcopy(model)
    args = make_args(
        tmp_path,
        per_device_train_batch_size=6,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        **options,
    )
    trainer = PADTrainer(
        model, args, rows, optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None)
    )
    trainer.train()

    beta, normalize, temperature = args.beta, args.normalize, args.temperature
    losses = []
    for row in rows:
        rewards = []
        kept = [
            (ids, reward)
            for ids, reward in zip(row["completion_ids"], row["teacher_rewards"], strict=True)
            if reward is not None
        ]
        for ids, _ in kept:
            logits = twin(input_ids=torch.tensor([row["prompt_ids"] + ids])).logits[
                0, len(row["prompt_ids"]) - 1 : -1
            ]
            logps = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
            rewards.append(logps.mean() if normalize == "mean" else logps.sum())
        student, teacher = (
            torch.stack(rewards)[None],
            torch.tensor([[reward for _, reward in kept]]),
        )
        if args.loss == "vpd":
            losses.append(
                vanilla_preference_loss(
                    student, teacher, beta=beta, group_size=2, group_reduction="sum"
                )
            )
        else:
            extra = {"divergence": args.divergence, "teacher_beta": args.teacher_beta}
            losses.append(probabilistic_preference_loss(student, teacher, beta=beta, **extra))
    loss = torch.stack(losses).mean()
    loss.backward()
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    wanted = {
        name: parameter.detach() - parameter.grad for name, parameter in twin.named_parameters()
    }
    assert_same(parameters(model), wanted, rtol=1e-4, atol=1e-6)


def test_accumulation_does_not_change_the_mean(tmp_path):
    """Micro-batches of 6, 3 and 1 rows give the same steps.

    The 10 rows make steps of 6 and 4; the micro-batches differ in their number of live prompts.
    """
    rows = make_rows(10, seed=3)
    runs = {}
    for size, accumulation in ((6, 1), (3, 2), (1, 6)):
        options = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            **PLAIN,
        }
        trainer = trained(tmp_path, rows, collator=SomeDead(), **options)
        runs[size] = (
            parameters(trainer.model),
            [line["loss"] for line in trainer.state.log_history if "loss" in line],
        )
    assert len(runs[6][1]) == 4
    for size in (3, 1):
        assert_same(runs[size][0], runs[6][0], rtol=1e-3, atol=2e-5)
        assert runs[size][1] == pytest.approx(runs[6][1], rel=1e-3)
    start = parameters(make_model())
    moved = [(runs[6][0][name] - value).abs().max().item() for name, value in start.items()]
    assert max(moved) > 1e-2


def test_dead_prompts_are_not_counted():
    mask = torch.tensor(
        [[True, True, False], [True, False, False], [False, False, False], [True, True, True]]
    )
    assert counted_prompts(mask).item() == 2


def test_sampled_rankings_differ_from_batch_to_batch(tmp_path):
    trainer = PADTrainer(make_model(), make_args(tmp_path), make_rows(4))
    seeds = [trainer._sampling_seed(True) for _ in range(3)]
    trainer._batch_number, trainer.state.global_step = 0, 1
    seeds += [trainer._sampling_seed(True), trainer._sampling_seed(False)]
    assert len(set(seeds)) == 5


def test_deepspeed_does_not_round_the_teachers_rewards(tmp_path, monkeypatch):
    """Under DeepSpeed Trainer casts floating inputs; the test only pretends to have DeepSpeed."""
    trainer = PADTrainer(make_model(), make_args(tmp_path), make_rows(2))
    batch = {"teacher_rewards": torch.tensor([[1.001]])}
    config = SimpleNamespace(dtype=lambda: torch.bfloat16)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(
        type(trainer.accelerator.state),
        "deepspeed_plugin",
        SimpleNamespace(hf_ds_config=config),
        raising=False,
    )
    found = trainer._prepare_inputs({**batch, "other": batch["teacher_rewards"]})
    assert (found["other"].dtype, found["teacher_rewards"].dtype) == (torch.bfloat16, torch.float32)


def test_an_unknown_output_head_trains_on_whole_logits(tmp_path, monkeypatch, caplog):
    from pad_fast.models import output_head

    monkeypatch.setattr(output_head, "_weight_problem", lambda *_: "of this test")
    rows = make_rows(6)
    slow = trained(tmp_path, rows, per_device_train_batch_size=3)
    assert "takes whole logits, which cost memory: of this test" in caplog.text
    monkeypatch.undo()
    fast = trained(tmp_path, rows, per_device_train_batch_size=3)
    assert_same(parameters(slow.model), parameters(fast.model), rtol=1e-4, atol=1e-5)


def test_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="args must be a PADConfig, got TrainingArguments"):
        PADTrainer(
            make_model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), make_rows(2)
        )
    args = make_args(tmp_path)
    args._n_gpu = 2
    with pytest.raises(
        ValueError, match=r"does not run under torch.nn.DataParallel, got 2 GPUs in one process"
    ):
        PADTrainer(make_model(), args, make_rows(2))
    with pytest.raises(ValueError, match=r'load a model .* with device_map="auto"'):
        PADTrainer(_with_map(make_model(), {"": 0}), args, make_rows(2))
    long = {**GOOD, "prompt_ids": [1] * 64}  # the model's window is smaller than max_length
    with pytest.raises(
        ValueError, match="row 0: prompt must leave room for a response in max_length=64"
    ):
        PADTrainer(make_model(), make_args(tmp_path), [long])


def _with_map(model, places):
    model.hf_device_map = places
    return model


def test_a_model_over_several_gpus_is_trained_as_trainer_does(tmp_path, monkeypatch):
    """Its parts lie where they are, and no single GPU has to hold a step."""
    model, args = _with_map(make_model(), {"model": 0, "lm_head": 1}), make_args(tmp_path)
    args._n_gpu = 2
    monkeypatch.setattr(batch_layout.device, "total_memory", lambda device: 1)
    trainer = PADTrainer(model, args, make_rows(2))
    assert (trainer.is_model_parallel, trainer.args.n_gpu) == (True, 1)
    assert trainer.data_collator.slicing.max_tokens is None
    assert not is_spread(_with_map(model, {"model": 0, "lm_head": "cpu"}))
