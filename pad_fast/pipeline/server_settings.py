"""The rules of the settings about servers."""

from __future__ import annotations

import re
import shlex
import shutil
from typing import Any
from urllib.parse import urlsplit

BUILTINS = {"cd", "exec", "export", "set", "source", ".", "ulimit"}  # the shell's own


def servers_of(config: Any) -> dict[str, tuple[list[str], str | None]]:
    """The URLs, and the command, that a run is given for each of its models."""
    return {
        "student": (config.student_server or [], config.student_serve),
        "teacher": (config.teacher_server or [], config.teacher_serve),
    }


def is_served(config: Any, role: str) -> bool:
    """Whether servers run the model of a role; they never run a reward model or a judge."""
    return any(servers_of(config).get(role, ()))


def check_servers(config: Any) -> None:
    """Check what says who runs the models, and write URLs in one form.

    Args:
        config: a RunConfig, which this is a part of.

    Raises:
        ValueError: a role has both URLs and a command, a URL or a command cannot be right, or a
            setting needs what servers do not give.
    """
    for role, (urls, command) in servers_of(config).items():
        if urls and command:
            raise ValueError(
                f"{role}_serve: give either URLs of servers or a command that starts one, got "
                f"{command!r} and {role}_server {' '.join(urls)}"
            )
        if urls:
            setattr(config, f"{role}_server", [_url(f"{role}_server", url) for url in urls])
        if command:
            _check_command(f"{role}_serve", command)
        if (urls or command) and config.reward_temperature != 1:
            raise ValueError(
                "reward_temperature: must be 1 with servers, which give log-probabilities at no "
                f"other temperature, got {config.reward_temperature}"
            )


def _url(name: str, given: str) -> str:
    """A URL without the /v1 that OpenAI's clients want."""
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name}: must be URLs such as http://host:8000, got {given!r}")
    if parts.username or parts.password:
        raise ValueError(
            f"{name}: must hold no name and password, which would be written into the run folder; "
            "set PAD_FAST_SERVER_KEY in the environment"
        )
    return given.rstrip("/").removesuffix("/v1").rstrip("/")


def _check_command(name: str, command: str) -> None:
    for field in ("{model}", "{port}"):
        if field not in command:
            raise ValueError(
                f"{name}: must hold {{model}} and {{port}}, as in 'vllm serve {{model}} --port "
                f"{{port}}', got {command!r}"
            )
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(
            f"{name}: must be a command of the shell ({error}), got {command!r}"
        ) from None
    program = next((word for word in words if "=" not in word), "")  # variables may stand before it
    known = program in BUILTINS or not re.fullmatch(r"[\w.-]+", program)
    if not known and shutil.which(program) is None:
        raise ValueError(f"{name}: there is no program {program!r}, got {command!r}")
