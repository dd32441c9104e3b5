"""The data of an SFT stage, step by step: pools, mix, conversations, tokens. Memory stays flat: all lies on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.funnel import Drop, Funnel, json_line
from posttrain.data.mixing import mix
from posttrain.errors import PosttrainError, Problem
from posttrain.progress import progress
from posttrain.sft.fusion import MODES, Fusion, describe, fuse
from posttrain.sft.rows import RowWriter, iterate
from posttrain.sft.sampler import Models
from posttrain.sft.samples import Message, Sample, query_columns, sample_of
from posttrain.sft.sources import Collector
from posttrain.tasks.task import QUERY_COLUMNS, derive_seed
from posttrain.templates.families import Mode

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.data.counts import TokenCounts
    from posttrain.recipe.stage import StageContext
    from posttrain.sft.stage import SftStage

QUERIES_WRITTEN = 1000  # rows of queries.parquet written at once


def build_sft_data(stage: SftStage, context: StageContext) -> dict[str, Any]:
    """Write the stage's data directory; return the funnel. A funnel is written even where the data come to nothing."""
    funnel = Funnel(seed=context.seed)
    try:
        pools = Collector(context, stage.filters, funnel, Models(context)).collect(stage.samples)
        given = {label: source.weight for label, source in zip(pools, stage.samples, strict=True) if source.weight}
        samples, shares = mix(pools, given or None, stage.size, derive_seed(context.seed, "mix"))
        funnel.facts["mix"] = [asdict(share) for share in shares]
        conversations = write_conversations(samples, stage.fusion, context, funnel)
        tokenize(conversations, stage, context, funnel)
    finally:
        funnel.write(context.dir.data)
    shutil.rmtree(context.dir.data / "work")
    return funnel.as_json()


def write_conversations(samples: Dataset, fusion: Fusion | None, context: StageContext, funnel: Funnel) -> Dataset:
    """Write the conversations to samples.jsonl and to an Arrow file, the queries behind them to queries.parquet."""
    data = context.dir.data
    counts: dict[str, Any] = {}
    columns = {"source": "string", "messages": "json", "tools": "json"}
    with (
        RowWriter(data / "work" / "conversations.arrow", columns) as arrow,
        (data / ".samples.jsonl.partial").open("w", encoding="utf-8") as lines,
        _query_writer(data / "queries.parquet") as keep_query,
        progress(f"{context.name}: conversations", len(samples), quiet=context.quiet) as advance,
    ):
        for messages, parts in _conversations(samples, fusion, context):
            for part in parts:
                keep_query(part.query)
            describe(counts, messages, context.family)
            tools = parts[0].tools
            source = " + ".join(dict.fromkeys(part.source for part in parts))
            arrow.write({"source": source, "messages": messages, "tools": tools})
            row = {"source": source, "modes": [part.mode for part in parts], "messages": messages}
            lines.write(json_line(row | ({"tools": tools} if tools else {})) + "\n")
            advance(len(parts))
        conversations = arrow.finish()
    (data / ".samples.jsonl.partial").replace(data / "samples.jsonl")
    funnel.facts["conversations"] = counts
    return conversations


def _conversations(
    samples: Dataset, fusion: Fusion | None, context: StageContext
) -> Iterator[tuple[list[Message], list[Sample]]]:
    if fusion is None:
        for sample in map(sample_of, iterate(samples)):
            yield sample.messages, [sample]
        return
    modes: list[Mode] = list(samples["mode"])
    missing = [mode for mode in MODES if mode not in modes]
    if missing:
        raise PosttrainError(
            Problem(
                f"stage {context.name}: fusion, and no sample is in mode {missing[0]}",
                why="a model that sees one mode alone does not learn to choose",
                remedy="add a source of that mode under `samples:`",
            )
        )
    seed = derive_seed(context.seed, "fusion")
    joinable: list[bool] = list(samples["joinable"])
    yield from fuse(modes, joinable, lambda place: sample_of(samples[place]), fusion, context.family, seed)


@contextmanager
def _query_writer(path: Path) -> Iterator[Any]:
    """Gives a function that keeps a query, each once."""
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    texts = [pa.field(name, pa.string()) for name in QUERY_COLUMNS if name not in ("difficulty", "prompt")]
    message = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
    schema = pa.schema([*texts, pa.field("difficulty", pa.int64()), pa.field("prompt", pa.list_(message))])
    seen: set[int] = set()
    rows: list[dict[str, Any]] = []

    def keep(query: dict[str, Any]) -> None:
        mark = hash((query["id"], query["key"]))
        if mark not in seen:
            seen.add(mark)
            rows.append(query_columns(query))
        if len(rows) >= QUERIES_WRITTEN:
            flush()

    def flush() -> None:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        rows.clear()

    path.unlink(missing_ok=True)  # not written into: another run's data may be the same file
    with pq.ParquetWriter(str(path), schema) as writer:
        yield keep
        flush()


def tokenize(conversations: Dataset, stage: SftStage, context: StageContext, funnel: Funnel) -> None:
    """Write data/train: tokens and labels, packed where the recipe says so, with each sample's length."""
    from posttrain.data.arrow import ListColumn
    from posttrain.data.counts import TokenCounts
    from posttrain.data.packing import pack
    from posttrain.data.tokens import tokenize_conversations
    from posttrain.model.policy import load_tokenizer
    from posttrain.sft.stage import DEFAULT_MAX_LENGTH

    max_length = stage.train.get("max_length", DEFAULT_MAX_LENGTH)
    counts = TokenCounts()
    work = context.dir.data / "work"
    try:
        with progress(f"{context.name}: tokens", len(conversations), quiet=context.quiet) as advance:
            dataset = tokenize_conversations(
                conversations,
                load_tokenizer(context.start),
                context.family,
                max_length=max_length,
                history=stage.history,
                overlong=stage.overlong,
                supervise_empty_think=stage.supervise_empty_think,
                counts=counts,
                cache_file=work / "tokens.arrow",
                progress=advance,
            )
    finally:
        _record(counts, conversations, funnel)
    if stage.packing:
        dataset = pack(dataset, max_length, cache_file=work / "packed.arrow")
        funnel.facts["packed_rows"] = len(dataset)
    else:  # else the sampler that groups by length would read every sample for it
        dataset = dataset.add_column("length", ListColumn(dataset, "input_ids").lengths)
    target = context.dir.data / "train"
    shutil.rmtree(target, ignore_errors=True)
    dataset.save_to_disk(str(target))


def _record(counts: TokenCounts, conversations: Dataset, funnel: Funnel) -> None:
    """What the tokenizer skipped, in the funnel and among its examples."""
    figures = counts.as_dict()
    skipped, examples = figures.pop("skipped"), figures.pop("examples")
    funnel.count("all", "tokens", counts.samples, skipped)
    for example in examples:
        drop = Drop(example["reason"], example["detail"])
        text = json.dumps(conversations[example["row"]]["messages"], ensure_ascii=False)
        funnel.show("all", "tokens", drop, {"content": text})
    funnel.facts["tokens"] = figures
