"""Conversations to text: as served (the Jinja templates of this folder) and as trained on (with the loss spans).

The `.jinja` files are what a checkpoint carries and what servers run. `render` runs them; `render_training` is the
same function as the training template, written in Python for speed and held to it by tests/test_templates_render.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.templates.checks import check_messages
from posttrain.templates.families import Family, Mode
from posttrain.templates.training import render_training

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Message", "last_flag", "render", "render_training", "template_text"]

Message = dict[str, Any]  # role, content, and for an assistant perhaps reasoning_content and tool_calls


def render(
    messages: Sequence[Message],
    family: Family,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    mode: Mode | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text that a server makes of a conversation: the family's served template.

    `mode` acts on the generation prompt alone, as in the official template; None leaves `enable_thinking` undefined.
    Raises PosttrainError, naming the message, for what cannot be rendered, and for a mode the family lacks.
    """
    check_messages(messages, family, tools, training=False)
    options: dict[str, bool] = {}
    if mode is not None:
        if mode not in family.modes:
            raise PosttrainError(
                Problem(
                    what=f"the family {family.name!r} has no mode {mode!r}",
                    why=f"its models are of the kind {family.kind!r}",
                    remedy=f"use {' or '.join(family.modes)}",
                )
            )
        options["enable_thinking"] = mode == "thinking"
    from jinja2 import TemplateError

    try:
        return _compiled(family.template).render(
            messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **options
        )
    except (TemplateError, TypeError) as error:  # what the checks above did not foresee
        raise PosttrainError(Problem(f"{family.template} cannot render the conversation: {error}")) from error


@cache
def template_text(family: Family, training: bool = False) -> str:
    """The Jinja source of the family, to be written into a checkpoint's `chat_template.jinja`."""
    return _source(family.training_template if training else family.template)


def last_flag(messages: Sequence[Message], family: Family) -> Mode | None:
    """The mode that the last flag (`/think`, `/no_think`) of the user and system turns asks for; None without one.

    That the last flag wins is a contract of data and evaluation: the templates never read flags. A flag is a word of
    its own (a path such as `docs/think.md` holds none). What a tool said is not an instruction and is not searched,
    not even where it was pasted into a user turn.
    """
    if not family.flags:
        return None
    pattern = _flag_pattern(tuple(sorted(family.flags.values())))
    for message in reversed(messages):
        content = message.get("content")
        if message.get("role") not in ("user", "system") or not isinstance(content, str):
            continue
        if content.startswith("<tool_response>") and content.endswith("</tool_response>"):
            continue
        found = pattern.findall(content)
        if found:
            return next(mode for mode, flag in family.flags.items() if flag == found[-1])
    return None


@cache
def _flag_pattern(flags: tuple[str, ...]) -> re.Pattern[str]:
    # ASCII classes on purpose: in Chinese or Japanese text a flag follows a letter without a space.
    words = "|".join(map(re.escape, flags))
    return re.compile(rf"(?<![A-Za-z0-9_/.:~\\-])(?:{words})(?![A-Za-z0-9_/-]|\.[A-Za-z0-9])")


def _source(name: str) -> str:
    path = Path(__file__).with_name(name)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PosttrainError(
            Problem(f"the chat template {name} is missing: {error}", remedy="reinstall posttrain")
        ) from error


@cache
def _compiled(name: str) -> Template:
    from jinja2 import Environment

    # As transformers renders chat templates, minus its sandbox: these texts are ours, and JSON is text, not HTML.
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(_source(name))
