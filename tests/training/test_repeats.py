"""Equal responses of a prompt are read once, with the gradient of reading each."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from students import (
    PLAIN,
    RENAMED,
    VOCABULARY,
    assert_same,
    make_args,
    make_model,
    make_rows,
    parameters,
    trained,
)

from pad_fast.models.packing import PackedRows
from pad_fast.models.rewards import RewardOptions, packed_rewards
from pad_fast.training import collator as collator_module
from pad_fast.training.collator import PADCollator
from pad_fast.training.trainer import PADTrainer

pytestmark = RENAMED


def float64_model() -> Any:
    """A GPT-2, whose norms and positions are float64 throughout; those of a Llama are float32."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config).double()


def repeated(rows: list[dict], seed: int = 0) -> list[dict]:
    """The rows with each live response once or twice more, in any order, of other rewards."""
    generator, found = random.Random(seed), []
    for row in rows:
        pairs = list(zip(row["completion_ids"], row["teacher_rewards"], strict=True))
        more = [(ids, generator.gauss(-1, 0.5)) for ids, reward in pairs if reward is not None]
        pairs += more + more[:1]
        generator.shuffle(pairs)
        ids, rewards = zip(*pairs, strict=True)
        found.append({**row, "completion_ids": ids, "teacher_rewards": rewards})
        del found[-1]["finish_reasons"]
    return found


@pytest.fixture
def read_each(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A call after which equal responses are read as often as they stand there."""

    def change() -> None:
        places = lambda responses: list(range(len(responses)))  # noqa: E731
        monkeypatch.setattr(collator_module, "first_equal", places)

    return change


@pytest.mark.parametrize(
    "options",
    [
        {"share_prefix": "true"},
        {"share_prefix": "true", "max_tokens_per_step": 24},
        {"share_prefix": "false", "max_tokens_per_step": 30, "gradient_accumulation_steps": 2},
        {"anchor": "start", "likelihood_weight": 0.3, "normalize": "sum", "beta": 0.5},
    ],
)
def test_the_gradient_is_that_of_reading_each(options: dict, tmp_path, read_each) -> None:
    rows = repeated(make_rows(6, most=3))
    settings = {**PLAIN, "repeats": "each", "per_device_train_batch_size": 3, **options}
    found = []
    for each in (False, True):
        if each:
            read_each()
        trainer = trained(tmp_path, rows, float64_model(), **settings)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        found.append((parameters(trainer.model), torch.tensor(losses)))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-6)  # float32
    assert_same(found[0][0], found[1][0], rtol=1e-9, atol=1e-11)
    moved = parameters(float64_model())
    assert not torch.allclose(
        moved["transformer.wte.weight"], found[0][0]["transformer.wte.weight"]
    )


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("max_tokens", [None, 20])
def test_each_distinct_live_response_is_read_once(layout: str, max_tokens: int | None) -> None:
    row = {
        "prompt_ids": [5, 6],
        "completion_ids": [[9], [7, 8], [7, 8], [9], [7, 8], [3, 3, 3]],
        "teacher_rewards": [None, 0.5, 1.5, 2.0, 0.0, 1.0],
        "clipped": [False] * 6,
    }
    other = {**row, "completion_ids": [[7, 8]] * 2, "teacher_rewards": [1.0, 2.0]}
    other["clipped"] = [False] * 2
    batch = PADCollator(layout, max_tokens)([row, other])
    # one left out stands for itself, and equal responses to another prompt are others
    assert batch["read_as"].tolist() == [[0, 1, 1, 3, 1, 5], [6, 6, 8, 9, 10, 11]]
    read = torch.cat([part["response_ids"] for part in batch["slices"]])
    assert sorted(read.tolist()) == [1, 1, 3, 5, 5, 5, 6, 6]
    assert batch["num_tokens"] == 3 * 4 + 3 + 5 + 2 * 4  # every live response counts


def test_metrics_and_evaluation_see_every_response(tmp_path, read_each) -> None:
    rows = repeated(make_rows(4, most=3))
    found = []
    for each in (False, True):
        if each:
            read_each()
        args = make_args(tmp_path, repeats="each", max_tokens_per_step=24)
        trainer = PADTrainer(float64_model(), args, rows, eval_dataset=rows)
        measured = trainer.evaluate()
        found.append(
            {
                name: value
                for name, value in measured.items()
                if "second" not in name and "time" not in name
            }
        )
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_batch_without_places_has_no_repeats(tmp_path) -> None:
    """A collator of a user's own need not know of them."""

    class Own(PADCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            del batch["read_as"]
            return batch

    rows = make_rows(4)
    found = [
        parameters(trained(tmp_path, rows, collator=collator, **PLAIN).model)
        for collator in (PADCollator(), Own())
    ]
    assert_same(found[0], found[1], rtol=0, atol=0)


def test_the_gradients_of_repeats_add_up() -> None:
    model = float64_model().eval()
    row = {"prompt_ids": [5, 6], "completion_ids": [[7, 8], [9, 3], [7, 8]]}
    batch = PADCollator()([{**row, "teacher_rewards": [0.0] * 3, "clipped": [False] * 3}])
    (part,) = batch["slices"]
    read = packed_rewards(model, PackedRows(**part), 3, RewardOptions())
    rewards = read.index_select(0, batch["read_as"].flatten())
    assert rewards[0] == rewards[2] != rewards[1]
    assert read[2] == 0
    (rewards * torch.tensor([1.0, 2.0, 10.0])).sum().backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    read = packed_rewards(model, PackedRows(**part), 3, RewardOptions())
    (read * torch.tensor([11.0, 2.0, 0.0])).sum().backward()
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_layout_is_tried_on_rows_of_several_distinct_responses(tmp_path) -> None:
    """A student that begins by repeating itself shares the prompts of its later rows."""
    several = make_rows(3)
    equal = [{**row, "completion_ids": [[3, 4]] * len(row["completion_ids"])} for row in several]
    equal *= 30
    args = make_args(tmp_path, repeats="each")
    for rows, layout in ((equal, "padded"), (equal + several, "shared")):
        trainer = PADTrainer(make_model(), args, rows)
        assert trainer.data_collator.slicing.layout == layout
