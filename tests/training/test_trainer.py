"""The trainer against one gradient step by hand, and against itself: accumulated, on two ranks, resumed, in bfloat16."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainingArguments

from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.models.scoring import score_responses
from pad_fast.training.collator import PADCollator
from pad_fast.training.metrics import NAMES
from pad_fast.training.objective import live_prompts
from pad_fast.training.rows import RowReader, prepare_dataset
from pad_fast.training.trainer import PADTrainer, disable_dropout

pytestmark = RENAMED


# the loss and its gradient


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
    """Plain SGD with learning rate 1: the parameters move by the gradient of the mean loss of whole logits, one response at a time."""
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
    """10 rows in steps of 6 and 4, micro-batches of 6, of 3 (the last one of 1), and of 1, with different numbers of live prompts."""
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
    assert (
        max(
            (runs[6][0][name] - value).abs().max().item()
            for name, value in parameters(make_model()).items()
        )
        > 1e-2
    )


RANKS = """
import os, sys, torch
sys.path[:0] = {folders!r}
torch.set_num_threads(1)
from test_trainer import *
trainer = trained({out!r}, make_rows(12, seed=3), collator=SomeDead(), **{options!r})
metrics = PADTrainer(make_model(), make_args({out!r}, per_device_eval_batch_size=2), None, make_rows(7)).evaluate()
check_sharded_gradients()
if trainer.args.process_index == 0:
    torch.save((parameters(trainer.model), trainer.state.log_history, metrics), {out!r} + "/found.pt")
