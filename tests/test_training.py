"""The trainer against one gradient step by hand, and against itself: accumulated, on two ranks, resumed, in bfloat16."""

import ast
import copy
import dataclasses
import importlib.util
import logging
import math
import random
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedTokenizerFast, TrainingArguments

import pad_fast
from pad_fast import budget
from pad_fast.evaluation import ranking_agreement
from pad_fast.losses import probabilistic_preference_loss, vanilla_preference_loss
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.models.scoring import score_responses
from pad_fast.training.config import PADConfig
from pad_fast.training.data import PADCollator, RowReader, end_of_turn_id, prepare_dataset
from pad_fast.training.metrics import NAMES
from pad_fast.training.objective import live_prompts
from pad_fast.training.slices import head_budget
from pad_fast.training.trainer import PADTrainer, disable_dropout

VOCABULARY = 40
pytestmark = pytest.mark.filterwarnings(
    # PEFT reads, and transformers' Trainer writes through, names that transformers has since renamed
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning",
)


def make_model(seed: int = 0, **options):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def make_rows(count: int, seed: int = 0, most: int = 5) -> list[dict]:
    """Groups of 2 to ``most`` live responses, and now and then one that is left out."""
    generator = random.Random(seed)

    def ids(low, high):
        return [generator.randrange(VOCABULARY) for _ in range(generator.randint(low, high))]

    rows = []
    for _ in range(count):
        n = generator.randint(2, most)
        rewards = [generator.gauss(-1, 0.5) for _ in range(n)] + [None] * generator.randint(0, 1)
        completions = [ids(1, 8) for _ in rewards]
        reasons = [generator.choice(["stop", "length"]) for _ in rewards]
        rows.append({"prompt_ids": ids(1, 9), "completion_ids": completions, "teacher_rewards": rewards, "finish_reasons": reasons})
    return rows


def make_args(folder, **options) -> PADConfig:
    defaults = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "beta": 2.0, "learning_rate": 1e-2}
    return PADConfig(output_dir=str(folder), **{**defaults, **options})


