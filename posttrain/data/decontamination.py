"""Drops training rows that are too similar to reserved ones.

Three methods, each with what the one before it finds:

    key     the same problem: equal keys
    text    the same text of the user's turns, whatever its case and spacing
    lcs     Qwen2.5's rule (arXiv 2412.15115): the longest common subsequence has at least 13 tokens, and at least 0.6
            of the tokens of the shorter text

Problems made from one template are alike by `lcs` however different their answers are: a procedural task wants `key`.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from posttrain.errors import PosttrainError, Problem
from posttrain.tasks.task import normalise

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

log = logging.getLogger("posttrain")

Method = Literal["key", "text", "lcs", "off"]
METHODS: tuple[Method, ...] = ("off", "key", "text", "lcs")
MIN_LCS = 13  # tokens
MIN_SHARE = 0.6  # of the shorter text
EXAMPLES = 20
BATCH = 1000  # rows
BLOCK = 32  # reserved texts whose subsequences are found at once

# A word or number; of scripts that put no spaces between words, one character.
_TOKEN = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u9fff]+|\w")


@dataclass(frozen=True)
class Match:
    """Why a text is too similar: to which reserved row, by which method; for `lcs`, how many tokens and what share."""

    reserved: int
    method: Method
    lcs: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class Dropped:
    """An example of a dropped row, with the reserved row it is too similar to."""

    id: str
    text: str
    reserved_id: str
    reserved_text: str
    method: Method
    lcs: int
    share: float


@dataclass
class DecontaminationReport:
    """What was dropped, by method, with examples to read."""

    method: Method
    checked: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[Dropped] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.checked - self.dropped.total()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "dropped": dict(self.dropped), "kept": self.kept}


def decontaminate(
    dataset: Dataset,
    reserved: Iterable[Mapping[str, Any]],
    *,
    method: Method = "lcs",
    progress: Callable[[int], None] | None = None,
) -> tuple[Dataset, DecontaminationReport]:
    """Drop the rows of `dataset` that are too similar to a reserved row.

    Args:
        dataset: queries or conversations; of a conversation all user turns count.
        reserved: the reserved rows, of any data set.
        progress: called with the number of rows just compared.

    Returns:
        The rows kept, in order, and the report.

    Raises:
        PosttrainError: the method is unknown, or the data has neither `prompt` nor `messages`.
    """
    report = DecontaminationReport(method)
    rows = list(reserved)
    index = SimilarityIndex([user_text(row) for row in rows], [row.get("key") or "" for row in rows], method=method)
    if method == "off" or not rows:
        report.checked = len(dataset)
        return dataset, report
    kept = []
    for number, row in enumerate(_texts_and_keys(dataset)):
        report.checked += 1
        if progress:
            progress(1)
        match = index.find(row["text"], row["key"])
        if match is None:
            kept.append(number)
            continue
        report.dropped[match.method] += 1
        if len(report.examples) < EXAMPLES:
            near = rows[match.reserved]
            names = (str(row["id"]), row["text"], str(near.get("id") or match.reserved), user_text(near))
            report.examples.append(Dropped(*names, match.method, match.lcs, round(match.share, 3)))
    if report.dropped["lcs"] > report.checked / 2:
        remedy = "if they come from one template, `decontaminate: key` is the method"
        log.warning("%d of %d rows resemble reserved ones; %s", report.dropped["lcs"], report.checked, remedy)
    return (dataset.select(kept) if len(kept) < len(dataset) else dataset), report


def user_text(row: Mapping[str, Any]) -> str:
    """The text of a row that is compared: all its user turns."""
    messages = row.get("prompt") or row.get("messages") or []
    if isinstance(messages, str):  # JSON, as parquet gives it back
        messages = json.loads(messages)
    return "\n".join(message["content"] or "" for message in messages if message["role"] == "user")


def _texts_and_keys(dataset: Dataset) -> Iterator[dict[str, Any]]:
    turns = next((name for name in ("prompt", "messages") if name in dataset.column_names), None)
    if turns is None:
        what = (
            f"rows with neither 'prompt' nor 'messages' cannot be compared; there are {', '.join(dataset.column_names)}"
        )
        raise PosttrainError(Problem(what))
    columns = [name for name in (turns, "key", "id") if name in dataset.column_names]
    number = 0
    for batch in dataset.select_columns(columns).iter(BATCH):
        for i, messages in enumerate(batch[turns]):
            number += 1
            row = {"id": batch["id"][i] if "id" in batch else number, "key": batch["key"][i] if "key" in batch else ""}
            yield {**row, "text": user_text({"messages": messages})}


def tokens_of(text: str) -> list[str]:
    """The tokens that are compared: lower-case words and numbers, and single characters of Chinese, Japanese, Thai."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


