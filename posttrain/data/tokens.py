"""A conversation becomes tokens and a loss mask: the one place, whoever trains on it.

`data/samples.py` cuts the rendered text where the loss begins and ends; here the pieces are tokenized one by one and
joined. So the mask is exact by construction, and a turn's tokens are those of serving: a server tokenizes the prompt
alone too, and the model goes on from there. (The whole text tokenized at once gives the same tokens, save where one
would straddle a border, as the newlines of "assistant\\n" + "\\n1." do.)

Control tokens typed into a message, as `<|im_end|>` in a user's question, become control tokens: servers parse them in
the rendered text too, and data that did not would differ from what is served. Such conversations are counted and
logged. Inside an assistant's turn they are not taken (counted, skipped): the model would learn to go on after its end.

Speed and memory: benchmarks/preparation.py. No token becomes a Python object of its own for longer than a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.data.arrow import SampleWriter, list_array
from posttrain.data.counts import TokenCounts
from posttrain.data.samples import (
    History,
    Piece,
    control_token_in_answer,
    control_token_in_prompt,
    read_messages,
    read_tools,
    render_samples,
)
from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import Family

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

IGNORED = -100  # the label of a token outside the loss
ENCODED_CHARACTERS = 4_000_000  # text tokenized at once: bounds memory, however long a conversation is

Overlong = Literal["drop", "truncate"]


def tokenize_conversations(
    dataset: Dataset,
    tokenizer: Any,
    family: Family,
    *,
    max_length: int | None = None,
    history: History = "keep",
    overlong: Overlong = "drop",
    supervise_empty_think: bool = True,
    keep_columns: Sequence[str] = (),
    batch_size: int = 1000,
    counts: TokenCounts | None = None,
    cache_file: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Conversations as `input_ids` and `labels` (int32 lists; -100 outside the loss), ready for a trainer.

    Args:
        dataset: rows with `messages` (a list of message dicts), and perhaps `tools` (a list, or its JSON).
        tokenizer: a transformers tokenizer with a Rust backend, in which the family's markers are single tokens.
        max_length: in tokens. overlong: whether a longer sample is dropped, or cut after max_length tokens and so
            without its end marker; both are counted.
        history: what an assistant's turn sees of the turns before it (data/samples.py).
        supervise_empty_think: whether the loss is on the empty think block of a non-thinking turn. False is right only
            where every non-thinking prompt is served with that block written already (`enable_thinking=False`).
        keep_columns: columns of `dataset` handed on, repeated for every sample of a conversation.
        batch_size: conversations rendered, tokenized and written at once; memory does not grow with the data.
        counts: an empty TokenCounts to fill in, for a caller that reports them.
        cache_file: where the samples are written (Arrow); default: a temporary file that goes with the process.
        progress: called with the number of conversations just done.

    Raises:
        PosttrainError: columns or tokenizer do not fit, or no sample with a supervised token was left.
    """
    import datasets

    counts = TokenCounts() if counts is None else counts
    _check_columns(dataset, keep_columns)
    backend = checked_backend(tokenizer, family)
    tokens = datasets.List(datasets.Value("int32"))
    kept = {name: dataset.features[name] for name in keep_columns}
    writer = SampleWriter(cache_file, datasets.Features({**kept, "input_ids": tokens, "labels": tokens}))
    nulls = "Json" in str(dataset.features["messages"])  # stored as JSON: its nulls were meant
    render_row = _row_renderer(family, history, supervise_empty_think, nulls, counts)
    try:
        for table, batch in _batches(dataset, render_row, batch_size):
            made = _Encoded.of(batch, backend).cut(max_length, overlong, counts)
            columns = {name: table.column(name).take(made.rows) for name in kept}
            writer.write(columns | {"input_ids": made.list_of(made.ids), "labels": made.list_of(made.labels)})
            if progress:
                progress(batch.conversations)
        counts.report()
    except BaseException:
        writer.discard()
        raise
    return writer.finish()


def checked_backend(tokenizer: Any, family: Family) -> Any:
    """The Rust tokenizer inside a transformers one, without the truncation and padding an earlier call may have set.

    Raises PosttrainError when there is none, when a marker of the family is not one token, or when it writes something
    of its own before a text (as SentencePiece's leading space): its pieces could not be joined.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise PosttrainError(Problem(f"{type(tokenizer).__name__} has no Rust backend", remedy="use a fast tokenizer"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    markers = [family.message_start, family.message_end]
    markers += [family.think_open, family.think_close] if family.thinks else []
    problems = [
        Problem(
            f"the tokenizer splits {marker} into {length} tokens",
            why="a marker in pieces is ordinary text: no server stops at it or finds it",
            remedy="add it to the tokenizer as one token, or choose the model's own template family",
        )
        for marker in markers
        if (length := len(backend.encode(marker, add_special_tokens=False))) != 1
    ]
    probe = (f"{family.message_start}user\n", "word")
    joined = [token for text in probe for token in backend.encode(text, add_special_tokens=False).ids]
    if not problems and backend.decode(joined, skip_special_tokens=False) != "".join(probe):
        problems = [Problem("the tokenizer writes text of its own before a piece", remedy="use a byte-level tokenizer")]
    if problems:
        raise PosttrainError(problems)
    return backend


def _check_columns(dataset: Dataset, keep_columns: Sequence[str]) -> None:
    has = ", ".join(dataset.column_names)
    missing = [name for name in ("messages", *keep_columns) if name not in dataset.column_names]
    if missing:
        raise PosttrainError([Problem(f"the data has no column {name!r}", remedy=f"it has: {has}") for name in missing])


def _row_renderer(
    family: Family, history: History, supervise_empty_think: bool, nulls: bool, counts: TokenCounts
) -> Callable[[int, Any, Any], list[list[Piece]]]:
    """A function from a row's number, messages and tools to its samples: [] where it was skipped, and counted."""

    def render_row(row: int, messages: Any, tools: Any) -> list[list[Piece]]:
        counts.conversations += 1
        try:
            messages, tools = read_messages(messages, nulls=nulls), read_tools(tools, nulls=nulls)
            samples = render_samples(
                messages, family, tools=tools, history=history, supervise_empty_think=supervise_empty_think
            )
        except PosttrainError as error:
            counts.skip(row, "malformed", "; ".join(f"{problem.where}: {problem.what}" for problem in error.problems))
            return []
        if not samples:
            counts.skip(row, "no_assistant_turn", f"{len(messages)} messages")
        elif marker := control_token_in_answer(samples, family):
            counts.skip(row, "control_token_in_answer", marker)
            return []
        if marker := control_token_in_prompt(messages, family):
            counts.typed(row, marker)
        return samples

    return render_row