class SomeDead(PADCollator):
    """Makes a prompt dead where its first token is even, so that micro-batches differ in their live prompts."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        for p, row in enumerate(rows):
            if row["prompt_ids"][0] % 2 == 0:
                batch["mask"][p, 1:] = False
        return batch


def trained(folder, rows, model=None, collator=None, **options):
    trainer = PADTrainer(model or make_model(), make_args(folder, **options), rows, data_collator=collator)
    trainer.train()
    return trainer


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(found, wanted, **tolerance):
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


# the configuration


def test_every_field_is_read():
    own = {f.name for f in dataclasses.fields(PADConfig)} - {f.name for f in dataclasses.fields(TrainingArguments)}
    folder = Path(pad_fast.__file__).parent / "training"
    read = set()
    for path in (folder / f"{name}.py" for name in ("trainer", "data", "slices", "objective")):
        tree = ast.parse(path.read_text())
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        read |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert own - read == set()
    assert len(own) > 15


def test_config_is_parsed_from_the_command_line(tmp_path):
    line = f"--output_dir {tmp_path} --use_cpu --teacher_beta 3 --group_size 2 --disable_dropout False --max_length 99".split()
    (args,) = transformers.HfArgumentParser(PADConfig).parse_args_into_dataclasses([*line, "--chat_template_kwargs", '{"a": 1}'])
    assert (args.teacher_beta, args.group_size, args.disable_dropout, args.max_length) == (3.0, 2, False, 99)
    assert args.chat_template_kwargs == {"a": 1}
    assert (args.learning_rate, args.beta, args.loss, args.divergence, args.logging_steps) == (8e-7, 10.0, "ppd", "jsd", 10)
    assert args.bf16 is False
    assert args.gradient_checkpointing is True


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_can_be_turned_off(name, tmp_path):
    args = make_args(tmp_path, **{name: False})
    assert (args.gradient_checkpointing, args.activation_checkpointing) == (False, False)
    assert dataclasses.replace(args).gradient_checkpointing is False
    assert make_args(tmp_path).activation_checkpointing is True


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss": "dpo"}, "loss must be one of ppd, vpd, got 'dpo'"),
        ({"divergence": "js"}, "divergence must be one of jsd, kl, reverse_kl, got 'js'"),
        ({"impl": "cuda"}, "impl must be one of auto, torch, triton, got 'cuda'"),
        ({"beta": 0.0}, "beta must be a positive finite number, got 0.0"),
        ({"teacher_beta": float("nan")}, "teacher_beta must be a positive finite number, got nan"),
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1, got 0"),
        ({"max_tokens_per_step": 0}, "max_tokens_per_step must be at least 1, got 0"),
        ({"memory_budget": "much"}, "memory_budget must be \"auto\" or a number of bytes, an int of at least 0, got 'much'"),
        ({"memory_budget": -1}, 'memory_budget must be "auto" or a number of bytes, an int of at least 0, got -1'),
        ({"share_prefix": "maybe"}, "share_prefix must be auto, true or false, got 'maybe'"),
        ({"num_samples": 3}, "num_samples must be at least 4, got 3"),
        ({"method": "exact", "group_size": 11}, "method='exact' takes at most 10 responses a group for divergence='jsd', got 11"),
        ({"loss": "vpd", "teacher_beta": 3.0}, "teacher_beta is an option of loss='ppd', and loss is 'vpd'; got 3.0"),
        ({"loss": "vpd", "divergence": "kl"}, "divergence is an option of loss='ppd', and loss is 'vpd'; got 'kl'"),
    ],
)
def test_config_refuses(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **option)


# rows and batches


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<turn>", "<unk>", "user", "assistant", "one", "two", "three", "a", "response", ":"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(words[:4])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # as Llama does
    found = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found.chat_template = (
        "<s>{% for m in messages %}{{ m.role }} : {{ m.content }} <turn> {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )
    return found


def read(row: dict, **options) -> dict:
    return RowReader(**options)(row, 7)


def test_texts_get_the_end_of_turn_and_ids_are_taken_as_they_are(tokenizer):
    row = {
        "prompt": "one two",
        "completions": ["three", "two three"],
        "teacher_rewards": [0.5, -1.0],
        "finish_reasons": ["stop", "length"],
    }
    found = read(row, tokenizer=tokenizer)
    assert found["prompt_ids"] == [1, 7, 8]
    assert found["completion_ids"] == [[9, 2], [8, 9]]
    assert found["clipped"] == [False, True]
    # ids win over text, and nothing is appended
    found = read({**row, "prompt_ids": [5], "completion_ids": [[6], [6, 6]]})
    assert (found["prompt_ids"], found["completion_ids"]) == ([5], [[6], [6, 6]])


def test_conversations_pass_the_chat_template_once(tokenizer):
    prompt = [{"role": "user", "content": "one"}]
    answers = ["two", [{"role": "assistant", "content": "three"}]]
    found = read({"prompt": prompt, "completions": answers, "teacher_rewards": [1, 2]}, tokenizer=tokenizer)
    assert found["prompt_ids"] == [1, 5, 12, 7, 3, 6, 12]  # one BOS, and the generation prompt
    assert found["completion_ids"] == [[8, 3], [9, 3]]  # the template's own end of turn
    assert end_of_turn_id(tokenizer, conversational=False) == 2


def test_other_tools_names_of_columns(tokenizer):
    for names in (("instruction", "generations", "ratings"), ("question", "candidates", "scores"), ("prompt", "responses", "rewards")):
        row = dict(zip(names, ("one", ["two", "three"], [1.0, 2.0]), strict=True))
        found = read(row, tokenizer=tokenizer)
        assert (found["prompt_ids"], found["completion_ids"], found["teacher_rewards"]) == ([1, 7], [[8, 2], [9, 2]], [1.0, 2.0])


def test_each_response_is_cut_by_itself():
    row = {"prompt_ids": [1] * 6, "completion_ids": [[3] * 2, [4] * 9, [5] * 4], "teacher_rewards": [0, 1, 2]}
    found = read(row, max_length=10)
    assert [len(ids) for ids in found["completion_ids"]] == [2, 4, 4]
    assert (found["clipped"], found["num_cut"]) == ([False, True, False], 1)
    found = read(row, max_length=10, max_completion_length=3)
    assert [len(ids) for ids in found["completion_ids"]] == [2, 3, 3]
    found = read(row, max_length=10, mask_truncated=True)
    assert found["teacher_rewards"] == [0.0, None, 2.0]


def test_responses_that_are_left_out():
    row = {"prompt_ids": [1], "completion_ids": [[3], [], [4], [5]], "teacher_rewards": [0.0, 1.0, None, 2.0]}
    found = read(row)
    assert found["teacher_rewards"] == [0.0, None, None, 2.0]
    assert found["num_live"] == 2


GOOD = {"prompt_ids": [1], "completion_ids": [[3], [4]], "teacher_rewards": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_rewards": [0.0, math.nan]}, "row 7: teacher_rewards must be finite.*got nan for response 1"),
        ({"teacher_rewards": [0.0, -math.inf]}, "row 7: teacher_rewards must be finite.*got -inf"),
        ({"teacher_rewards": [0.0]}, "row 7: teacher_rewards.*2 completions, 1 teacher_rewards"),
        ({"finish_reasons": ["stop"]}, "row 7: .*2 completions, 2 teacher_rewards and 1 finish_reasons"),
        ({"teacher_rewards": None}, r"row 7: a row must have teacher_rewards \(or rewards, scores, ratings\), got the columns prompt_ids"),
        ({"completion_ids": None}, "row 7: a row must have completions or completion_ids"),
        ({"prompt_ids": None}, "row 7: a row must have prompt or prompt_ids"),
        ({"prompt_ids": None, "prompt": "one"}, "row 7: prompt is text, which needs a processing_class"),
        ({"prompt_ids": []}, "row 7: prompt must have at least one token"),
        ({"prompt_ids": [1] * 8}, "row 7: prompt must leave room for a response in max_length=8 tokens, got 8"),
        ({"completion_ids": [[3], [99]]}, "row 7: completion_ids must lie in 0..39, got 99"),
        ({"prompt_ids": [-1]}, "row 7: prompt_ids must lie in 0..39, got -1"),
        ({"prompt_ids": "23"}, "row 7: prompt_ids must be a list of token ids, got '23'"),
        ({"prompt_ids": ["2"]}, "row 7: prompt_ids must hold integers, got '2'"),
        ({"completion_ids": [[3], None]}, "row 7: completion_ids must be lists of token ids, one a response, got None"),
        ({"completion_ids": [3, 4]}, "row 7: completion_ids must be lists of token ids, one a response, got 3"),
        ({"teacher_rewards": 0.5}, "row 7: teacher_rewards must be a list with one value for each response, got 0.5"),
        ({"teacher_rewards": ["0.5", "1"]}, "row 7: teacher_rewards must be finite.*got '0.5' for response 0"),
        ({"teacher_rewards": [0.0, 1e39]}, r"row 7: teacher_rewards must be finite in float32.*got 1e\+39 for response 1"),
        ({"finish_reasons": "stop"}, "row 7: finish_reasons must be a list"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        read({**GOOD, **change}, max_length=8, vocabulary=40)


def test_bad_conversations(tokenizer):
    answer = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="one assistant message"):
        read({"prompt": "one", "completions": [answer], "teacher_rewards": [1.0]}, tokenizer=tokenizer)
    for completions in (["two", None], ["two", 3], ["two", [{"role": "assistant"}]]):
        with pytest.raises(ValueError, match="row 7: a completion must be a text or a list of one assistant message, got"):
            read({"prompt": "one", "completions": completions, "teacher_rewards": [1.0, 2.0]}, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="row 7: completions must be a list with one value for each response, got '23'"):
        read({"prompt": "one", "completions": "23", "teacher_rewards": [1.0, 2.0]}, tokenizer=tokenizer)
    for prompt in (3, [3], [{"content": "x"}], []):
        with pytest.raises(ValueError, match="row 7: prompt must be a text or a list of messages"):
            read({"prompt": prompt, "completions": ["two"], "teacher_rewards": [1.0]}, tokenizer=tokenizer)
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ValueError, match="row 7: prompt must be one that the chat template takes, which says 'no such role'"):
        read({"prompt": [{"role": "x", "content": "y"}], "completions": ["two"], "teacher_rewards": [1.0]}, tokenizer=picky)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="tokenizer with an EOS token"):
        read({"prompt": "one", "completions": ["two"], "teacher_rewards": [1.0]}, tokenizer=endless)


def test_what_was_dropped_and_cut_is_counted(caplog):
    one = {**GOOD, "teacher_rewards": [1.0, None]}
    long = {**GOOD, "completion_ids": [[3] * 9, [4] * 9]}
    with caplog.at_level(logging.WARNING, "pad_fast"):
        found = prepare_dataset([GOOD, one, long, one], RowReader(max_length=8))
    assert found["prompt_ids"] == [[1], [1]]
    assert "2 responses were cut" in caplog.text
    assert "dropped 2 of 4 rows with fewer than 2 live responses" in caplog.text
    with pytest.raises(ValueError, match="got none in 2 rows"):
        prepare_dataset([one, one], RowReader())
    with pytest.raises(ValueError, match="eval_dataset must not be empty"):
        prepare_dataset([], RowReader(), name="eval")
    with pytest.raises(ValueError, match="must have a length, got IterableDataset"):
        prepare_dataset(Dataset.from_list([GOOD]).to_iterable_dataset(), RowReader())
    with pytest.raises(ValueError, match="row 1: teacher_rewards must be finite"):
        prepare_dataset([GOOD, {**GOOD, "teacher_rewards": [0.0, math.inf]}], RowReader())
    for wrong in (0.5, ["a", "b"]):  # Arrow would refuse such a column, with no word of the row
        with pytest.raises(ValueError, match="row 1: teacher_rewards must be"):
            prepare_dataset([GOOD, {**GOOD, "teacher_rewards": wrong}], RowReader())


def test_types_do_not_depend_on_the_first_rows():
    """datasets writes 1,000 rows at a time, and takes the types of a new column from the first of them."""
    dead = {"prompt_ids": [1], "completion_ids": [[], []], "ratings": [0.0, 1.0]}
    assert len(prepare_dataset([dead] * 1001 + [{**dead, "completion_ids": [[3], [4]]}], RowReader())) == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e300])
def test_the_collator_takes_finite_rewards_alone(bad):
    """Rows that another hand prepared; a NaN is no mask."""
    row = {"prompt_ids": [1], "completion_ids": [[2], [3], [4]], "teacher_rewards": [0.0, None, bad], "clipped": [False] * 3}
    with pytest.raises(ValueError, match=r"finite in float32 or None, got \S+ for response 2 of row 1 of a batch"):
        PADCollator()([{**row, "teacher_rewards": [0.0, 1.0, 2.0]}, row])


def test_batches():
    rows = [
        {"prompt_ids": [5, 6], "completion_ids": [[7, 8], [9]], "teacher_rewards": [0.5, 1.5], "clipped": [True, False]},
        {
            "prompt_ids": [1],
            "completion_ids": [[2], [3], [3, 4, 5]],
            "teacher_rewards": [0.0, None, -1.0],
            "clipped": [False, True, False],
        },
    ]
    batch = PADCollator()(rows)
    assert next(iter(batch)) == "teacher_rewards"
    assert batch["teacher_rewards"].tolist() == [[0.5, 1.5, 0.0], [0.0, 0.0, -1.0]]
    assert batch["mask"].tolist() == [[True, True, False], [True, False, True]]
    assert batch["lengths"].tolist() == [[2, 1, 0], [1, 1, 3]]
    assert batch["clipped"].tolist() == [[True, False, False], [False, True, False]]
    (part,) = batch["slices"]
    assert part["input_ids"].tolist() == [[5, 6, 7], [5, 6, 0], [1, 0, 0], [1, 3, 4]]  # live responses, less their last tokens
    assert part["rows"].tolist() == [1, 2, 4, 6, 9, 10, 11]
    assert part["labels"].tolist() == [7, 8, 9, 2, 3, 4, 5]
    assert part["response_ids"].tolist() == [0, 0, 1, 3, 5, 5, 5]
    assert batch["num_tokens"] == 13


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
    args = make_args(tmp_path, per_device_train_batch_size=6, learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, **options)
    trainer = PADTrainer(model, args, rows, optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None))
    trainer.train()

    beta, normalize, temperature = args.beta, args.normalize, args.temperature
    losses = []
    for row in rows:
        rewards = []
        kept = [(ids, reward) for ids, reward in zip(row["completion_ids"], row["teacher_rewards"], strict=True) if reward is not None]
        for ids, _ in kept:
            logits = twin(input_ids=torch.tensor([row["prompt_ids"] + ids])).logits[0, len(row["prompt_ids"]) - 1 : -1]
            logps = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
            rewards.append(logps.mean() if normalize == "mean" else logps.sum())
        student, teacher = torch.stack(rewards)[None], torch.tensor([[reward for _, reward in kept]])
        if args.loss == "vpd":
            losses.append(vanilla_preference_loss(student, teacher, beta=beta, group_size=2, group_reduction="sum"))
        else:
            extra = {"divergence": args.divergence, "teacher_beta": args.teacher_beta}
            losses.append(probabilistic_preference_loss(student, teacher, beta=beta, **extra))
    loss = torch.stack(losses).mean()
    loss.backward()
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    wanted = {name: parameter.detach() - parameter.grad for name, parameter in twin.named_parameters()}
    assert_same(parameters(model), wanted, rtol=1e-4, atol=1e-6)


PLAIN = {"optim": "sgd", "learning_rate": 0.3, "num_train_epochs": 2, "logging_steps": 1}  # Adam would hide a wrong scale


def test_accumulation_does_not_change_the_mean(tmp_path):
    """10 rows in steps of 6 and 4, micro-batches of 6, of 3 (the last one of 1), and of 1, with different numbers of live prompts."""
    rows = make_rows(10, seed=3)
    runs = {}
    for size, accumulation in ((6, 1), (3, 2), (1, 6)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, **PLAIN}
        trainer = trained(tmp_path, rows, collator=SomeDead(), **options)
        runs[size] = parameters(trainer.model), [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(runs[6][1]) == 4
    for size in (3, 1):
        assert_same(runs[size][0], runs[6][0], rtol=1e-3, atol=2e-5)
        assert runs[size][1] == pytest.approx(runs[6][1], rel=1e-3)
    assert max((runs[6][0][name] - value).abs().max().item() for name, value in parameters(make_model()).items()) > 1e-2


RANKS = """
import os, sys, torch
sys.path.insert(0, {folder!r})
torch.set_num_threads(1)
from test_training import *
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
    for part in (*model.model.layers, model.lm_head, model):  # a head of its own is gathered for its own call alone
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    batch = PADCollator()(list(prepare_dataset(make_rows(4, seed=torch.distributed.get_rank()), RowReader())))
    for twin in (model, whole):
        twin(**batch["slices"][0], num_responses=batch["mask"].numel()).square().sum().backward()
    for (name, found), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.distributed.all_reduce(wanted.grad)
        mean = wanted.grad / torch.distributed.get_world_size()
        torch.testing.assert_close(found.grad.full_tensor(), mean, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow  # two interpreters that import everything
def test_two_ranks_are_one(tmp_path):
    # in slices, more of them on one rank than on the other
    options = {"per_device_train_batch_size": 3, "ddp_backend": "gloo", "max_tokens_per_step": 24, **PLAIN}
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(folder=str(Path(__file__).parent), out=str(tmp_path), options=options))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, history, metrics = torch.load(tmp_path / "found.pt")
    trainer = trained(tmp_path, make_rows(12, seed=3), collator=SomeDead(), per_device_train_batch_size=6, **PLAIN)
    assert_same(found, parameters(trainer.model), rtol=1e-3, atol=2e-5)
    for ours, theirs in zip(trainer.state.log_history[:-1], history[:-1], strict=True):
        for name in {"loss", "grad_norm", *NAMES} & set(ours):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name
    alone = PADTrainer(make_model(), make_args(tmp_path), None, make_rows(7)).evaluate()
    for name in NAMES:  # 7 rows on two ranks: the row that pads the last batch is not counted twice
        assert metrics[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-5), name


