"""Every loss of the table, its anchor and the likelihood beside it, in PADTrainer."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from datasets import Dataset
from students import RENAMED, assert_same, make_args, make_model, make_rows, parameters, trained

from pad_fast.losses import preference_loss
from pad_fast.models.scoring import score_responses
from pad_fast.preference.loss_kinds import LOSSES
from pad_fast.training.likelihood_watch import LikelihoodWatch
from pad_fast.training.objective import chosen_teacher_beta
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED

SGD = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


def options_of(loss: str) -> dict:
    needs = {"anchor": "start"} if LOSSES[loss].needs_anchor else {}
    beta = {} if LOSSES[loss].has_beta else {"beta": 10.0}  # make_args has 2
    return {"loss": loss, **needs, **beta, **({"gamma": 0.3} if loss == "simpo" else {})}


def rewards_of(model, row, normalize: str = "mean", temperature: float = 1.0) -> torch.Tensor:
    """The model's rewards of a row's responses, one response at a time, with a gradient."""
    found = []
    for ids in row["completion_ids"]:
        inputs = torch.tensor([row["prompt_ids"] + ids])
        logits = model(input_ids=inputs).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature
        logps = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
        found.append(logps.mean() if normalize == "mean" else logps.sum())
    return torch.stack(found)[None]


def expected_step(model, rows, args) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the parameters after a step of SGD with rate 1, without the trainer."""
    names = [name for name in LOSSES[args.loss].options if name not in ("reduction", "seed")]
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    losses = []
    for row in rows:
        student = rewards_of(model, row)
        columns = {
            "mask": torch.tensor([[reward is not None for reward in row["teacher_rewards"]]])
        }
        if args.anchor == "start":
            columns["anchor_rewards"] = torch.tensor([row["anchor_rewards"]])
        columns["from_teacher"] = torch.tensor([row.get("from_teacher", [False] * student.numel())])
        teacher = torch.tensor([[reward or 0.0 for reward in row["teacher_rewards"]]])
        losses.append(preference_loss(args.loss, student, teacher, **columns, **options))
    loss = torch.stack(losses).mean()
    loss.backward()
    moved = {name: value.detach() - value.grad for name, value in model.named_parameters()}
    return loss.item(), moved


@pytest.mark.parametrize(
    "options",
    [
        *(options_of(loss) for loss in LOSSES),
        {"likelihood_weight": 2.0, "likelihood_on": "weighted", "divergence": "kl"},
        {"likelihood_weight": 1.5, "likelihood_on": "teacher", "preference_weight": 0.0},
        {"loss": "vpd", "anchor": "start", "likelihood_weight": 1.0, "likelihood_on": "best"},
    ],
    ids=str,
)
@pytest.mark.parametrize("most", [None, 24], ids=["whole", "slices"])
def test_one_step_of_every_loss(options: dict, most: int | None, tmp_path) -> None:
    """Whole batches and micro-batches take the gradient of the mean loss, by hand."""
    rows, model = make_rows(5, seed=2), make_model()
    other = make_model(seed=1)
    for i, row in enumerate(rows):
        row["from_teacher"] = [k == i % 2 for k in range(len(row["completion_ids"]))]
        # An anchor that is not the student, so that its use shows in the first step.
        row["anchor_rewards"] = rewards_of(other, row)[0].tolist()
    given = {"teacher_beta": 2.0} if "teacher_beta" in LOSSES[options.get("loss", "ppd")].options else {}  # fmt: skip # noqa: E501
    args = make_args(
        tmp_path,
        per_device_train_batch_size=5,
        max_tokens_per_step=most,
        **{**SGD, **given, **options},
    )
    loss, wanted = expected_step(copy.deepcopy(model), rows, args)
    trainer = PADTrainer(model, args, rows)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert_same(parameters(model), wanted, rtol=1e-4, atol=2e-6)


