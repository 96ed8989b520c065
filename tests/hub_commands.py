"""Lines of the hub's command-line tool, read by its own parser; nothing is downloaded."""

from __future__ import annotations

import shlex
from typing import Any
from unittest import mock

from huggingface_hub.cli import download
from huggingface_hub.cli.hf import app


def asked_of_the_hub(command: str) -> dict[str, Any]:
    """The arguments with which ``hf download ...`` asks for the files of a repository."""
    hf, *words = shlex.split(command)
    assert hf == "hf"
    with mock.patch.object(download, "snapshot_download", return_value="folder") as asked:
        app(words, standalone_mode=False)
    return dict(asked.call_args.kwargs)
