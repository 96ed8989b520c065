"""Checks of the chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pad_fast.files.stored_rows import Row
from pad_fast.pipeline.checkpoint import Checkpoint
from pad_fast.pipeline.findings.finding import Finding, Verdict, share_text


def template(checkpoint: Checkpoint, rows: Sequence[Row]) -> Finding:
    """Whether a conversation with the response begins with the tokens of the prompt alone.

    The verdict is "problem" if the prompt's text changes once a response follows, and "look" if
    only the tokens at the border of prompt and response merge.
    """
    outcomes = [_border(checkpoint, row) for row in rows]
    rewritten, merged = outcomes.count("rewritten"), outcomes.count("merged")
    verdict: Verdict = "ok"
    found, advice = "prompt and response begin with the prompt's tokens", ""
    if rewritten:
        verdict = "problem"
        found = f"rewrites {share_text(rewritten, rows)} of the prompts once a response follows"
        advice = (
            "training would show the student other tokens than a later turn: set "
            'chat_template_kwargs (such as {"enable_thinking": false}), or change the '
            f"{checkpoint.role}'s chat_template.jinja"
        )
    elif merged:
        verdict = "look"
        found = f"a response's first token merges with the prompt in {share_text(merged, rows)}"
        advice = (
            f"end the generation prompt of the {checkpoint.role}'s chat_template.jinja at the end "
            "of a token"
        )
    numbers = {"rewritten": rewritten, "merged": merged, "prompts": len(rows)}
    return Finding(f"{checkpoint.role}'s template", verdict, found, advice, numbers)


def _border(checkpoint: Checkpoint, row: Row) -> Literal["kept", "rewritten", "merged"]:
    """What becomes of a row's prompt in the chat template once a response follows."""
    response = next(filter(str.strip, row["completions"]), "response")
    messages = [*row["prompt"], {"role": "assistant", "content": response}]
    chat, ids = checkpoint.chat, checkpoint.prompt_ids(row["prompt"])
    try:
        with_response, text = chat.conversation_ids(messages), chat.rendered(messages)
    except ValueError:  # the template accepts no assistant's turn
        return "rewritten"
    prompt = chat.rendered(row["prompt"], add_generation_prompt=True)
    if not text.startswith(prompt):
        return "rewritten"
    return "kept" if with_response[: len(ids)] == ids else "merged"