def test_dead_prompts_are_not_counted():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False], [True, True, True]])
    assert live_prompts(mask).item() == 2


# sharing and slices


def test_twenty_steps_are_the_same_shared_or_not_whole_or_in_slices(tmp_path):
    rows, curves, read = make_rows(20, seed=5), {}, {}
    options = {**PLAIN, "per_device_train_batch_size": 4, "num_train_epochs": 4, "activation_checkpointing": False}
    for share, limit in ((True, None), (False, None), (True, 30), (False, 30)):
        model, tokens = make_model(), []
        trainer = PADTrainer(model, make_args(tmp_path, share_prefix=share, max_tokens_per_step=limit, **options), rows, rows)
        assert trainer.data_collator.layout == ("shared" if share else "packed")
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, out, tokens=tokens: tokens.append(inputs[0].numel()))
        trainer.train()
        read[share, limit] = list(tokens)
        lines = [line for line in trainer.state.log_history if "loss" in line]
        evaluated = trainer.evaluate()
        curves[share, limit] = [[line[name] for name in ("loss", "grad_norm", *NAMES) if name in line] for line in lines]
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

    def saved_rows(memory_budget, *sizes, own=budget.saved_rows):
        budgets.append(memory_budget)
        return own(memory_budget, *sizes)

    monkeypatch.setattr(budget, "saved_rows", saved_rows)
    (args,) = transformers.HfArgumentParser(PADConfig).parse_args_into_dataclasses(["--memory_budget", str(given)])
    assert head_budget(args) == head_budget(make_args(tmp_path, memory_budget=given))
    trained(tmp_path, make_rows(3), memory_budget=given, max_steps=1)
    assert budgets[-1] == ("auto" if given == "auto" else int(given))  # after the trial's


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"bf16": True}, {"gradient_accumulation_steps": 2}])
def test_slices_go_with_everything(options, tmp_path):
    rows, found = make_rows(12, seed=3), []
    for limit in (None, 30):
        size = {"per_device_train_batch_size": 3, "max_tokens_per_step": limit}
        trainer = trained(tmp_path, rows, collator=SomeDead(), **{**PLAIN, **size, "num_train_epochs": 1, **options})
        found.append((parameters(trainer.model), [line["loss"] for line in trainer.state.log_history if "loss" in line]))
    tolerance = {"rtol": 0.1, "atol": 2e-2} if "bf16" in options else {"rtol": 1e-3, "atol": 2e-5}
    assert_same(found[1][0], found[0][0], **tolerance)
    assert found[1][1] == pytest.approx(found[0][1], rel=tolerance["rtol"])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
