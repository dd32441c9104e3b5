"""Pairs of a chosen and a rejected answer: given as data, or from a model's own answers (Qwen2.5's offline RL).

A query that a model answers rightly and wrongly gives one pair: passed is chosen, failed is rejected. Answers are
written chunk by chunk, so a killed build goes on behind the last whole one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from posttrain.data.funnel import Drop, Funnel
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import read_json
from posttrain.progress import progress
from posttrain.recipe.schema import Spec
from posttrain.recipe.stage import Fault
from posttrain.sft.completions import Candidate, Completions
from posttrain.sft.rejection_sampling import unusable
from posttrain.tasks.procedural import entry_of
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import plain_message, verdict_of
from posttrain.templates.families import FAMILIES, Family, Mode
from posttrain.templates.parsed import ToolCall
from posttrain.templates.render import render_training

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe
    from posttrain.recipe.stage import StageContext

Pair = dict[str, Any]  # query (its row), prompt (messages), chosen and rejected (assistant's messages)


class PairSource(Spec):
    """Where pairs come from: rows that have both answers (`data`), or answers sampled here (`queries`)."""

    data: str | None = Field(default=None, description="a name under `data:` whose rows have `chosen` and `rejected`")
    queries: str | None = Field(default=None, description="a name under `data:` whose queries are answered")
    limit: int | None = Field(default=None, gt=0, description="rows or queries at most")
    mode: Mode = Field(default="thinking", description="the mode in which queries are answered")
    samples: int = Field(default=8, ge=2, description="answers a query")
    max_new_tokens: int = Field(default=1024, gt=0, description="of an answer; longer ones are no part of a pair")
    batch_size: int = Field(default=64, gt=0, description="answers generated at once")
    chunk: int = Field(default=512, gt=0, description="answers written at a time: what a kill can cost")

    @model_validator(mode="after")
    def _one_origin(self) -> PairSource:
        if (self.data is None) == (self.queries is None):
            raise ValueError("give either `data` (rows with chosen and rejected) or `queries` (to be answered)")
        return self

    @property
    def name(self) -> str:
        """The data set."""
        return str(self.data or self.queries)

    def faults(self, recipe: Recipe) -> Iterator[Fault]:
        """What is wrong with it in this recipe."""
        family = FAMILIES.get(recipe.template.family)
        if self.queries is not None and family is not None and self.mode not in family.modes:
            remedy = f"it has {', '.join(family.modes)}"
            yield Fault(("pairs", "mode"), f"{family.name} has no {self.mode} mode", remedy=remedy)

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [(("pairs", "data" if self.data else "queries"), self.name)]


def build_pairs(source: PairSource, context: StageContext, funnel: Funnel) -> list[Pair]:
    """The pairs of a stage, every row or query counted.

    Raises:
        PosttrainError: none is left.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(context.run.data(source.name)))
    rows = rows.select(range(min(source.limit or len(rows), len(rows))))
    pairs = list(_given(rows, source, funnel) if source.data else _sampled(list(rows), source, context, funnel))
    if not pairs:
        why = "no row has both answers" if source.data else "every query was answered all rightly or all wrongly"
        remedy = "see docs/recipe.md, Data formats" if source.data else "raise `samples`, or ask other queries"
        raise PosttrainError(Problem(f"stage {context.name}: no pair is left", why=why, remedy=remedy))
    funnel.facts |= {"pairs": len(pairs)}
    return pairs


def _given(rows: Any, source: PairSource, funnel: Funnel) -> Iterator[Pair]:
    for row in rows:
        rejected = entry_of(row).get("rejected")
        drop = None if rejected and row["response"] and rejected != row["response"] else Drop("no_pair")
        funnel.record(source.name, "pair", drop, {"prompt": row["prompt"][-1]["content"], "rejected": rejected})
        if drop is None:
            chosen, worse = ({"role": "assistant", "content": text} for text in (row["response"], rejected))
            yield {"query": row, "prompt": messages_of(row["prompt"]), "chosen": chosen, "rejected": worse}


def _sampled(
    queries: list[dict[str, Any]], source: PairSource, context: StageContext, funnel: Funnel
) -> Iterator[Pair]:
    from posttrain.sft.sampler import identity, open_sampler

    def sampler() -> Any:
        return open_sampler(
            context, "start", max_new_tokens=source.max_new_tokens, batch_size=source.batch_size, sampling={}
        )

    completions = Completions(
        queries,
        sampler,
        directory=context.dir.data / "completions",
        samples=source.samples,
        mode=source.mode,
        seed=context.seed,
        made_with=[identity(context.start), source.max_new_tokens],
        chunk=source.chunk,
    )
    with progress(f"answers for {context.name}", len(completions), quiet=context.quiet) as advance:
        completions.generate(advance)
    for group in completions:
        query = queries[group[0].query]
        pair = _pair_of(query, group, source.mode, funnel, source.name)
        drop = Drop("no_difference", "all right, or none") if pair is None else None
        funnel.record(source.name, "pair", drop, {"prompt": query["prompt"][-1]["content"]})
        if pair is not None:
            yield pair


