"""Questions to the Hugging Face hub that a run asks before it begins, each within seconds.

The libraries that load models and datasets try again for 23 seconds where there is no network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session

from pad_fast.files.system_errors import chain, first_line

FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
SECONDS = 5.0  # for one answer
LOG_IN = "`hf auth login`, or set HF_TOKEN"
ERRORS = {401: "the token is wrong, or none was given", 403: "the token gives no access to it"}


def may_be_name(source: str) -> bool:
    """Whether a text can be a name on the hub, ``name`` or ``owner/name``, and no path."""
    return re.fullmatch(r"(?:\w[\w.-]*/)?\w[\w.-]*", source) is not None


def hub_name(source: str | None) -> str | None:
    """The name on the hub that a setting gives; None for a file or folder, or nothing."""
    if not source or not may_be_name(source) or Path(source).exists():
        return None
    return None if Path(source).suffix in FILES else source


def no_answer(error: Exception) -> str:
    """A failed question in words."""
    return f"the hub at {constants.ENDPOINT} gives no answer: {first_line(error)}"


def no_network(kind: str, name: str, revision: str | None = None) -> str:
    """What to do about a name of the hub where the hub cannot be asked, as :func:`problem`."""
    which = " --repo-type dataset" if kind == "datasets" else ""
    which += f" --revision {revision}" if revision else ""
    return (
        f"where there is a network, `hf download {name}{which} --local-dir FOLDER`, and give the "
        "folder; what is in the cache (HF_HOME) is read with HF_HUB_OFFLINE=1"
    )


def no_access(place: str) -> str:
    """What to do about a gated model or dataset.

    Args:
        place: what follows the hub's address, such as ``google/gemma-2-2b-it``.
    """
    token = "the token in use has no access yet" if get_token() else f"then log in: {LOG_IN}"
    return (
        f"it is gated: accept its terms at {constants.ENDPOINT}/{place} with your account; {token}"
    )


def hidden(what: str) -> str:
    """What to do about a name that the hub does not have, or does not show."""
    return f"the hub has none of this {what}, or hides it: see the spelling, or log in: {LOG_IN}"


def failure(error: BaseException) -> str | None:
    """What a failed request to the hub means, and what to do; None for any other error.

    Args:
        error: as it was caught, with those that it arose from.
    """
    for each in chain(error):
        if isinstance(each, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
            why = "HF_HUB_OFFLINE is set, and" if constants.HF_HUB_OFFLINE else "no network, and"
            return f"{why} the cache lacks a file: {no_network('models', 'NAME')}"
        if isinstance(each, HfHubHTTPError):
            place = _place(str(each.response.url))
            if isinstance(each, GatedRepoError):
                return f"{place}: {no_access(place)}"
            if isinstance(each, RepositoryNotFoundError):
                return f"{place}: {hidden('name')}"
            if isinstance(each, RevisionNotFoundError):
                return f"{place}: {hidden('revision')}"
            if (words := ERRORS.get(each.response.status_code)) is not None:
                return f"{place}: {words}; log in: {LOG_IN}"
    return None


def _place(url: str) -> str:
    """The part of an address that names a model or dataset, as a browser takes it."""
    found = re.search(r"://[^/]+/(?:api/)?(?:models/)?((?:datasets/)?[\w.-]+(?:/[\w.-]+)?)", url)
    return found[1] if found else url


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
        gated = answer.status_code == 200 and bool(answer.json().get("gated"))
        if gated:  # all can read of it, but its files are only for those who accepted the terms
            answer = _ask(f"{kind}/{name}/auth-check", token=None)
    except Exception as error:  # from whichever client the hub's library uses
        return f"{no_answer(error)}; {no_network(kind, name, revision)}"
    if answer.status_code == 403 or (gated and answer.status_code != 200):
        return no_access(name if kind == "models" else f"datasets/{name}")
    if answer.status_code in (401, 404):  # the hub says 401 about what does not exist
        return hidden(f"name with the revision {revision}" if revision else "name")
    return None


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
