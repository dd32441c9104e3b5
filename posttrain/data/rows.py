"""Rows of the formats that users have, turned into the two that everything else reads: queries and conversations.

Queries have the columns of `tasks.task.QUERY_COLUMNS`. Conversations have `messages` and `tools` (stored as JSON, so
that every message keeps exactly its own fields), and of the columns of queries those that fit (`key`, `domain`,
`answer`, ...). Assistant turns have their reasoning in `reasoning_content`; a row says nothing of modes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.data.faults import BadRow
from posttrain.data.readers import kind_of
from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import make_query, text_key

Row = dict[str, Any]
Shape = Literal["queries", "conversational", "prompt_completion", "preference"]

CONVERSATION_COLUMNS = ("id", "messages", "tools", "answer", "task", "domain", "difficulty", "key", "entry")
ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "developer": "system"}
_MESSAGE_TEXTS = ("reasoning_content", "name", "tool_call_id")
_SMALLEST, _LARGEST = -(2**31), 2**31 - 1


def shape_of(columns: Collection[str], mapped: Collection[str] = (), verifier: str | None = None) -> Shape:
    """Which format rows with these columns have; columns that `map` made count before those that were there.

    Raises:
        PosttrainError: none is recognised.
    """
    there = {*columns, *mapped}
    for names in (set(mapped), there):
        if {"chosen", "rejected"} <= names and "prompt" in there:
            return "preference"
        if "completion" in names and "prompt" in there:
            return "prompt_completion"
        if "messages" in names and not (verifier and "prompt" in there):
            return "conversational"
        if names & {"prompt", "answer"} and "prompt" in there:
            return "queries"
    remedy = "name the columns with `map`: `messages`, or `prompt` and `completion`, or `prompt` and `answer`"
    raise PosttrainError(Problem(f"the columns {', '.join(columns)} are no known format", remedy=remedy))


@dataclass
class RowReader:
    """Turns rows of one data set into queries or conversations.

    Attributes:
        name: the data set's name: the default domain, and the beginning of default ids.
        shape: the format of the rows. Queries may be prompts alone, for stages that score nothing.
        verifier: the task that scores answers, for rows that name none in `task`.
    """

    name: str
    shape: Shape
    verifier: str | None = None

    def __call__(self, row: Mapping[str, Any], number: int) -> Row:
        """A row in its final form. Raises BadRow with what is wrong with it."""
        if self.shape == "queries":
            return self._query(row, number)
        if self.shape == "preference":
            return self._preference(row, number)
        messages = read_messages(_required(row, "messages")) if self.shape == "conversational" else _completed(row)
        if not any(message["role"] == "assistant" for message in messages):
            raise BadRow("the conversation has no assistant turn")
        shared = self._shared(row, messages, number)
        return {
            **{k: shared[k] for k in CONVERSATION_COLUMNS if k in shared},
            "messages": messages,
            "tools": _tools(row),
        }

    def _preference(self, row: Mapping[str, Any], number: int) -> Row:
        """A query with the better answer as its response, and the other one in its entry."""
        answers = {side: _as_messages(_required(row, side), "assistant") for side in ("chosen", "rejected")}
        for side, turns in answers.items():
            if len(turns) != 1 or turns[0]["role"] != "assistant" or not turns[0]["content"]:
                raise BadRow(f"column {side!r} is one answer of the assistant, as text or as one message")
        chosen, rejected = (answers[side][0]["content"] for side in ("chosen", "rejected"))
        if chosen == rejected:
            raise BadRow("chosen and rejected are the same answer")
        own = {key: value for key, value in row.items() if key not in ("chosen", "rejected", "entry", "answer")}
        return self._query({**own, "task": "", "response": chosen, "entry": {"rejected": rejected}}, number)

    def _query(self, row: Mapping[str, Any], number: int) -> Row:
        prompt = _as_messages(_required(row, "prompt"), "user")
        if not any(message["role"] == "user" for message in prompt):
            raise BadRow("the prompt has no user turn")
        for message in prompt:
            if extra := set(message) - {"role", "content"}:
                raise BadRow(f"a prompt's messages have role and content only, not {', '.join(sorted(extra))}")
        query = self._shared(row, prompt, number)
        if query["task"]:
            if problem := self._problem(query):
                raise BadRow(f"{problem} (verifier {query['task']!r})")
        elif query["answer"]:
            raise BadRow("nothing scores this answer: give the data set a `verifier`, or the row a `task`")
        return query

    def _shared(self, row: Mapping[str, Any], messages: list[Row], number: int) -> Row:
        difficulty = row.get("difficulty")
        if difficulty is None:
            difficulty = 0
        if isinstance(difficulty, float) and difficulty.is_integer():
            difficulty = int(difficulty)
        if type(difficulty) is not int or not _SMALLEST <= difficulty <= _LARGEST:
            raise BadRow(f"column 'difficulty' is a whole number, not {difficulty!r:.80}")
        return make_query(
            id=_text(row, "id") or f"{self.name}-{number}",
            prompt=messages,
            answer=_text(row, "answer"),
            task=_text(row, "task") or self.verifier or "",
            domain=_text(row, "domain") or self.name,
            difficulty=difficulty,
            key=_text(row, "key") or prompt_key(messages),
            reasoning=_text(row, "reasoning"),
            response=_text(row, "response"),
            entry=_text(row, "entry"),
        )

    def _problem(self, query: Row) -> str | None:
        """Why the query's task cannot score it, or None."""
        from posttrain.tasks.registry import get_task
        from posttrain.tasks.task import row_problem

        try:
            task = get_task(query["task"])
        except PosttrainError as error:
            raise BadRow("; ".join(f"{problem.what}; {problem.remedy}" for problem in error.problems)) from None
        return row_problem(task, query["answer"], query["entry"])