def _pair_of(query: dict[str, Any], group: Sequence[Candidate], mode: Mode, funnel: Funnel, source: str) -> Pair | None:
    """The first right and the first wrong one of a query's answers; None without both."""
    passed: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None
    for candidate in group:
        drop = unusable(candidate, mode)
        funnel.record(source, "usable", drop, None)
        if drop is not None:
            continue
        if score_of(query, candidate.message) >= 1.0:
            passed = passed or candidate.message
        else:
            failed = failed or candidate.message
    if passed is None or failed is None:
        return None
    return {"query": query, "prompt": messages_of(query["prompt"]), "chosen": passed, "rejected": failed}


def score_of(query: Mapping[str, Any], message: Mapping[str, Any]) -> float:
    """The task's score of an assistant's message, as it is kept on disk."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    parsed = plain_message(
        str(message.get("content") or ""),
        reasoning=message.get("reasoning_content"),
        tool_calls=tuple(ToolCall(str(call["name"]), call["arguments"]) for call in calls),
    )
    return float(verdict_of(get_task(str(query["task"])), parsed, query).value)


def messages_of(prompt: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A prompt's messages without the nulls that Arrow made up."""
    return [{key: value for key, value in message.items() if value is not None} for message in prompt]


def texts_of(pair: Mapping[str, Any], family: Family) -> tuple[str, str, str]:
    """A pair as text: the prompt with the assistant's header, and what follows it in either answer, as trained on."""
    texts = []
    for message in (pair["chosen"], pair["rejected"]):
        text, spans = render_training([*pair["prompt"], message], family)
        texts.append((text[: spans[-1][0]], text[spans[-1][0] : spans[-1][1]]))
    (prompt, chosen), (_, rejected) = texts
    return prompt, chosen, rejected


def answer_text(prompt: Sequence[Mapping[str, Any]], content: str, family: Family) -> str:
    """A prompt and an answer as a reward model reads them: without thinking, to the end of the answer's turn."""
    answer = {"role": "assistant", "content": content}
    text, spans = render_training([*messages_of(prompt), answer], family)
    return text[: spans[-1][1]]


def write_queries(pairs: Sequence[Pair], directory: Path) -> None:
    """Write queries.parquet, so that other stages can leave these queries out."""
    from datasets import Dataset

    Dataset.from_list([dict(pair["query"]) for pair in pairs]).to_parquet(str(directory / "queries.parquet"))


class Scorer:
    """A reward model's rewards of texts.

    Attributes:
        family: the dialect it was trained with.
    """

    def __init__(self, directory: Path) -> None:
        """Load it.

        Raises:
            PosttrainError: there is none in the directory.
        """
        from transformers import AutoModelForSequenceClassification

        from posttrain.model.policy import load_tokenizer, placed
        from posttrain.sft.sampler import dialect
        from posttrain.templates.families import get_family

        config = read_json(directory / "config.json") if directory.is_dir() else None
        architecture = str(((config or {}).get("architectures") or [""])[0])
        if not architecture.endswith("ForSequenceClassification"):
            what = f"{directory}: no reward model there" + (f" ({architecture})" if architecture else "")
            raise PosttrainError(Problem(what, remedy="name a stage of kind `reward_model`, or its model's directory"))
        model = AutoModelForSequenceClassification.from_pretrained(str(directory), local_files_only=True)
        self._model = placed(model.eval())
        self._tokenizer = load_tokenizer(directory)
        self.family = dialect(directory, get_family("qwen3"))

    def fits(self, text: str) -> bool:
        """Whether the model has as many positions as the text has tokens."""
        tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return tokens <= int(getattr(self._model.config, "max_position_embeddings", tokens))

    def __call__(self, texts: Sequence[str], batch_size: int) -> list[float]:
        """One reward a text, in order. Long texts are read together, so that little is padded."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        rewards = [0.0] * len(texts)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = self._tokenizer(
                [texts[i] for i in places],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_token_type_ids=False,
            ).to(self._model.device)
            with torch.inference_mode():
                values = self._model(**batch).logits[:, 0].float().tolist()
            for place, value in zip(places, values, strict=True):
                rewards[place] = value
        return rewards


def pair_accuracy(scorer: Scorer, pairs: Sequence[Pair], batch_size: int = 32) -> list[float]:
    """For each pair 1 where the chosen answer's reward is the higher one, 0.5 where they are equal, else 0."""
    texts = [
        answer_text(pair["prompt"], str(pair[side].get("content") or ""), scorer.family)
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    rewards = scorer(texts, batch_size)
    return [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(rewards[::2], rewards[1::2], strict=True)]