def test_a_compiled_student_shares_prompts(tmp_path):
    rows, losses = make_rows(6), []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        trainer = trained(tmp_path, rows, per_device_train_batch_size=3, share_prefix=True, **PLAIN, **options)
        assert trainer.data_collator.layout == "shared"
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_one_long_group_trains_where_one_response_fits(tmp_path):
    """64 responses; no forward with a gradient holds more than a prompt and the few that fit beside it."""
    row = {
        "prompt_ids": [3] * 8,
        "completion_ids": [[i % VOCABULARY] * 20 for i in range(64)],
        "teacher_rewards": [i / 64 for i in range(64)],
    }
    model, sizes = make_model(), []
    options = {"max_tokens_per_step": 50, "loss": "vpd", "max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 1}
    trainer = PADTrainer(model, make_args(tmp_path, **options), [row, row])
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].numel()) if torch.is_grad_enabled() else None
    )
    before = parameters(model)
    trainer.train()
    assert len(sizes) == 32
    assert max(sizes) == 8 + 2 * 19
    assert any(not torch.equal(before[name], value) for name, value in parameters(model).items())


def test_sharing_is_refused_or_given_up_with_a_reason(tmp_path, caplog):
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match=r"share_prefix=True, but MambaForCausalLM cannot share .* carries a state"):
        PADTrainer(transformers.MambaForCausalLM(config), make_args(tmp_path, share_prefix=True), make_rows(3))
    with caplog.at_level(logging.WARNING, "pad_fast"):
        trainer = PADTrainer(transformers.MambaForCausalLM(config), make_args(tmp_path), make_rows(3))
    assert trainer.data_collator.layout == "padded"
    assert "MambaForCausalLM shares no prompt among its responses: mamba carries a state" in caplog.text
    given = PADTrainer(make_model(), make_args(tmp_path), make_rows(3), data_collator=PADCollator("padded"))
    assert given.data_collator.layout == "padded"


