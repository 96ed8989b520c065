"""What the system says of files and disks, in words: what happened, and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

# What each error of the system means, and what to free or change.
WORDS = {
    "ENOSPC": ("the disk is full", "free some space"),
    "EDQUOT": ("the disk quota is used up", "free some space or ask for a larger quota"),
    "EFBIG": (
        "a file is larger than a limit allows",
        "raise the limit (`ulimit -f unlimited`) or move the run folder to a file system that "
        "takes larger files",
    ),
    "EROFS": (
        "the file system is read-only",
        "mount it for writing (a disk with errors becomes read-only, which `dmesg` shows) or move "
        "the run folder to another one",
    ),
    "ENOLCK": (
        "the file system gives no locks",
        "mount it with locks (NFS: the option local_lock=flock) or move the run folder to a local "
        "disk",
    ),
    "EMFILE": (
        "the process has too many files open",
        "raise the limit (`ulimit -n 65536`) or lower dataloader_num_workers",
    ),
    "ENFILE": ("the system has too many files open", "end other programs"),
    "EIO": ("the disk reports an error", "see what `dmesg` says of the disk"),
    "ESTALE": ("the network file system has lost a file", "mount it again"),
    "EACCES": ("permission is denied", "give this user the right to read and write there"),
    "EPERM": ("permission is denied", "give this user the right to read and write there"),
}
CODES = {getattr(errno, name): name for name in WORDS if hasattr(errno, name)}
# PyTorch writes through a C++ stream, which keeps no reason.
UNKNOWN = (
    "PyTorch could not write a file to its end: the disk is full, a quota is used up, or a limit "
    "on the size of files is reached",
    "see which (`df -h`, `quota`, `ulimit -f`), free some space or raise the limit",
)
PYTORCH_WRITES = re.compile(r"inline_container\.cc|iostream error|PytorchStreamWriter")
# safetensors says "os error 28", Arrow "errno 28" and PyTorch only the system's words.
NUMBER = re.compile(r"\b(?:os error|errno) (\d+)\b", re.IGNORECASE)


def in_words(error: BaseException) -> str | None:
    """What a failure of files or disks means and what to do; None for any other error.

    Args:
        error: as it was caught, with those that it arose from.

    Example:
        >>> import errno
        >>> from pad_fast.files.system_errors import in_words
        >>> print(in_words(OSError(errno.ENOSPC, "No space left on device", "runs/a/run.json")))
        the disk is full: runs/a/run.json; free some space
    """
    unknown = False
    for each in chain(error):
        text = str(each)
        found = _code(each, text)
        if found is not None:
            name = getattr(each, "filename", None)
            where = f": {name}" if name else f" ({' '.join(text.split())})"
            what, remedy = WORDS[CODES[found]]
            return f"{what}{where}; {remedy}"
        writes = PYTORCH_WRITES.search(text) and "PytorchStreamReader" not in text
        unknown = unknown or bool(writes)
    return "; ".join(UNKNOWN) if unknown else None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it arose from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the stop at its end; its kind if it is empty.

    Example:
        >>> from pad_fast.files.system_errors import first_line
        >>> first_line(ValueError("no such model.\\nIts path is wrong.")), first_line(EOFError())
        ('no such model', 'EOFError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":.")


def _code(error: BaseException, text: str) -> int | None:
    """The number that the system gave, if it stands in :data:`WORDS`."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in CODES else None
    if isinstance(error, ValueError):  # ours, in words
        return None
    numbers = [int(number) for number in NUMBER.findall(text) if int(number) in CODES]
    # The longest first, since "Too many open files in system" begins as another one.
    said = {os.strerror(code): code for code in CODES}
    named = [said[words] for words in sorted(said, key=len, reverse=True) if words in text]
    return next(iter([*numbers, *named]), None)