@dataclass
class _Batch:
    """Samples as text, flat: piece after piece."""

    first_row: int  # row of the table's first conversation in the data set
    conversations: int = 0
    characters: int = 0
    texts: list[str] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)  # one a piece
    pieces: list[int] = field(default_factory=list)  # how many pieces each sample has
    rows: list[int] = field(default_factory=list)  # each sample's row in the table

    def add(self, row: int, samples: list[list[Piece]]) -> None:
        self.conversations += 1
        for sample in samples:
            self.rows.append(row)
            self.pieces.append(len(sample))
            for text, supervised in sample:
                self.texts.append(text)
                self.supervised.append(supervised)
                self.characters += len(text)


def _batches(
    dataset: Dataset, render_row: Callable[[int, Any, Any], list[list[Piece]]], batch_size: int
) -> Iterator[tuple[Any, _Batch]]:
    """Every table of the data with its samples; in several batches where the text is long."""
    columns = [name for name in ("messages", "tools") if name in dataset.column_names]
    features, first_row = dataset.features, 0
    for table in dataset.with_format("arrow").iter(batch_size):
        decoded = features.decode_batch(table.select(columns).to_pydict())
        all_tools = decoded.get("tools") or [None] * len(table)
        batch = _Batch(first_row)
        for row, (messages, tools) in enumerate(zip(decoded["messages"], all_tools, strict=True)):
            batch.add(row, render_row(first_row + row, messages, tools))
            if batch.characters > ENCODED_CHARACTERS:
                yield table, batch
                batch = _Batch(first_row)
        if batch.conversations:
            yield table, batch
        first_row += len(table)


@dataclass
class _Encoded:
    """Tokens of a batch: flat `ids` and `labels` (T), and for each of its S samples `lengths` and `rows`."""

    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    first_row: int

    @classmethod
    def of(cls, batch: _Batch, backend: Any) -> _Encoded:
        import numpy as np

        encodings = backend.encode_batch_fast(batch.texts, add_special_tokens=False)
        sizes = np.fromiter(map(len, encodings), np.int64, len(encodings))  # tokens of each piece
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, int(sizes.sum()))
        labels = np.where(np.repeat(np.array(batch.supervised, dtype=bool), sizes), ids, np.int32(IGNORED))
        ends = np.concatenate(([0], np.cumsum(sizes)))[np.concatenate(([0], np.cumsum(batch.pieces, dtype=np.int64)))]
        return cls(ids, labels, np.diff(ends), np.array(batch.rows, dtype=np.int64), batch.first_row)

    def cut(self, max_length: int | None, overlong: Overlong, counts: TokenCounts) -> _Encoded:
        """Without the samples that are too long or have nothing to supervise; all of it counted."""
        import numpy as np

        kept_lengths = self.lengths
        if max_length is not None and (self.lengths > max_length).any():
            over = self.lengths > max_length
            kept_lengths = np.where(over, max_length if overlong == "truncate" else 0, self.lengths)
            counts.truncated += int(over.sum()) if overlong == "truncate" else 0
            for sample in np.flatnonzero(over) if overlong == "drop" else ():
                detail = f"{self.lengths[sample]} tokens, max_length {max_length}"
                counts.skip(self.first_row + int(self.rows[sample]), "too_long", detail)
        made = self._shortened(kept_lengths)
        supervised = made.supervised()
        if not supervised.all():
            for sample in np.flatnonzero(supervised == 0):
                detail = f"no supervised token in {made.lengths[sample]}"
                counts.skip(made.first_row + int(made.rows[sample]), "nothing_supervised", detail)
            made = made._shortened(np.where(supervised > 0, made.lengths, 0))
        counts.samples += len(made.lengths)
        counts.tokens += len(made.ids)
        counts.supervised_tokens += int(supervised.sum())
        return made

    def supervised(self) -> np.ndarray:
        """Supervised tokens of each sample (S)."""
        import numpy as np

        total = np.concatenate(([0], np.cumsum(self.labels != IGNORED)))
        ends = np.cumsum(self.lengths)
        return np.asarray(total[ends] - total[ends - self.lengths])

    def _shortened(self, lengths: np.ndarray) -> _Encoded:
        """Each sample cut to its new length, those of length 0 left out."""
        import numpy as np

        if lengths is self.lengths:
            return self
        starts = np.cumsum(self.lengths) - self.lengths
        within = np.arange(len(self.ids)) - np.repeat(starts, self.lengths)
        keep = within < np.repeat(lengths, self.lengths)
        left = lengths > 0
        return _Encoded(self.ids[keep], self.labels[keep], lengths[left], self.rows[left], self.first_row)

    def list_of(self, values: np.ndarray) -> Any:
        return list_array(values, self.lengths)