def test_sharing_with_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    found = []
    for share in (True, False):
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM", init_lora_weights=False)
        args = make_args(tmp_path, per_device_train_batch_size=3, share_prefix=share, **PLAIN)
        trainer = PADTrainer(make_model(), args, make_rows(6), peft_config=config)
        trainer.train()
        found.append(parameters(trainer.model))
    assert_same(found[0], found[1], rtol=1e-3, atol=2e-5)


# precision, memory, adapters


def test_bfloat16_autocast_keeps_float32_parameters_and_gradients(tmp_path):
    rows, seen = make_rows(6), {}

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.update({name: parameter.grad.dtype for name, parameter in model.named_parameters()})

    model, hidden = make_model(), []
    args = make_args(tmp_path, per_device_train_batch_size=3, bf16=True, logging_steps=1)
    trainer = PADTrainer(model, args, rows, callbacks=[Look()])
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: hidden.append(output.dtype))
    trainer.train()
    assert set(hidden) == {torch.bfloat16}
    assert set(seen.values()) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    whole = trained(tmp_path, rows, per_device_train_batch_size=3, logging_steps=1)
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (trainer, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_checkpointed_activations_change_nothing(tmp_path):
    rows, called, found = make_rows(6), [], {}
    for on in (True, False):
        trainer = PADTrainer(make_model(), make_args(tmp_path, per_device_train_batch_size=3, activation_checkpointing=on), rows)
        trainer.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, on=on: called.append(on))
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
    args = make_args(tmp_path, per_device_train_batch_size=3, activation_checkpointing=checkpointing)
    trainer = PADTrainer(model, args, make_rows(6), peft_config=config)
    trainer.train()
    after = parameters(trainer.model)
    assert all(after[name].abs().max() > 0 for name in after if "lora_B" in name)  # they start at zero
    assert_same({name.removeprefix("base_model.model."): value for name, value in after.items()}, before, rtol=0, atol=0)
    trainer.save_model(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
    assert score_responses(again, [[3]], [[[4, 5]]]) == score_responses(trainer.model, [[3]], [[[4, 5]]])
    with pytest.raises(ValueError, match="adapter on its output head"):
        PADTrainer(make_model(), args, make_rows(6), peft_config=peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))


