"""Whether a tokenizer is the one of a model, whose ids are other tokens to every other model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from pad_fast.models.causal_lm import causal_lm

TEXT = "The quick brown fox, 1,234 of them: what is 17 * 23? Déjà vu; def f(x): return x**2\n"


def check_tokenizer(model: nn.Module, tokenizer: Any) -> None:
    """Raise ValueError if a text becomes ids that are other tokens in the model's own tokenizer.

    That is the one in the folder, or under the name, that the model was loaded from. Where none is
    on this disk nothing is checked. Tokens that were added or renamed may differ, so that the check
    is whether most ids of a sentence do.
    """
    name = str(getattr(causal_lm(model), "name_or_path", "") or "")
    if tokenizer is None or not name or getattr(tokenizer, "name_or_path", None) == name:
        return
    own = _on_disk(name, _changed(name))
    if own is None:
        return
    ids = sorted(set(tokenizer(TEXT, add_special_tokens=False).input_ids))
    other = [(i, _token(tokenizer, i), _token(own, i)) for i in ids]
    other = [found for found in other if found[1] != found[2]]
    if 2 * len(other) > len(ids):
        number, given, wanted = other[0]
        raise ValueError(
            f"tokenizer must be the model's own: {len(other)} of the {len(ids)} ids that it has "
            f"for a sentence are other tokens in the tokenizer of {name}, such as {number}, which "
            f"is {given!r} here and {wanted!r} there; take AutoTokenizer.from_pretrained({name!r})"
        )


def _token(tokenizer: Any, number: int) -> str | None:
    return str(tokenizer.convert_ids_to_tokens(number)) if number < len(tokenizer) else None


def _changed(name: str) -> int:
    """When the tokenizer in a folder was written last; 0 for a name of the hub."""
    file = Path(name) / "tokenizer.json"
    return file.stat().st_mtime_ns if file.is_file() else 0


@lru_cache(maxsize=4)
def _on_disk(name: str, changed: int) -> Any:
    """The tokenizer of a folder or of the hub's cache; None without one. Nothing is downloaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception:  # no files, code of its own, ...: there is nothing to compare with
        return None