class SimilarityIndex:
    """Finds the reserved text that a text is too similar to.

    For `lcs` a text is first compared as a bag of tokens with all reserved ones at once: the tokens they share, counted
    with repetition, are at least as many as their longest common subsequence. The subsequence itself is computed where
    that bound leaves it possible, for a block of reserved texts at a time (`_Block`). Nothing is missed.

    Args:
        texts: the reserved texts. keys: their keys; "" for none.
    """

    def __init__(self, texts: Sequence[str], keys: Sequence[str] = (), *, method: Method = "lcs") -> None:
        import numpy as np

        if method not in METHODS:
            remedy = f"there are {', '.join(METHODS)}"
            raise PosttrainError(Problem(f"no method of decontamination is called {method!r}", remedy=remedy))
        level = METHODS.index(method)
        self._keys = {key: i for i, key in reversed(list(enumerate(keys))) if key} if level >= 1 else {}
        self._texts = {normalise(text): i for i, text in reversed(list(enumerate(texts)))} if level >= 2 else {}
        self._texts.pop("", None)
        self._tokens = [tokens_of(text) for text in texts] if level >= 3 else []
        self._lengths = np.array([len(tokens) for tokens in self._tokens], dtype=np.int64)
        self._postings = _postings(self._tokens)
        self._blocks = [_Block(self._tokens[i : i + BLOCK]) for i in range(0, len(self._tokens), BLOCK)]

    def find(self, text: str, key: str = "") -> Match | None:
        """Why the text is too similar, or None. Of several matches one of the closest is given."""
        if key and key in self._keys:
            return Match(self._keys[key], "key")
        if self._texts and (same := self._texts.get(normalise(text))) is not None:
            return Match(same, "text")
        return self._find_subsequence(tokens_of(text)) if self._tokens else None

    def _find_subsequence(self, tokens: list[str]) -> Match | None:
        import numpy as np

        if len(tokens) < MIN_LCS:
            return None
        shared = self._shared_tokens(tokens)
        shorter = np.minimum(self._lengths, len(tokens))
        needed = np.maximum(MIN_LCS, np.ceil(MIN_SHARE * shorter - 1e-9))
        possible = np.flatnonzero(shared >= needed)
        best_first = possible[np.argsort(-(shared[possible] / shorter[possible]), kind="stable")]
        for block in dict.fromkeys((best_first // BLOCK).tolist()):
            members = possible[possible // BLOCK == block]
            lengths = self._blocks[block].lcs(tokens, (members - block * BLOCK).tolist())
            matches = [
                Match(i, "lcs", length, length / int(shorter[i]))
                for i, length in zip(members.tolist(), lengths, strict=True)
                if length >= needed[i]
            ]
            if matches:
                return max(matches, key=lambda match: match.share)
        return None

    def _shared_tokens(self, tokens: list[str]) -> np.ndarray:
        """How many tokens each reserved text shares with these, counted with repetition."""
        import numpy as np

        times: Counter[str] = Counter()
        found = []
        for token in tokens:
            if token in self._postings:
                postings = self._postings[token]
                if times[token] < len(postings):
                    found.append(postings[times[token]])
                times[token] += 1
        if not found:
            return np.zeros(len(self._tokens), dtype=np.int64)
        return np.bincount(np.concatenate(found), minlength=len(self._tokens))


class _Block:
    """Some reserved texts, one after the other in the bits of an integer, with a guard bit after each.

    Bit-parallel LCS, after Hyyro (2004): `row` is a row of the textbook's table, where a zero bit says that the table
    grows by one at that token. A token's update is an addition whose carry ends in the guard bit of its text at the
    latest, so the texts do not disturb each other.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._places: list[tuple[int, int]] = []  # each text's first bit, and its tokens
        self._positions: dict[str, int] = defaultdict(int)
        self._inside = 0  # all bits but the guards
        offset = 0
        for tokens in texts:
            for j, token in enumerate(tokens, offset):
                self._positions[token] |= 1 << j
            self._places.append((offset, len(tokens)))
            self._inside |= ((1 << len(tokens)) - 1) << offset
            offset += len(tokens) + 1

    def lcs(self, tokens: Sequence[str], members: Sequence[int]) -> list[int]:
        """Lengths of the longest common subsequences with the members asked for."""
        row = inside = self._inside
        positions = self._positions
        for token in tokens:
            if token in positions:
                met = row & positions[token]
                row = ((row + met) | (row - met)) & inside
        found = []
        for offset, length in (self._places[member] for member in members):
            found.append(length - ((row >> offset) & ((1 << length) - 1)).bit_count())
        return found


def _postings(texts: list[list[str]]) -> dict[str, list[np.ndarray]]:
    """For each token and each k, which texts have it more than k times."""
    import numpy as np

    lists: dict[str, list[list[int]]] = {}
    for i, tokens in enumerate(texts):
        for token, times in Counter(tokens).items():
            levels = lists.setdefault(token, [])
            levels += [[] for _ in range(times - len(levels))]
            for k in range(times):
                levels[k].append(i)
    return {token: [np.array(level, dtype=np.int64) for level in levels] for token, levels in lists.items()}
