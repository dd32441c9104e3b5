"""Accuracy while a stage trains: the points of the curves of accuracy by compute (Qwen3 report, Table 21 in kind)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain.data.prepare import reserved_rows
from posttrain.evaluation.evaluate import generator, grade
from posttrain.evaluation.scores import score

if TYPE_CHECKING:
    from posttrain.recipe.stage import StageContext


class CurveProbe:
    """Scores the policy in the family's default mode on an even share of the headline queries.

    It draws no global random number, so a run with curve points ends with the same weights as one without.
    """

    def __init__(self, context: StageContext, tokenizer: Any) -> None:
        self.spec = context.recipe.evaluation
        self.family, self.kind, self.tokenizer = context.family, context.kind, tokenizer
        queries = reserved_rows(context.run, self.spec.data[0])
        step = max(1, len(queries) // self.spec.curve_queries)
        self.queries = queries[::step][: self.spec.curve_queries]

    def __call__(self, model: Any) -> dict[str, Any]:
        graded = grade(
            generator(model, self.tokenizer, self.family, self.spec),
            self.queries,
            self.family.default_mode,
            kind=self.kind,
            family=self.family,
            samples=1,
            seed=self.spec.seed,
        )
        accuracy = score([row.scores for row in graded])
        tokens = [completion.thinking_tokens for row in graded for completion in row.completions]
        return {
            "accuracy": accuracy["value"],
            "low": accuracy["low"],
            "high": accuracy["high"],
            "n": accuracy["n"],
            "thinking_tokens": sum(tokens) / max(1, len(tokens)),
        }
