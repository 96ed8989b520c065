"""What a chat template holds: dates, and operators that may never end."""

from __future__ import annotations

import datetime

from jinja2 import Environment, TemplateError

# What strftime replaces in the formats of chat templates.
DIRECTIVES = tuple(f"%{letter}" for letter in "YmdBbAaHIMSpyjcxXZzfUWwuGV")


def dated(template: str, now: datetime.datetime | None) -> str:
    """The template, writing the date of ``now`` in place of today's.

    Example:
        >>> dated("{{ messages }}", datetime.datetime(2001, 2, 3))
        '{{ messages }}'
    """
    if now is None or "strftime_now" not in template:
        return template
    # transformers passes no functions to a template, so a macro takes the place of its own.
    values = {directive: now.strftime(directive) for directive in DIRECTIVES}
    values |= {f"%-{d[1]}": value.lstrip("0") for d, value in values.items()}
    replaced = "".join(f".replace('{name}', '{value}')" for name, value in values.items())
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
    return f"{macro}{{{{ '' }}}}{template}"


def has_powers(template: str) -> bool:
    """Whether a template holds the operator ``**``, whose one step may never end.

    Example:
        >>> has_powers("{{ 9**9**9 }}"), has_powers("**bold** {{ '**' }}")
        (True, False)
    """
    try:
        found = list(Environment().lex(template))
    except TemplateError:  # rendering says what is wrong
        return False
    return any((kind, word) == ("operator", "**") for _, kind, word in found)
