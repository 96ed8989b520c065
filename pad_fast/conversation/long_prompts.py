"""What is done with a prompt that has too many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LONG_PROMPTS = ("error", "drop", "cut")


def fitted_prompt(
    ids: Sequence[int],
    room: int,
    rule: str,
    problem: Callable[[], str],
    bos: int | None = None,
) -> Sequence[int] | None:
    """A prompt's token ids in at most ``room`` tokens.

    Args:
        ids: of the prompt.
        room: the most tokens.
        rule: what is done with a longer one. "error" raises, "drop" leaves it out, and "cut" takes
            its last tokens, behind which a response follows.
        problem: says what is wrong with a longer one.
        bos: a token that a cut prompt keeps at its start, if it has it there.

    Returns:
        The ids, or None for a prompt that is left out.

    Raises:
        ValueError: the prompt is longer and the rule is "error".

    Example:
        >>> fitted_prompt([1, 5, 6, 7], 3, "cut", lambda: "too long", bos=1)
        [1, 6, 7]
    """
    if len(ids) <= room:
        return ids
    if rule == "error":
        raise ValueError(problem())
    if rule == "drop":
        return None
    kept = list(ids[len(ids) - room :])
    return [bos, *kept[1:]] if room > 1 and bos is not None and ids[0] == bos else kept
