"""Small worlds for tests of a run: random models with real tokenizers, and prompts for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pad_fast.pipeline.config import RunConfig

CHARACTERS = [*string.ascii_letters, *string.digits, *" .?:+=\n'"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLACES = {
    "student": "./student",
    "teacher": "./teacher",
    "prompts": "./train.jsonl",
    "heldout": "./heldout.jsonl",
}
ROLES = ["<|user|>", "<|assistant|>", "<|system|>"]


def character_tokenizer(
    characters: list[str] = CHARACTERS, template: str | None = TEMPLATE
) -> PreTrainedTokenizerFast:
    """A token for each character, in the order given, after <pad>, <end>, <unk> and the roles."""
    special = ["<pad>", "<end>", "<unk>", *ROLES]
    vocabulary = {token: index for index, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=ROLES,
    )
    fast.chat_template = template
    return fast


def save_model(
    folder: Path,
    seed: int,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    window: int = 256,
    width: int = 16,
) -> Path:
    """A random Llama with sharp predictions, so that rankings have an order and responses end."""
    tokenizer = tokenizer or character_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=window,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int, start: int = 0) -> Path:
    """Sums with their answers, as JSON lines."""
    rows = [
        {"prompt": f"{n}+1=?", "answer": str(n + 1), "skill": "odd" if n % 2 else "even"}
        for n in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_config(folder: Path, *, models: bool = True, **changes: object) -> Path:
    """The config of a run of seconds on the models and prompts in ``folder``.

    ``models`` makes them first. A change to None removes a key.
    """
    if models:
        for seed, role in enumerate(("student", "teacher")):
            save_model(folder / role, seed)
        write_prompts(folder / "train.jsonl", 8)
        write_prompts(folder / "heldout.jsonl", 4, start=20)
    values = {
        **PLACES,
        "output_dir": "./run",
        "num_generations": 3,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "shard_size": 2,
        "seed": 7,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in values.items() if value is not None})
    )
    return path


def changed_config(world: Path, folder: Path, **changes: object) -> Path:
    """A config in ``folder`` for a run on the models and prompts in ``world``."""
    places = {key: str(world / place) for key, place in PLACES.items()}
    return write_config(folder, **{**places, **changes}, models=False)


def run_config(world: Path, **changes: object) -> RunConfig:
    """The settings of a run on the models in ``world``, for tests that read no prompts."""
    values: dict[str, Any] = {
        "student": str(world / "student"),
        "teacher": str(world / "teacher"),
        "prompts": "not read",
        "output_dir": "not written",
        "disable_tqdm": True,
        "num_generations": 3,
        "max_new_tokens": 6,
        "shard_size": 2,
    }
    return RunConfig(**{**values, **changes})


def response_logp(
    model: Any, prompt: list[int], response: list[int], temperature: float = 1.0
) -> float:
    """log pi(response | prompt) from complete logits in float64."""
    logits = model(torch.tensor([prompt + response])).logits[0].double()
    logits = (logits / temperature).log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(response))


def greedy_ids(model: Any, prompt: list[int], most: int = 6, end: int = 1) -> list[int]:
    """The likeliest token each time, up to and including ``end``, in a loop."""
    found: list[int] = []
    while len(found) < most and end not in found:
        logits = model(torch.tensor([prompt + found])).logits[0, -1]
        found.append(int(logits.argmax()))
    return found


def contents(run: Path) -> dict[str, str]:
    """A hash of every result. The report and the manifest are left out: they hold the time."""
    files = [
        path
        for path in run.rglob("*")
        if path.suffix in (".parquet", ".safetensors") or path.parent.name == "evaluation"
    ]
    kept = [path for path in files if path.is_file() and "teacher_cache" not in path.parts]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept
    }


def in_bfloat16(student: Path, folder: Path) -> Path:
    """A copy of a model's folder whose weights are stored in bfloat16."""
    shutil.copytree(student, folder)
    LlamaForCausalLM.from_pretrained(student, dtype=torch.bfloat16).save_pretrained(folder)
    return folder
