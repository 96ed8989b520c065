"""Whether files of weights and of a trainer's state are whole, as far as they show it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pad_fast.files.own_files import read_json

# What a model's folder holds and nothing that loads it reads. Cards change with what was measured.
UNREAD = ("README.md", "training_args.bin")
# The names of safetensors for data types of weights, as torch has them.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ZIP_BEGIN = b"PK\x03\x04"


def fault_of(path: Path, *, throughout: bool = False) -> str | None:
    """What is wrong with a file of weights or of state; None if nothing is to be seen.

    Args:
        path: a .safetensors file, or one that PyTorch saved.
        throughout: whether to compare every byte of PyTorch's files with their checksums, which
            ``torch.load`` does not do. Otherwise only their size and table of contents are read.
    """
    if path.stat().st_size == 0:
        return "it is empty"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return None
        except SafetensorError as error:
            return f"it is cut short or is no safetensors file ({error})"
    with path.open("rb") as stream:
        if stream.read(len(ZIP_BEGIN)) != ZIP_BEGIN:  # as PyTorch wrote before 1.6, or unknown
            return "it is no file of torch.save" if throughout else None
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() if throughout else None
    except zipfile.BadZipFile:
        return "it is cut short or is no file of torch.save"
    return None if wrong is None else f"the checksum of {wrong} in it is wrong"


def stored_as(folder: Path) -> str | None:
    """The data type of the first floating-point weights in a folder's .safetensors files, if any.

    Returns:
        Its name in torch, such as "bfloat16".
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            kinds = (weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
            found = next((FLOATS[kind] for kind in kinds if kind in FLOATS), None)
        if found is not None:
            return found
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that a model is loaded from."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def check_model_folder(folder: Path) -> None:
    """Raise ValueError if weights of a model are cut short, or if one of their parts is missing."""
    for index in sorted(folder.glob("*.index.json")):
        parts = read_json(index, "copy or download it again").get("weight_map", {})
        lost = sorted({part for part in parts.values() if not (folder / part).is_file()})
        if lost:
            raise ValueError(
                f"{folder} lacks {', '.join(lost[:3])}, which {index.name} names; copy or download "
                "it again"
            )
    for path in weight_files(folder):
        fault = fault_of(path)
        if fault is not None:
            raise ValueError(f"{path} is damaged: {fault}; copy or download it again")
