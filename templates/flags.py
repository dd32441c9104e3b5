"""Mode flags in conversations (Qwen3 report, section 4.3): `/think`, `/no_think` in user turn or system message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.templates.families import Family, Mode


def with_flag(
    messages: Sequence[dict[str, Any]], family: Family, mode: Mode, *, in_system: bool = False
) -> list[dict[str, Any]]:
    """The conversation with a flag that asks for a mode: at the end of its last user turn, or in its system message.

    A family without flags gets the conversation back as it is. The messages given are left unchanged.
    """
    if mode not in family.flags:
        return [dict(message) for message in messages]
    flag = family.flags[mode]
    out = [dict(message) for message in messages]
    if in_system:
        if out and out[0]["role"] == "system":
            out[0]["content"] = f"{out[0]['content']} {flag}".lstrip()
        else:
            out.insert(0, {"role": "system", "content": flag})
        return out
    for message in reversed(out):
        if message["role"] == "user":
            message["content"] = f"{message['content']} {flag}".lstrip()
            break
    return out
