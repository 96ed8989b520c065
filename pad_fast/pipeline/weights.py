"""What distinguishes the numbers of one model from those of all others, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pad_fast.files.checksums import file_digest

# What a configuration says of where the model is from, and not of what it computes.
NOT_COMPUTING = ("_name_or_path", "_commit_hash", "transformers_version")


def weights_digest(path: str, config: Any) -> str:
    """The commit of a model on the hub, or a hash over all of a folder's weights.

    Every byte counts: a model that an adapter was merged into has the names, the sizes and often
    both ends of the files of its base. Copies and renamed folders have one hash.

    Args:
        path: a folder, or a name on the hub.
        config: its transformers configuration.

    Raises:
        ValueError: the folder holds no weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path} at {getattr(config, '_commit_hash', None)}"
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise ValueError(
            f"score_cache: {folder} holds no weights, neither .safetensors nor .bin, so its scores "
            "cannot be told from those of other models; leave score_cache out"
        )
    kept = {name: value for name, value in config.to_dict().items() if name not in NOT_COMPUTING}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    with ThreadPoolExecutor() as pool:
        for content in pool.map(file_digest, files):
            digest.update(content.encode())
    return digest.hexdigest()
