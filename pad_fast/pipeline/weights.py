"""What distinguishes the numbers of one model from those of all others, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pad_fast.files.checksums import file_digest
from pad_fast.files.weights import weight_files

# What a configuration says of where the model is from, and not of what it computes.
NOT_COMPUTING = ("_name_or_path", "_commit_hash", "transformers_version")


def weights_digest(path: str, config: Any, *, served: bool = False) -> str:
    """The commit of a model on the hub, or a hash over all of a folder's weights.

    Where the weights are elsewhere, it is a hash over the folder's place and its configuration.

    Every byte counts: a model that an adapter was merged into has the names, the sizes and often
    both ends of the files of its base. Copies and renamed folders have one hash.

    Args:
        path: a folder, or a name on the hub.
        config: its transformers configuration.
        served: whether a server runs it, and the folder need hold no weights.

    Raises:
        ValueError: the folder holds no weights, and no server runs it.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path} at {getattr(config, '_commit_hash', None)}"
    files = weight_files(folder)
    if not files and not served:
        raise ValueError(
            f"score_cache: {folder} holds no weights, neither .safetensors nor .bin, so its scores "
            "cannot be told from those of other models; leave score_cache out"
        )
    kept = {name: value for name, value in config.to_dict().items() if name not in NOT_COMPUTING}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    if not files:
        digest.update(str(folder.resolve()).encode())
    with ThreadPoolExecutor() as pool:
        for content in pool.map(file_digest, files):
            digest.update(content.encode())
    return digest.hexdigest()