def test_dropout_is_off_unless_asked_for(tmp_path):
    rows, options = make_rows(6), {"per_device_train_batch_size": 6, "max_steps": 1, "logging_steps": 1}

    def loss(rate, **more):
        model = make_model(attention_dropout=rate)
        return trained(tmp_path, rows, model, **options, **more).state.log_history[0]["loss"]

    assert loss(0.5) == loss(0.0)
    assert loss(0.5, disable_dropout=False) != loss(0.0)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).train()
    disable_dropout(gpt2)
    with torch.no_grad():
        assert torch.equal(gpt2(torch.arange(5)[None]).logits, gpt2(torch.arange(5)[None]).logits)


# metrics


def test_metrics(tmp_path):
    rows, model = make_rows(7, seed=1), make_model()
    trainer = PADTrainer(
        model, make_args(tmp_path, learning_rate=0.0, per_device_train_batch_size=2, logging_steps=4), rows, rows, callbacks=[]
    )
    trainer.train()
    line = trainer.state.log_history[0]
    metrics = trainer.evaluate()

    rewards = score_responses(model, [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows])
    best, worst, margins, agreement, losses, lengths, clipped, logps = [], [], [], [], [], [], [], []
    for row, group in zip(rows, rewards, strict=True):
        live = [i for i, reward in enumerate(row["teacher_rewards"]) if reward is not None]
        student, teacher = [group[i] for i in live], [row["teacher_rewards"][i] for i in live]
        best.append(student[teacher.index(max(teacher))])
        worst.append(student[teacher.index(min(teacher))])
        margins.append(best[-1] - worst[-1])
        agreement.append(ranking_agreement(torch.tensor([student]), torch.tensor([teacher])))
        losses.append(probabilistic_preference_loss(torch.tensor([student]), torch.tensor([teacher]), beta=2.0).item())
        lengths.append([len(row["completion_ids"][i]) for i in live])
        clipped.append([row["finish_reasons"][i] == "length" for i in live])
        logps.append(sum(student) / len(student))

    def mean(values):
        return sum(values) / len(values)

    wanted = {
        "loss": mean(losses),
        "rewards/chosen": mean(best),
        "rewards/rejected": mean(worst),
        "rewards/margins": mean(margins),
        "rewards/accuracies": mean([found["pair_accuracy"].item() for found in agreement]),
        "ranking/kendall_tau": mean([found["kendall_tau"].item() for found in agreement]),
        "ranking/top1": mean([found["top1"].item() for found in agreement]),
        "logps/mean": mean(logps),
        "completions/mean_length": mean([mean(group) for group in lengths]),
        "completions/min_length": min(min(group) for group in lengths),
        "completions/max_length": max(max(group) for group in lengths),
        "completions/clipped_ratio": mean([mean(group) for group in clipped]),
        "loss/saturated": mean([loss > 0.95 * math.log(2) for loss in losses]),
    }
    assert set(wanted) == set(NAMES)
    for name, value in wanted.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-4), name
        if name != "loss":  # Trainer's own is the mean over steps, and the last of these has one prompt
            assert line[name] == pytest.approx(value, rel=1e-4), name
    assert line["perf/tokens_per_second"] > 0
    assert "perf/tokens_per_second" not in metrics


