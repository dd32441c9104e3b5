"""A sample: one conversation with its modes, and where it came from. Read from rows of data, kept on disk as Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.funnel import Drop
from posttrain.sft.response_filters import Response
from posttrain.sft.rows import RowWriter
from posttrain.tasks.task import QUERY_COLUMNS, make_query, text_key
from posttrain.templates.families import Family, Mode
from posttrain.templates.parse import parse

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation to train on.

    Attributes:
        source: the label of the recipe's sample source.
        mode: the mode of its last assistant turn.
        messages: the conversation; a thinking turn has `reasoning_content`, a non-thinking turn has none.
        tools: JSON schemas, or None.
        query: the row of the query behind it (`tasks.task.QUERY_COLUMNS`).
    """

    source: str
    mode: Mode
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    query: dict[str, Any]


def is_query_row(columns: Sequence[str]) -> bool:
    """Whether rows with these columns are queries (with or without a worked solution), not conversations."""
    return "prompt" in columns and "messages" not in columns


def assistant_turn(content: str, reasoning: str, mode: Mode) -> Message:
    """The assistant's message of a mode: reasoning in thinking mode only."""
    turn: Message = {"role": "assistant", "content": content}
    return turn | {"reasoning_content": reasoning} if mode == "thinking" else turn


def query_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A query's row without further columns."""
    empty = make_query(id="", prompt=[], answer="", task="", domain="", key="")
    return {name: row.get(name) if row.get(name) is not None else empty[name] for name in QUERY_COLUMNS}


def read_sample(row: Mapping[str, Any], place: int, source: str, mode: Mode | None, family: Family) -> Sample | Drop:
    """A row of data as a sample, or why it is none.

    Args:
        row: a query with a worked solution (`response`, perhaps `reasoning`), or a conversation (`messages`).
        place: the row's place in its data set, for an id where it has none.
        mode: the mode wanted: `non_thinking` drops reasoning, `thinking` demands it, None takes the row as it is.
    """
    if is_query_row(list(row)):
        query = query_columns(row)
        if not query["response"]:
            return Drop("no_solution", "the query has no `response` to train on")
        found: Mode = "thinking" if query["reasoning"].strip() else "non_thinking"
        messages = [*_plain(query["prompt"]), assistant_turn(query["response"], query["reasoning"], found)]
        tools = None
    else:
        messages, tools = _plain(row["messages"], family), _tools(row.get("tools"))
        query = _query_of(row, messages, f"{source}-{place}")
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        return Drop("no_assistant_turn", "nothing to train on")
    if mode == "non_thinking":
        for turn in turns:
            turn.pop("reasoning_content", None)
    thinks = [bool(turn.get("reasoning_content")) for turn in turns]
    if mode == "thinking" and not thinks[-1]:
        return Drop("no_reasoning", "mode is thinking, and the last assistant turn has no reasoning")
    if any(thinks) and "thinking" not in family.modes:
        return Drop("reasoning_has_no_place", f"{family.name} does not think; `mode: non_thinking` drops reasoning")
    if not thinks[-1] and "non_thinking" not in family.modes:
        return Drop("no_reasoning", f"{family.name} always thinks, and the last assistant turn has no reasoning")
    return Sample(source, "thinking" if thinks[-1] else "non_thinking", messages, tools, query)


def _plain(messages: Any, family: Family | None = None) -> list[Message]:
    """Messages without the nulls that Arrow made up, with inline think blocks taken out of the content."""
    from posttrain.data.samples import read_messages

    out = []
    for message in read_messages(messages) or []:
        plain = {key: value for key, value in message.items() if value is not None or key == "content"}
        inline = family is not None and plain["role"] == "assistant" and "reasoning_content" not in plain
        if inline and family is not None and family.think_close in (plain.get("content") or ""):
            parsed = parse(plain["content"], family)
            plain |= {"content": parsed.content, "reasoning_content": parsed.reasoning or ""}
        if not (plain.get("reasoning_content") or "").strip():
            plain.pop("reasoning_content", None)
        out.append(plain)
    return out


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    from posttrain.data.samples import read_tools

    return read_tools(tools)


def _query_of(row: Mapping[str, Any], messages: list[Message], name: str) -> dict[str, Any]:
    """The query behind a conversation: what comes before its first answer."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    prompt = [{"role": m["role"], "content": m.get("content") or ""} for m in messages[:first]]
    key = text_key("\n".join(m["content"] for m in prompt if m["role"] == "user"))
    given = {
        column: row[column] for column in QUERY_COLUMNS if row.get(column) not in (None, "") and column != "prompt"
    }
    return make_query(id=name, prompt=prompt, answer="", task="", domain="", key=key) | given


def responses_of(sample: Sample) -> Iterator[Response]:
    """Every assistant turn of a sample, as the response filters look at it. The query scores the last turn alone."""
    last = max(i for i, message in enumerate(sample.messages) if message["role"] == "assistant")
    question = ""
    for place, message in enumerate(sample.messages):
        if message["role"] == "user":
            question = message.get("content") or ""
        elif message["role"] == "assistant":
            reasoning = message.get("reasoning_content") or ""
            query = sample.query if place == last else {}
            yield Response(
                query, question, reasoning, message.get("content") or "", "thinking" if reasoning else "non_thinking"
            )


def write_pool(samples: Iterable[Sample], path: Path) -> Dataset:
    """Write samples into an Arrow file, memory-mapped, with the column `joinable` beside their own."""
    columns = {"source": "string", "mode": "string", "joinable": "bool"}
    with RowWriter(path, columns | dict.fromkeys(("messages", "tools", "query"), "json")) as writer:
        for sample in samples:
            writer.write({**vars(sample), "joinable": is_joinable(sample)})
        return writer.finish()


def sample_of(row: Mapping[str, Any]) -> Sample:
    """A row of a pool as a sample."""
    return Sample(row["source"], row["mode"], row["messages"], row["tools"], row["query"])


def is_joinable(sample: Sample) -> bool:
    """Whether a sample can be one turn of a dialogue: one user turn, one answer, no system message, no tools."""
    return [message["role"] for message in sample.messages] == ["user", "assistant"] and not sample.tools
