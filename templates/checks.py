"""Refuse what a chat template would lose, garble or stop at, before it is rendered.

The stock templates skip an unknown role, render a list of content parts as nothing and stop at others with Jinja's own
words. Training on what is left would be silent damage, so all of it is an error here, with the message's index.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family

ROLES = ("system", "user", "assistant", "tool")


def check_messages(
    messages: Sequence[dict[str, Any]], family: Family, tools: Sequence[dict[str, Any]] | None, *, training: bool
) -> None:
    """Raise PosttrainError with every problem of a conversation, each at `messages[i]` or `tools[i]`.

    `training` also refuses reasoning that the family has no place for: a served history may drop it, a loss may not.
    """
    if isinstance(messages, list) and messages and not tools:
        for index, message in enumerate(messages):  # the common case, as fast as it can be said
            if not _is_plain(message, index, family, training):
                break
        else:
            return
    if problems := _problems(messages, family, tools, training):
        raise PosttrainError(problems)


def _is_plain(message: Any, index: int, family: Family, training: bool) -> bool:
    if type(message) is not dict or not isinstance(message.get("content"), str):
        return False
    role = message.get("role")
    if role == "assistant":
        reasoning = message.get("reasoning_content")
        return (reasoning is None or (isinstance(reasoning, str) and (family.thinks or not training))) and not (
            message.get("tool_calls")
        )
    return role in ROLES and not message.get("tool_calls")


def _problems(messages: Any, family: Family, tools: Any, training: bool) -> list[Problem]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return [Problem(f"a conversation must be a list of messages, this is {_kind(messages)}", "messages")]
    if not messages:
        return [Problem("the conversation is empty", "messages", remedy="give it at least one message")]
    problems: list[Problem] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            problems.append(Problem(f"a message must be a dict, this is {_kind(message)}", where))
        else:
            problems += _message_problems(message, index, where, family, training)
    if tools is not None and (not isinstance(tools, Sequence) or isinstance(tools, str | bytes)):
        problems.append(Problem(f"tools must be a list of JSON schemas, this is {_kind(tools)}", "tools"))
    elif tools:
        for index, tool in enumerate(tools):
            problems += _tool_problems(tool, f"tools[{index}]")
    return problems


def _message_problems(message: dict[str, Any], index: int, where: str, family: Family, training: bool) -> list[Problem]:
    role = message.get("role")
    if role not in ROLES:
        remedy = 'use "system"' if role == "developer" else f"use one of {', '.join(ROLES)}"
        return [Problem(f"the role {role!r} cannot be rendered", where, "the template would leave it out", remedy)]
    problems = _content_problems(message, index, where, family)
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        problems.append(Problem(f"reasoning_content must be text or null, this is {_kind(reasoning)}", where))
    elif role == "assistant" and training and not family.thinks and reasoning and reasoning.strip():
        problems.append(
            Problem(
                f"the family {family.name!r} has no place for reasoning_content",
                where,
                "the model would be trained on an answer without the reasoning that led to it",
                "drop the reasoning, or train with a family that thinks",
            )
        )
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        problems.append(Problem(f"a {role} message has tool_calls", where, "only an assistant's are rendered"))
    elif calls:
        problems += _call_problems(calls, where)
    return problems


def _content_problems(message: dict[str, Any], index: int, where: str, family: Family) -> list[Problem]:
    content = message.get("content")
    if isinstance(content, str):
        return []
    role = message["role"]
    if content is not None:
        return [
            Problem(
                f"the content of a {role} message must be text or null, this is {_kind(content)}",
                where,
                "the template renders anything else as nothing, or not at all",
                "join the text parts into one string",
            )
        ]
    if role == "system" and index == 0:
        return [Problem("the content of the first system message is null", where, remedy='use "" or drop the message')]
    if not family.null_content and not (role == "assistant" and message.get("tool_calls")):
        return [Problem(f"the family {family.name!r} cannot render a {role} message without content", where)]
    return []


def _call_problems(calls: Any, where: str) -> list[Problem]:
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        return [Problem(f"tool_calls must be a list, this is {_kind(calls)}", where)]
    problems: list[Problem] = []
    for number, call in enumerate(calls):
        place = f"{where}.tool_calls[{number}]"
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            problems.append(Problem(f"a tool call must be a dict, this is {_kind(call)}", place))
            continue
        if not isinstance(function.get("name"), str):
            problems.append(Problem("the tool call has no name", place))
        if "arguments" not in function:
            problems.append(Problem("the tool call has no arguments", place, remedy="use {} where there are none"))
        elif fault := _json_fault(function["arguments"]):
            problems.append(Problem(f"the arguments of the tool call are not JSON: {fault}", place))
    return problems


def _tool_problems(tool: Any, where: str) -> list[Problem]:
    if not isinstance(tool, dict):
        remedy = "transformers.utils.get_json_schema makes one from a function" if callable(tool) else ""
        return [Problem(f"a tool must be a JSON schema (a dict), this is {_kind(tool)}", where, remedy=remedy)]
    fault = _json_fault(tool)
    return [Problem(f"the schema of the tool is not JSON: {fault}", where)] if fault else []


def _json_fault(value: Any) -> str:
    try:
        json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