def test_evaluation_during_training_and_several_sets(tmp_path):
    rows = make_rows(6)
    args = make_args(tmp_path, per_device_train_batch_size=3, eval_strategy="epoch", num_train_epochs=2)
    trainer = PADTrainer(make_model(), args, rows, {"easy": rows[:2], "hard": rows[2:]})
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_easy_loss" in line]
    assert len(lines) == 2
    assert lines[1]["eval_easy_loss"] < lines[0]["eval_easy_loss"]
    assert any("eval_hard_ranking/kendall_tau" in line for line in trainer.state.log_history)


def test_datasets_that_are_given_later(tmp_path):
    rows, later = make_rows(4), make_rows(6, seed=5)
    trainer = PADTrainer(make_model(), make_args(tmp_path, per_device_eval_batch_size=4), rows, later)
    wanted = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(later)["eval_loss"] == wanted
    assert trainer.evaluate(Dataset.from_list(later))["eval_loss"] == wanted
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == wanted  # prepared before
    assert trainer.evaluate(DatasetDict(a=Dataset.from_list(later)))["eval_a_loss"] == wanted
    assert trainer.predict(later).metrics["test_loss"] == wanted
    with pytest.raises(ValueError, match="row 1: teacher_rewards must be"):
        trainer.evaluate([rows[0], {**rows[0], "teacher_rewards": 1.0}])
    splits = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(later))
    with pytest.raises(ValueError, match="train_dataset must be one dataset, got several: 'train', 'test'"):
        PADTrainer(make_model(), make_args(tmp_path), splits)


