"""How servers are reached: with a key, and those of this machine through no proxy."""

from __future__ import annotations

import os
from typing import Any

import httpx

KEY = "PAD_FAST_SERVER_KEY"  # the environment's variable with the servers' bearer token
WANTS_KEY = {401, 403}
# HTTP_PROXY and its kin are for other machines: a proxy would look for this one at its own address.
DIRECT: dict[str, Any] = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))


def headers() -> dict[str, str]:
    """The header with the key; without one the servers are asked without."""
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def client(timeout: float) -> httpx.Client:
    """What asks one question after another."""
    return httpx.Client(headers=headers(), timeout=timeout, mounts=DIRECT)


def no_key(who: str, status: int) -> str:
    """What to do about a server that wants another key than it got."""
    got = "another one than it has" if os.environ.get(KEY) else "none"
    return (
        f"{who} wants a key and got {got} (status {status}); set {KEY} in the environment to the "
        "key that the server was started with, by --api-key or VLLM_API_KEY"
    )


def described(error: Exception) -> str:
    """An error with its kind, in a line; many of httpx's have no text."""
    return " ".join(f"{type(error).__name__} {error}".split())