def test_the_anchor_is_the_model_at_the_start(tmp_path) -> None:
    rows, model = make_rows(4), make_model()
    options = {"loss": "dpo", "anchor": "start", "num_train_epochs": 3, "logging_steps": 1}
    wanted = score_responses(
        model, [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows]
    )
    trainer = trained(
        tmp_path, rows, model, per_device_train_batch_size=4, learning_rate=0.1, **options
    )
    for found, group in zip(trainer.train_dataset["anchor_rewards"], wanted, strict=True):
        assert found == pytest.approx(group, abs=1e-5)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # no log-ratio yet
    assert losses[-1] < losses[0]
    some = [{**rows[0], "anchor_rewards": wanted[0]}, *rows[1:]]
    args = make_args(tmp_path, loss="dpo", anchor="start")
    with pytest.raises(ValueError, match=r"must be in every row or in none, got 3 of 4"):
        PADTrainer(make_model(), args, some)


DPO_BY_SUMS = {"loss": "dpo", "anchor": "start", "normalize": "sum", "temperature": 1.7}


@pytest.mark.parametrize(
    "cut", [{"max_completion_length": 7}, {"max_prompt_length": 3, "long_prompts": "cut"}], ids=str
)
def test_the_anchor_of_what_is_cut_is_computed_anew(cut: dict, tmp_path, caplog) -> None:
    """A given reward is that of the whole, and stays where nothing of a row is cut."""
    rows, model = make_rows(6, seed=2), make_model()
    for row in rows:
        row["anchor_rewards"] = [-50.0] * len(row["completion_ids"])
    trainer = PADTrainer(model, make_args(tmp_path, **DPO_BY_SUMS, **cut), rows)
    scored = 0
    for given, row in zip(rows, trainer.train_dataset, strict=True):
        live = [i for i, reward in enumerate(row["teacher_rewards"]) if reward is not None]
        whole, read = (
            [each["prompt_ids"], *(each["completion_ids"][i] for i in live)]
            for each in (given, row)
        )
        if read == whole:
            assert row["anchor_rewards"] == given["anchor_rewards"]
            continue
        scored += 1
        by_hand = rewards_of(model, row, "sum", 1.7)[0].tolist()
        assert row["anchor_rewards"] == pytest.approx(by_hand, abs=1e-4)
    assert 0 < scored < len(rows)
    if "max_completion_length" in cut:
        assert "their teacher_rewards stay those of the whole" in caplog.text
    late = PADTrainer(make_model(), make_args(tmp_path, **DPO_BY_SUMS, **cut), rows[:2], rows[:2])
    with pytest.raises(ValueError, match="one that is cut has none"):
        late.evaluate(rows)
    stream = Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match="got a row of which a response is cut, or its prompt"):
        PADTrainer(make_model(), make_args(tmp_path, max_steps=1, **DPO_BY_SUMS, **cut), stream)


def test_a_live_response_needs_its_anchor(tmp_path) -> None:
    some = {**REPEATED, "anchor_rewards": [-1.0, None, -1.0, None]}
    args = make_args(tmp_path, loss="dpo", anchor="start")
    with pytest.raises(ValueError, match=r"row 0: anchor_rewards must hold .* got null for resp"):
        PADTrainer(make_model(), args, [some])


def test_a_dataset_without_an_anchor_cannot_come_late(tmp_path) -> None:
    args = make_args(tmp_path, loss="dpo", anchor="start")
    trainer = PADTrainer(make_model(), args, make_rows(4), make_rows(3))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(0.6931, abs=1e-3)
    with pytest.raises(ValueError, match="a batch must have anchor_rewards"):
        trainer.evaluate(make_rows(3, seed=8))


def test_teacher_likelihood_needs_the_teachers_responses(tmp_path) -> None:
    args = make_args(tmp_path, likelihood_weight=1.0, likelihood_on="teacher")
    with pytest.raises(ValueError, match="needs responses of the teacher's own in train_dataset"):
        PADTrainer(make_model(), args, make_rows(3))


REPEATED = {
    "prompt_ids": [1, 2],
    "completion_ids": [[3, 4], [5], [3, 4], [6]],
    "teacher_rewards": [-1.0, -2.0, -3.0, None],
    "from_teacher": [False, False, True, False],
}


