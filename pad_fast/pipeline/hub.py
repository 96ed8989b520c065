"""Questions to the Hugging Face hub that a run asks before it begins, each within seconds.

The libraries that load models and datasets try again for 23 seconds where there is no network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers, get_session

SECONDS = 5.0  # for one answer
ERRORS = {401: "the token is wrong, or none was given", 403: "the token gives no access to it"}


def may_be_name(source: str) -> bool:
    """Whether a text can be a name on the hub, ``name`` or ``owner/name``, and no path."""
    return re.fullmatch(r"(?:\w[\w.-]*/)?\w[\w.-]*", source) is not None


def no_answer(error: Exception) -> str:
    """A failed question in words."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the hub at {constants.ENDPOINT} gives no answer: {reason}"


def problem(kind: str, name: str, revision: str | None = None) -> str | None:
    """Why a model or dataset of the hub cannot be had; None if it can, or may be in the cache.

    Args:
        kind: "models" or "datasets".
        name: its name on the hub.
        revision: a branch, tag or commit.
    """
    if constants.HF_HUB_OFFLINE or _is_cached(kind, name, revision):
        return None  # the library that loads it answers from its cache, at once
    place = f"{kind}/{name}" + (f"/revision/{revision}" if revision else "")
    try:
        answer = _ask(place, token=None)
    except Exception as error:  # from whichever client the hub's library uses
        return no_answer(error)
    if answer.status_code in (401, 404):  # the hub says 401 about what does not exist
        at = f" with the revision {revision}" if revision else ""
        return f"the hub has none of this name{at}, or hides it: log in with `hf auth login`"
    return ERRORS.get(answer.status_code)


def push_problem(token: str | None) -> str | None:
    """Why nothing can be pushed to the hub; None if a token is known that may write."""
    try:
        answer = _ask("whoami-v2", token=token or True)
    except Exception as error:  # from whichever client the hub's library uses
        return no_answer(error)
    if answer.status_code != 200:
        return ERRORS.get(answer.status_code, f"the hub answers with status {answer.status_code}")
    role = answer.json().get("auth", {}).get("accessToken", {}).get("role")
    return "the token may only read" if role == "read" else None


def _ask(place: str, token: str | bool | None) -> Any:
    return get_session().get(
        f"{constants.ENDPOINT}/api/{place}",
        headers=build_hf_headers(token=token),
        timeout=SECONDS,
    )


def _is_cached(kind: str, name: str, revision: str | None) -> bool:
    if kind == "models":
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    import datasets

    # A dataset's folder is its name in lower case with other separators.
    folder, wanted = Path(datasets.config.HF_DATASETS_CACHE), _letters(name)
    return folder.is_dir() and any(_letters(path.name) == wanted for path in folder.iterdir())


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
