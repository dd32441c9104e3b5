"""What a stage trains on, for a person to read: rendered samples with the loss mask shown, and the counts.

On a terminal the supervised text is green and the rest dim; without colours (a pipe, NO_COLOR) it stands between
⟦ and ⟧. Nothing of a sample is interpreted: control characters are shown, not sent to the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from posttrain.data.samples import read_messages, read_tools
from posttrain.data.statistics import TokenStatistics, token_statistics
from posttrain.data.tokens import IGNORED
from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family
from posttrain.templates.render import render

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console, Group
    from rich.text import Text

SUPERVISED, MASKED, NOTE = "green", "dim", "bold cyan"
OPEN, CLOSE = "⟦", "⟧"
LISTED = 50  # entries of a list in the counts
RUN_CHARACTERS = 1600  # of one supervised or masked run; the middle of a longer one is left out


def print_preview(
    dataset: Dataset,
    tokenizer: Any,
    family: Family,
    *,
    samples: int = 4,
    funnel: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> None:
    """Print what a stage trains on: tokenized data with its mask, conversations, or the prompts of an RL stage.

    Args:
        dataset: rows with `input_ids` and `labels`, or with `messages`, or with `prompt`.
        funnel: counts of what was kept and left out on the way, printed below the samples.

    Raises:
        PosttrainError: a sample has no supervised token, or the rows are none of these.
    """
    from rich.console import Console

    console = console or Console()
    marked = console.color_system is None
    made = preview(dataset, tokenizer, samples, family=family, funnel=funnel, marked=marked)
    console.print(made, soft_wrap=True, highlight=False)


def preview(
    dataset: Dataset,
    tokenizer: Any,
    samples: int = 4,
    *,
    family: Family,
    funnel: Mapping[str, Any] | None = None,
    marked: bool = False,
) -> Group:
    """The preview as rich renders it. `marked`: also set ⟦ and ⟧ around supervised text (for want of colours).

    The samples shown are spread evenly over the data, which is often sorted by kind. Raises as `print_preview` does.
    """
    from rich.console import Group

    parts: list[Text] = []
    if "input_ids" in dataset.column_names:
        statistics = token_statistics(dataset, tokenizer, family)
        parts.append(_legend(marked))
        for row in _spread(len(dataset), samples):
            parts += _tokenized(dataset[row], row, tokenizer, marked)
        parts.append(_note("tokens"))
        parts += [_plain(line) for line in _statistics_lines(statistics)]
    else:
        for row in _spread(len(dataset), samples):
            parts += [_note(f"row {row}"), _rendered(dataset[row], dataset.column_names, family)]
        parts.append(_note(f"{len(dataset)} rows"))
    if funnel:
        parts += [_note("left out and kept"), *map(_plain, _tree(funnel))]
    return Group(*parts)


def _spread(rows: int, samples: int) -> list[int]:
    count = min(samples, rows)
    return [round(each * (rows - 1) / max(1, count - 1)) for each in range(count)]


def _tokenized(row: Mapping[str, Any], number: int, tokenizer: Any, marked: bool) -> Iterator[Text]:
    """Every sample of a row under a heading of its own."""
    lengths = row.get("seq_lengths") or [len(row["input_ids"])]
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    for index, (start, end) in enumerate(pairwise(ends)):
        ids, labels = row["input_ids"][start:end], row["labels"][start:end]
        supervised = sum(label != IGNORED for label in labels)
        part = f", sample {index + 1} of {len(lengths)}" if len(lengths) > 1 else ""
        yield _note(f"row {number}{part}: {end - start} tokens, {supervised} supervised")
        yield _masked_text(ids, labels, tokenizer, marked)


def _masked_text(ids: list[int], labels: list[int], tokenizer: Any, marked: bool) -> Text:
    from rich.text import Text

    text = Text()
    start = 0
    for at in range(1, len(ids) + 1):
        inside = labels[start] != IGNORED
        if at < len(ids) and (labels[at] != IGNORED) == inside:
            continue
        run = _readable(tokenizer.decode(ids[start:at], skip_special_tokens=False))
        text.append(f"{OPEN}{run}{CLOSE}" if inside and marked else run, SUPERVISED if inside else MASKED)
        start = at
    return text


def _readable(text: str) -> str:
    """Shortened in its middle, control characters as their pictures (newlines and tabs stay)."""
    if len(text) > RUN_CHARACTERS:
        half = RUN_CHARACTERS // 2
        text = f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"
    text = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found.group())), text)
    return re.sub(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", text)


def _rendered(row: Mapping[str, Any], columns: list[str], family: Family) -> Text:
    """A row that is not tokenized: a conversation, or the prompt that a rollout starts from."""
    name = next((each for each in ("messages", "prompt") if each in columns), None)
    if name is None:
        raise PosttrainError(Problem("nothing to show: the data has neither input_ids, messages nor prompt"))
    content = row[name]
    if not isinstance(content, str):
        tools = read_tools(row.get("tools"))
        asked = name == "prompt" and row.get("switch", "template") == "template"  # else a flag in the prompt switches
        mode = row.get("mode") if asked else None
        content = render(
            read_messages(content),
            family,
            tools=tools,
            mode=mode if mode in family.modes else None,
            add_generation_prompt=name == "prompt",
        )
    return _plain(_readable(content))


def _statistics_lines(found: TokenStatistics) -> Iterator[str]:
    share = found.supervised_tokens / found.tokens
    if found.fill is not None:
        yield f"rows        {found.rows:,} packed, filled {found.fill:.1%} of the longest"
    yield f"samples     {found.samples:,}"
    yield f"tokens      {found.tokens:,}"
    yield f"supervised  {found.supervised_tokens:,} ({share:.1%})"
    yield f"lengths     p50 {found.p50:,}, p95 {found.p95:,}, longest {found.longest:,}"
    if found.turns is not None:
        empty = f", empty think blocks {found.empty_think:,}" if found.empty_think else ""
        yield f"turns       {found.turns:,} supervised{empty}"


def _tree(counts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested counts, a line each; steps and other rows a line each too, values side by side."""
    for key, entry in counts.items():
        if not isinstance(entry, Mapping | list):
            yield f"{indent}{key}: {_readable(str(entry))}"
        elif isinstance(entry, Mapping) and entry:
            yield f"{indent}{key}"
            yield from _tree(entry, indent + "  ")
        elif isinstance(entry, list) and any(isinstance(each, Mapping) for each in entry):
            yield f"{indent}{key}"
            yield from (f"{indent}  {_readable(_row(each))}" for each in entry[:LISTED])
            if len(entry) > LISTED:
                yield f"{indent}  … {len(entry) - LISTED} more"
        elif entry:
            shown = ", ".join(map(str, entry[:LISTED]))
            more = f", … {len(entry) - LISTED} more" if len(entry) > LISTED else ""
            yield f"{indent}{key}: {_readable(shown)}{more}"


def _row(entry: Any) -> str:
    """One of several: a funnel's step as `source: step: 12 of 20 kept (too_long 8)`, anything else as `key value`."""
    if not isinstance(entry, Mapping):
        return str(entry)
    if {"source", "step", "in", "kept"} <= entry.keys():
        why = ", ".join(f"{rule} {count:,}" for rule, count in entry.get("why", {}).items())
        return f"{entry['source']}: {entry['step']}: {entry['kept']:,} of {entry['in']:,} kept" + (why and f" ({why})")
    return ", ".join(f"{key} {value}" for key, value in entry.items())


def _legend(marked: bool) -> Text:
    from rich.text import Text

    mark = f"between {OPEN} and {CLOSE}" if marked else "green"
    return Text.assemble("the loss is on what is ", (mark, SUPERVISED), "; ", ("the rest is only read", MASKED))


def _note(text: str) -> Text:
    from rich.text import Text

    return Text(f"\n── {text}", NOTE)


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(text)