def prompt_key(messages: list[Row]) -> str:
    """The key of a prompt: its user turns before the first answer, whatever their case and spacing."""
    texts = []
    for message in messages:
        if message["role"] == "assistant":
            break
        if message["role"] == "user":
            texts.append(message["content"])
    return text_key("\n".join(texts))


def read_messages(value: Any) -> list[Row]:
    """A list of messages with the fields that are known, null ones left out. Raises BadRow."""
    if not isinstance(value, list) or not value:
        raise BadRow(
            f"column 'messages' is a list of messages, not {kind_of(value) if value != [] else 'an empty list'}"
        )
    return [_message(message, i) for i, message in enumerate(value, 1)]


def _message(value: Any, position: int) -> Row:
    if not isinstance(value, Mapping):
        raise BadRow(f"message {position} is an object with role and content, not {kind_of(value)}")
    role = value.get("role")
    if role not in ROLES:
        hint = f" ({_OTHER_NAMES[role]!r} here)" if isinstance(role, str) and role in _OTHER_NAMES else ""
        raise BadRow(f"message {position} has the role {role!r:.40}{hint}; roles are {', '.join(ROLES)}")
    message: Row = {"role": role, "content": _content(value.get("content"), position)}
    for name in _MESSAGE_TEXTS:
        if (text := value.get(name)) is not None:
            if not isinstance(text, str):
                raise BadRow(f"message {position}: {name!r} is text, not {kind_of(text)}")
            message[name] = text
    if calls := value.get("tool_calls"):
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise BadRow(f"message {position}: 'tool_calls' is a list of objects")
        for call in calls:
            _check_tool_call(call.get("function") or call, position)
        message["tool_calls"] = [_tool_call(call) for call in calls]
        _json(message["tool_calls"], f"message {position}: 'tool_calls'")
    if role != "assistant" and "reasoning_content" in message:
        raise BadRow(f"message {position}: only an assistant turn can have reasoning_content")
    if message["content"] is None and not (role == "assistant" and "tool_calls" in message):
        raise BadRow(f"message {position} ({role}) has no content")
    return _split_reasoning(message, position) if role == "assistant" else message


def _content(value: Any, position: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value
    ):
        return "".join(part["text"] for part in value)
    raise BadRow(f"message {position}: 'content' is text, not {kind_of(value)}")


def _check_tool_call(function: Any, position: int) -> None:
    """A template writes whatever it is given: a call without a name would be learned."""
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise BadRow(f"message {position}: a tool call has no 'name' that is text")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | Mapping):
        raise BadRow(f"message {position}: the arguments of {name!r} are an object or JSON, not {kind_of(arguments)}")


def _tool_call(call: Mapping[str, Any]) -> Row:
    """A tool call without the nulls that a columnar file makes up, in it and in its arguments."""
    return {key: _tool_call(v) if isinstance(v, Mapping) else v for key, v in call.items() if v is not None}


def _split_reasoning(message: Row, position: int) -> Row:
    """An assistant's message whose think block stands in its content, with the reasoning in a field of its own."""
    content = message["content"] or ""
    opens = content.lstrip().startswith("<think>")
    if "reasoning_content" in message or not (opens or ("</think>" in content and "<think>" not in content)):
        return message
    from posttrain.templates.families import get_family
    from posttrain.templates.parse import parse

    parsed = parse(content.lstrip(), get_family("qwen3"), prefilled="" if opens else "<think>\n")
    if not parsed.closed or not parsed.well_formed:
        reasons = ", ".join(parsed.problems) or "it is not closed"
        raise BadRow(f"message {position}: its think block is malformed: {reasons}")
    return {**message, **parsed.to_message()}


def _completed(row: Mapping[str, Any]) -> list[Row]:
    """Prompt and completion, each as text or as messages, as one conversation."""
    prompt = _as_messages(_required(row, "prompt"), "user")
    completion = _as_messages(_required(row, "completion"), "assistant")
    if completion[0]["role"] != "assistant":
        raise BadRow(f"the completion begins with a turn of {completion[0]['role']!r}, not of the assistant")
    return prompt + completion


def _as_messages(value: Any, role: str) -> list[Row]:
    if isinstance(value, str):
        if not value.strip():
            raise BadRow("the prompt is empty" if role == "user" else "the completion is empty")
        return [_message({"role": role, "content": value}, 1)]
    if isinstance(value, list):
        return read_messages(value)
    raise BadRow(f"{'prompt' if role == 'user' else 'completion'} is text or a list of messages, not {kind_of(value)}")


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise BadRow("column 'tools' is text that is no JSON") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(f"column 'tools' is a list of objects, not {kind_of(tools)}")
    _json(tools, "column 'tools'")
    return tools


def _json(value: Any, what: str) -> str:
    """A value as JSON. Parquet has more than JSON can say: dates, bytes, and a number that is none."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(f"{what} cannot be written as JSON: {error}") from None


def _required(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRow(f"no column {name!r}; the row has {', '.join(row) or 'none'}")
    if row[name] is None:
        raise BadRow(f"column {name!r} is null")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if name == "entry" and isinstance(value, dict | list):
        return _json(value, "column 'entry'")
    raise BadRow(f"column {name!r} is text or a number, not {kind_of(value)}")
