"""Which dialect a model's own chat template speaks: the family whose served template renders the same texts."""

from __future__ import annotations

import json
from typing import Any

from posttrain.templates.families import FAMILIES, Family
from posttrain.templates.render import Message, render

_CONVERSATIONS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Again"},
    ],
)


def family_of_template(text: str) -> Family | None:
    """The family that renders short conversations, in every mode of its own, as this Jinja text does; None: none."""
    return next((family for family in FAMILIES.values() if _renders_alike(text, family)), None)


def _renders_alike(text: str, family: Family) -> bool:
    for messages in _CONVERSATIONS:
        for mode in (None, *family.modes):
            options = {} if mode is None else {"enable_thinking": mode == "thinking"}
            expected = render(messages, family, mode=mode, add_generation_prompt=True)
            if _render(text, messages=messages, add_generation_prompt=True, **options) != expected:
                return False
    return True


def _render(text: str, **given: Any) -> str | None:
    """A stranger's template in a sandbox, as transformers runs it; None where it fails."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(text).render(tools=None, **given)
    except Exception:  # whatever a stranger's text makes of it
        return None