def test_tied_weights_are_not_missing_from_a_checkpoint(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", told.append)
    model = partial(make_model, tie_word_embeddings=True)
    trained(tmp_path, make_rows(4), model=model(), save_strategy="steps", save_steps=1, max_steps=1)
    trainer = PADTrainer(model(), make_args(tmp_path, max_steps=2), make_rows(4))
    trainer.train(resume_from_checkpoint=True)
    assert not [text for text in told if "missing keys" in str(text)]
    assert trainer.model.lm_head.weight is trainer.model.model.embed_tokens.weight


def test_a_saturated_loss_is_told_once(tmp_path, caplog):
    rows = make_rows(6)
    for row in rows:
        row["teacher_rewards"] = [None if reward is None else 10.0 * i for i, reward in enumerate(row["teacher_rewards"])]
    options = {"per_device_train_batch_size": 3, "logging_steps": 1, "beta": 100.0, "learning_rate": 0.0}
    with caplog.at_level(logging.WARNING, "pad_fast"):
        trainer = trained(tmp_path, rows, num_train_epochs=2, **options)
    assert trainer.state.log_history[0]["loss/saturated"] > 0.5
    assert caplog.text.count("smaller teacher_beta") == 1
    assert "loss/saturated" not in trained(tmp_path, rows, divergence="kl", **options).state.log_history[0]


# checkpoints


@pytest.mark.parametrize("options", [{}, {"method": "sampled", "num_samples": 8, "disable_dropout": False}])
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
        {"prompt": [{"role": "user", "content": "one"}], "completions": ["two", "three"], "teacher_rewards": [0.0, 1.0]},
        {"prompt": [{"role": "user", "content": "two"}], "completions": ["one", "three"], "teacher_rewards": [1.0, 0.0]},
    ]
    trainer = PADTrainer(str(tmp_path / "student"), make_args(tmp_path / "out", max_steps=2), rows)
    trainer.train()
    trainer.save_model()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(parameters(again), parameters(trainer.model), rtol=0, atol=0)
    assert again.config.use_cache is True
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template
    half = PADTrainer(str(tmp_path / "student"), make_args(tmp_path / "out", model_init_kwargs={"dtype": "bfloat16"}), rows)
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
    trainer, batch = PADTrainer(make_model(), make_args(tmp_path), make_rows(2)), {"teacher_rewards": torch.tensor([[1.001]])}
    config = SimpleNamespace(dtype=lambda: torch.bfloat16)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", SimpleNamespace(hf_ds_config=config), raising=False)
    found = trainer._prepare_inputs({**batch, "other": batch["teacher_rewards"]})
    assert (found["other"].dtype, found["teacher_rewards"].dtype) == (torch.bfloat16, torch.float32)


def test_an_unread_architecture_trains_on_whole_logits(tmp_path, monkeypatch, caplog):
    from pad_fast.models import heads

    monkeypatch.setattr(heads, "_unfit_weight", lambda *_: "of this test")
    rows = make_rows(6)
    slow = trained(tmp_path, rows, per_device_train_batch_size=3)
    assert "takes whole logits, which cost memory: of this test" in caplog.text
    monkeypatch.undo()
    fast = trained(tmp_path, rows, per_device_train_batch_size=3)
    assert_same(parameters(slow.model), parameters(fast.model), rtol=1e-4, atol=1e-5)


def test_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="args must be a PADConfig, got TrainingArguments"):
        PADTrainer(make_model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), make_rows(2))
    args = make_args(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"does not run under torch.nn.DataParallel, got 2 GPUs in one process"):
        PADTrainer(make_model(), args, make_rows(2))
    with pytest.raises(ValueError, match="row 0: prompt must leave room for a response in max_length=64"):
        PADTrainer(make_model(), make_args(tmp_path), [{**GOOD, "prompt_ids": [1] * 64}])  # the model's window is the smaller limit


# the examples


@pytest.mark.parametrize("name", ["bare_loop", "listwise_losses", "transformers_trainer"])
def test_examples(name):
    """They run, and the student comes to rank groups that it was not trained on as the teacher does."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    before, after = runpy.run_path(str(path))["main"]()
    assert before < 0.4
    assert after > 0.8


def example_output(code: str) -> tuple[int, str, str]:
    folder = Path(__file__).parents[1] / "examples"
    done = subprocess.run([sys.executable, "-c", code, str(folder / "trl_trainer.py")], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_example_in_trl():
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    status, output, errors = example_output("import runpy, sys; print('taus', *runpy.run_path(sys.argv[1])['main']())")
    assert status == 0, errors
    before, after = map(float, output.rpartition("taus")[2].split())
    assert before < 0.4
    assert after > 0.8


def test_the_example_in_trl_says_what_it_needs():
    status, _, errors = example_output("import runpy, sys; sys.modules['trl'] = None; runpy.run_path(sys.argv[1])")
    assert status == 1
    assert errors.strip().endswith("this example needs TRL, which is not installed: pip install trl")