torch.distributed.barrier()
os._exit(0)  # all is said; on its way out the interpreter now and then finds a thread of gloo's alive, and aborts
"""


def check_sharded_gradients():
    """FSDP2 on every rank: the rewards call finds the output head whole, and the gradients are the mean over the ranks."""
    model = make_model()
    attach_rewards_forward(model)
    whole = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in (
        *model.model.layers,
        model.lm_head,
        model,
    ):  # a head of its own is gathered for its own call alone
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    batch = PADCollator()(
        list(prepare_dataset(make_rows(4, seed=torch.distributed.get_rank()), RowReader()))
    )
    for twin in (model, whole):
        twin(**batch["slices"][0], num_responses=batch["mask"].numel()).square().sum().backward()
    for (name, found), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.distributed.all_reduce(wanted.grad)
        mean = wanted.grad / torch.distributed.get_world_size()
        torch.testing.assert_close(
            found.grad.full_tensor(), mean, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow  # two interpreters that import everything
def test_two_ranks_are_one(tmp_path):
    # in slices, more of them on one rank than on the other
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
    found, history, metrics = torch.load(tmp_path / "found.pt")
    trainer = trained(
        tmp_path, make_rows(12, seed=3), collator=SomeDead(), per_device_train_batch_size=6, **PLAIN
    )
    assert_same(found, parameters(trainer.model), rtol=1e-3, atol=2e-5)
    for ours, theirs in zip(trainer.state.log_history[:-1], history[:-1], strict=True):
        for name in {"loss", "grad_norm", *NAMES} & set(ours):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name
    alone = PADTrainer(make_model(), make_args(tmp_path), None, make_rows(7)).evaluate()
    for name in NAMES:  # 7 rows on two ranks: the row that pads the last batch is not counted twice
        assert metrics[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-5), name


def test_dead_prompts_are_not_counted():
    mask = torch.tensor(
        [[True, True, False], [True, False, False], [False, False, False], [True, True, True]]
    )
    assert live_prompts(mask).item() == 2


# precision, memory, adapters


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
    assert all(
        after[name].abs().max() > 0 for name in after if "lora_B" in name
    )  # they start at zero
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
    rows, options = (
        make_rows(6),
        {"per_device_train_batch_size": 6, "max_steps": 1, "logging_steps": 1},
    )

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


def test_tied_weights_are_not_missing_from_a_checkpoint(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", told.append)
    model = partial(make_model, tie_word_embeddings=True)
    trained(tmp_path, make_rows(4), model=model(), save_strategy="steps", save_steps=1, max_steps=1)
    trainer = PADTrainer(model(), make_args(tmp_path, max_steps=2), make_rows(4))
    trainer.train(resume_from_checkpoint=True)
    assert not [text for text in told if "missing keys" in str(text)]
    assert trainer.model.lm_head.weight is trainer.model.model.embed_tokens.weight


# checkpoints


@pytest.mark.parametrize(
    "options", [{}, {"method": "sampled", "num_samples": 8, "disable_dropout": False}]
)
def test_resuming_changes_no_bit(options, tmp_path):
    """From the middle of an epoch and of nothing: data order, optimizer, dropout and sampled rankings all go on."""
    rows = make_rows(10)
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        **options,
    }

    def make(folder):
        return PADTrainer(make_model(attention_dropout=0.1), make_args(folder, **options), rows)

    whole = make(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 9
    halved = make(tmp_path / "whole")
    halved.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same(parameters(halved.model), parameters(whole.model), rtol=0, atol=0)


def test_sampled_rankings_differ_from_batch_to_batch(tmp_path):
    trainer = PADTrainer(make_model(), make_args(tmp_path), make_rows(4))
    seeds = [trainer._sampling_seed(True) for _ in range(3)]
    trainer._batch_number, trainer.state.global_step = 0, 1
    seeds += [trainer._sampling_seed(True), trainer._sampling_seed(False)]
    assert len(set(seeds)) == 5


def test_checkpoints_are_ordinary(tokenizer, tmp_path):
    """By name, from texts, into a folder that transformers loads, with the config as it was."""
    make_model().save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    rows = [
        {
            "prompt": [{"role": "user", "content": "one"}],
            "completions": ["two", "three"],
            "teacher_rewards": [0.0, 1.0],
        },
        {
            "prompt": [{"role": "user", "content": "two"}],
            "completions": ["one", "three"],
            "teacher_rewards": [1.0, 0.0],
        },
    ]
    trainer = PADTrainer(str(tmp_path / "student"), make_args(tmp_path / "out", max_steps=2), rows)
    trainer.train()
    trainer.save_model()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(parameters(again), parameters(trainer.model), rtol=0, atol=0)
    assert again.config.use_cache is True
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
        == tokenizer.chat_template
    )
    half = PADTrainer(
        str(tmp_path / "student"),
        make_args(tmp_path / "out", model_init_kwargs={"dtype": "bfloat16"}),
        rows,
    )
    assert half.model.dtype == torch.bfloat16


@pytest.mark.parametrize("loss", ["ppd", "vpd"])
def test_the_model_card_speaks_of_the_training(loss, tmp_path):
    trainer = trained(tmp_path / "mine", make_rows(4), loss=loss, max_steps=1, logging_steps=1)
    for _ in range(2):  # over a card that is there
        trainer.create_model_card(tags="own", language="en")
    text = (tmp_path / "mine" / "README.md").read_text()
    card = ModelCard(text)
    assert {"own", "pad", "generated_from_trainer"} <= set(card.data.tags)
    assert card.data.language == ["en"]
    assert "| beta | 2.0 |" in text
    assert ("| divergence | jsd |" in text) == (loss == "ppd")
    assert "| ranking/kendall_tau | " in text
    assert text.count("@inproceedings{gu-etal-2025-capturing") == 1
    assert "None" not in text
    assert "from scratch" not in text


def test_deepspeed_does_not_round_the_teachers_rewards(tmp_path, monkeypatch):
    """Trainer casts floating inputs under DeepSpeed, which is not installed here: we only say that it runs."""
    trainer, batch = (
        PADTrainer(make_model(), make_args(tmp_path), make_rows(2)),
        {"teacher_rewards": torch.tensor([[1.001]])},
    )
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


def test_an_unread_architecture_trains_on_whole_logits(tmp_path, monkeypatch, caplog):
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
    with pytest.raises(
        ValueError, match="row 0: prompt must leave room for a response in max_length=64"
    ):
        PADTrainer(
            make_model(), make_args(tmp_path), [{**GOOD, "prompt_ids": [1] * 64}]
        )  # the model's window is the smaller limit
