"""Whether a sample is too close to a reserved (validation) query of the recipe.

Queries are compared as the data sets are (`data.decontamination`). Responses are longer than queries, and a long text
has the common words of any short one in order, so a longest common subsequence says nothing there: a response goes when
it quotes a reserved query, thirteen words in a row that its own query does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain.data.decontamination import METHODS, Method, SimilarityIndex, tokens_of, user_text

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe
    from posttrain.recipe.stage import StageContext


class Reserved:
    """The reserved queries, to be looked for in samples.

    Args:
        rows: queries or conversations.
        method: how queries are compared. `key` finds the same problem only: texts made from one template all look
            alike, in responses too, so quotations are looked for by the other methods alone.
        quoted: words in a row that make a quotation.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], method: Method, quoted: int) -> None:
        rows = list(rows)
        self._texts = [user_text(row) for row in rows]
        self._index = SimilarityIndex(self._texts, [str(row.get("key") or "") for row in rows], method=method)
        self._length = quoted
        self._quotations: dict[tuple[str, ...], int] = {}
        if method in ("text", "lcs"):
            for place, text in enumerate(self._texts):
                for gram in self._grams(text):
                    self._quotations.setdefault(gram, place)

    def like(self, text: str, key: str) -> str | None:
        """The reserved query that a query is too similar to, or None."""
        match = self._index.find(text, key)
        return None if match is None else self._texts[match.reserved]

    def quoted_in(self, text: str, question: str) -> str | None:
        """The reserved query that a response quotes, or None. What its own question says is no quotation."""
        if not self._quotations or not text:
            return None
        found = [gram for gram in self._grams(text) if gram in self._quotations]
        if not found:
            return None
        own = set(self._grams(question))
        return next((self._texts[self._quotations[gram]] for gram in found if gram not in own), None)

    def _grams(self, text: str) -> Sequence[tuple[str, ...]]:
        tokens = tokens_of(text)
        return [tuple(tokens[i : i + self._length]) for i in range(len(tokens) - self._length + 1)]


def method_of(recipe: Recipe, names: Iterable[str]) -> Method:
    """How rows of these data sets are compared: as the one among them that compares least."""
    found = [METHODS.index(recipe.data[name].decontaminate) for name in names if name in recipe.data]
    return METHODS[min(found)] if found else "lcs"


def data_behind(recipe: Recipe, stage: str) -> list[str]:
    """The data sets whose queries a stage used, those of the stages it took queries from included."""
    names = [name for _, name in recipe.stages[stage].data_references()]
    for _, other in recipe.stages[stage].stage_references():
        names += data_behind(recipe, other) if other in recipe.stages and other != stage else []
    return names


def open_reserved(context: StageContext, method: Method, quoted: int) -> Reserved | None:
    """The reserved queries of all data sets of the run; None where there are none, or they are not compared."""
    from posttrain.data.prepare import reserved_rows

    rows = [
        row
        for name, spec in context.recipe.data.items()
        if spec.reserve and method != "off"
        for row in reserved_rows(context.run, name)
    ]
    return Reserved(rows, method, quoted) if rows else None