def test_repeats_count_once_with_their_mean_reward(tmp_path) -> None:
    once = PADTrainer(make_model(), make_args(tmp_path), [REPEATED]).train_dataset[0]
    assert once["teacher_rewards"] == [-2.0, -2.0, None, None]
    assert once["from_teacher"] == [True, False, False, False]
    each = make_args(tmp_path, repeats="each")
    assert PADTrainer(make_model(), each, [REPEATED]).train_dataset[0]["teacher_rewards"] == [
        -1.0,
        -2.0,
        -3.0,
        None,
    ]
    for args, tokens in ((make_args(tmp_path), 4 + 3), (each, 4 + 3 + 4)):
        loader = PADTrainer(make_model(), args, [REPEATED]).get_train_dataloader()
        assert next(iter(loader))["num_tokens"] == tokens  # a repeat is not read


def test_a_prompt_of_one_response_is_trained_with_a_likelihood_alone(tmp_path, caplog) -> None:
    single = {**REPEATED, "completion_ids": [[3, 4]] * 4}
    rows = [single, *make_rows(2)]
    args = make_args(tmp_path, likelihood_weight=1.0)
    assert len(PADTrainer(make_model(), args, rows).train_dataset) == 3
    with caplog.at_level(logging.WARNING, "pad_fast"):
        assert len(PADTrainer(make_model(), make_args(tmp_path), rows).train_dataset) == 2
    assert "fewer than 2 live responses, repeats counted once" in caplog.text


def test_teacher_beta_follows_the_spread_of_the_rewards(tmp_path) -> None:
    rows = make_rows(6)
    wide = [
        {**row, "teacher_rewards": [r and 20 * r for r in row["teacher_rewards"]]} for row in rows
    ]
    for beta, given, wanted in ((10.0, rows, 10.0), (10.0, wide, None), (0.1, wide, 0.1)):
        args = make_args(tmp_path, beta=beta)
        trainer = PADTrainer(make_model(), args, given)
        expected = chosen_teacher_beta([row["teacher_rewards"] for row in given], beta)
        assert trainer.args.teacher_beta == (expected if wanted is None else wanted)
        assert trainer.args.lr_scheduler_type is args.lr_scheduler_type
        assert args.teacher_beta is None  # the user's own arguments stay
        assert f"| teacher_beta | {trainer.args.teacher_beta} |" in trainer.card_body()
    assert 0.3 < chosen_teacher_beta([row["teacher_rewards"] for row in wide], 10.0) < 2.0
    assert (
        PADTrainer(make_model(), make_args(tmp_path, teacher_beta=7.0), wide).args.teacher_beta
        == 7.0
    )
    assert chosen_teacher_beta([[1.0, 1.0], [None, 2.0]], 10.0) == 10.0


def test_a_falling_likelihood_is_warned_of_once(tmp_path, caplog) -> None:
    watch = LikelihoodWatch()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        noise = torch.linspace(-0.5, 0.5, 100)
        for level in (-1.0, -1.02, -0.9):
            watch.add(noise + level)
        assert not caplog.records
        again = LikelihoodWatch()
        again.restore(watch.state())
        again.add(torch.tensor([float("nan")]))
        for level in (-1.4, -1.5):
            again.add(noise + level)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fell from -1.000 to -1.400 nats per token" in caplog.text


@pytest.mark.parametrize(("weight", "warns"), [(None, True), (5.0, False)])
def test_a_training_that_makes_the_best_less_likely_says_so(
    weight: float | None, warns: bool, tmp_path, caplog
) -> None:
    rows = make_rows(24, seed=4)
    common = {"beta": 10.0, "per_device_train_batch_size": 8, "logging_steps": 3}
    model = trained(
        tmp_path, rows, loss="rft", learning_rate=0.02, num_train_epochs=8, **common
    ).model
    options = {"likelihood_weight": weight, "likelihood_on": "weighted"} if weight else {}
    with caplog.at_level(logging.WARNING, "pad_fast"):
        trained(tmp_path, rows, model, loss="dpo", anchor="start", num_train_epochs=8,
                learning_rate=0.02, **options, **common)  # fmt: skip
    assert ("fell from" in caplog.text) == warns
