"""Plan the recipes for a GPU that is not here: ``--help`` lists options.

Method:

The models' configurations are written out below, and stand in files without weights: a plan reads
none. Prompts have the number and the mean length of UltraFeedback's; their words mean nothing.
The GPU is given by its memory and its rates, whose data sheet is divided by what real code reaches.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoTokenizer, Gemma2Config, LlamaConfig

from pad_fast.pipeline.arguments import parse_with
from pad_fast.plan.command import as_json, print_forecast
from pad_fast.plan.forecast import make_forecast
from pad_fast.plan.options import PlanOptions

sys.path.insert(0, str(Path(__file__).resolve().parent))

from marked_part import markdown, write_part

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "pad_fast" / "tiny_world" / "student"
RECIPES = ("gemma-2-9b-to-2b", "llama-3.1-8b-to-3.2-3b")
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
GEMMA = {"vocab_size": 256_000, "head_dim": 256, "dtype": "bfloat16"}
LLAMA = {"vocab_size": 128_256, "dtype": "bfloat16", "max_position_embeddings": 131_072}
SMALL_LLAMA = {**LLAMA, "head_dim": 128, "tie_word_embeddings": True}
MODELS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "google/gemma-2-2b-it": (Gemma2Config, (2304, 9216, 26, 8, 4), GEMMA),
    "google/gemma-2-9b-it": (Gemma2Config, (3584, 14_336, 42, 16, 8), GEMMA),
    "meta-llama/Llama-3.2-3B-Instruct": (LlamaConfig, (3072, 8192, 28, 24, 8), SMALL_LLAMA),
    "meta-llama/Llama-3.1-8B-Instruct": (LlamaConfig, (4096, 14_336, 32, 32, 8), LLAMA),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = [ROOT / "recipes" / f"{name}.yaml" for name in RECIPES]
    parser.add_argument("--recipes", nargs="+", type=Path, default=found, help="YAML files")
    parser.add_argument("--number", type=int, default=61_000, help="training prompts")
    parser.add_argument("--prompt", type=int, default=190, help="tokens of the mean prompt")
    parser.add_argument("--response", type=int, default=350, help="tokens of a typical response")
    parser.add_argument("--memory", default="80GB", help="of the GPU")
    parser.add_argument("--tflops", type=float, default=500, help="an H100 has 989 on paper")
    parser.add_argument("--bandwidth", type=float, default=2700, help="GB/s; 3,350 for an H100")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "plan.md")
    parser.add_argument("--records", type=Path, help="jsonl that gets a line for each recipe")
    return parser.parse_args()


def write_model(name: str, folder: Path) -> str:
    """A checkpoint of a configuration with a tokenizer of its own and no weights; its path."""
    target = folder / Path(name).name
    if not target.exists():
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        tokenizer.save_pretrained(target)
        kind, sizes, more = MODELS[name]
        config = kind(**dict(zip(SIZES, sizes, strict=True)), **more)
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
        config.save_pretrained(target)
        save_file({"none": torch.zeros(1)}, target / "model.safetensors")
    return str(target)


def write_prompts(path: Path, number: int, mean: int, seed: int) -> str:
    """Prompts whose lengths are spread like those of questions: most short, a few long."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            tokens = min(1500, max(4, round(draw.lognormvariate(0.0, 0.8) * mean * 0.7)))
            words = "".join(str(draw.randrange(10)) for _ in range(tokens))
            file.write(json.dumps({"prompt": f"{index} {words}"}) + "\n")
    return str(path)


def planned_recipe(recipe: Path, options: argparse.Namespace, folder: Path) -> Any:
    """The forecast of a recipe."""
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    drop = ("prompts_split", "heldout_split", "preset", "chat_template_kwargs")
    values = {name: value for name, value in values.items() if name not in drop}
    for role in ("student", "teacher"):
        values[role] = write_model(values[role], folder)
    values["prompts"] = write_prompts(folder / "train.jsonl", options.number, options.prompt, 0)
    held = values["heldout_size"]
    values["heldout"] = write_prompts(folder / "heldout.jsonl", held, options.prompt, 1)
    values["output_dir"] = str(folder / recipe.stem)
    config = folder / f"{recipe.stem}.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    given = {
        "device_memory": options.memory,
        "device_tflops": options.tflops,
        "device_bandwidth": options.bandwidth,
        "response_length": options.response,
        "num_processes": options.processes,
        "accelerate_config": "fsdp2",
    }
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return make_forecast(*parse_with("plan", [str(config), *flags], PlanOptions))


def table_rows(name: str, forecast: Any) -> list[tuple[str, ...]]:
    """Rows of the document: each piece of a recipe, and their sum."""
    ranks = forecast.case.ranks.number
    rows = [
        (
            f"{name}: {piece.title}",
            f"{piece.tokens:,}" if piece.tokens else "",
            "" if piece.peak is None else f"{piece.peak / 2**30:.1f}",
            "" if piece.seconds is None else f"{piece.seconds * ranks / 3600:.2f}",
        )
        for piece in forecast.pieces
    ]
    fits = "" if forecast.fits else " (does not fit)"
    return [*rows, (f"**{name}: all of it{fits}**", "", "", f"**{forecast.device_hours:.1f}**")]


def main() -> None:
    options, console = parse(), Console(width=110)
    folder = Path(tempfile.mkdtemp(prefix="recipes-"))
    rows = []
    try:
        for recipe in options.recipes:
            forecast = planned_recipe(recipe, options, folder)
            console.rule(recipe.stem)
            print_forecast(forecast, console)
            rows += table_rows(recipe.stem, forecast)
            if options.records:
                with options.records.open("a", encoding="utf-8") as file:
                    line = json.dumps({"recipe": recipe.stem, **as_json(forecast)})
                    file.write(line.replace(f"{folder}/", "") + "\n")
    finally:
        shutil.rmtree(folder)
    headings = ("work", "tokens", "GiB", "hours of one GPU")
    write_part(options.table, "recipes", markdown(headings, rows))


if __name__ == "__main__":
    main()
