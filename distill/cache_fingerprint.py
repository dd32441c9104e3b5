"""What a teacher's answers and log-probabilities depend on, as JSON-able data: equal data, the same cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.model.artifacts import checksum
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.fingerprint import content_of
from posttrain.recipe.teacher import Teacher, Teachers, each_teacher
from posttrain.sft.sampler import model_place
from posttrain.templates.families import Family
from posttrain.templates.render import template_text

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.stage import StageContext
    from posttrain.sft.stage import SftStage

WEIGHTS = (".safetensors", ".bin", ".gguf", "config.json")
"""Ends of the names of files that a model's distribution depends on."""
DATA_OPTIONS = {"samples", "size", "filters", "fusion", "history", "overlong", "supervise_empty_think", "packing"}


def mark_of(fingerprint: Mapping[str, Any]) -> str:
    """A short name for a fingerprint."""
    return hashlib.blake2b(json.dumps(fingerprint, sort_keys=True).encode(), digest_size=6).hexdigest()


def answers_fingerprint(stage: SftStage, context: StageContext, tokenizer: Any) -> dict[str, Any]:
    """What the teacher's answers depend on, as tokens: no name of a stage, nothing of the student but its tokenizer."""
    queries = sorted({name for _, name in stage.data_references()})
    options = stage.model_dump(mode="json", include=DATA_OPTIONS, exclude_defaults=True)
    options["samples"] = dict(enumerate(options["samples"]))  # by key: a difference is told down to the option
    asked: dict[str, Any] = {
        "teacher": teacher_identity(context.teacher),
        **_precision(context),
        **_rendering(tokenizer, context.family),
        "queries": {name: _arrow_files(context.run.data(name)) for name in queries},
        "asked": options,
        "max_length": stage.train.get("max_length", "default"),
        "seed": context.recipe.seed,
    }
    solved = stage.filters.queries.not_solved_without_thinking
    if solved is not None:
        asked["solved_by"] = teacher_identity(model_place(context, solved.model))
    return _plain(asked)


def logprobs_fingerprint(
    context: StageContext, tokenizer: Any, rows: Dataset, *, k: int, temperature: float
) -> dict[str, Any]:
    """What stored log-probabilities depend on: the teacher, the tokens, and what is kept of its distribution."""
    return _plain(
        {
            "teacher": teacher_identity(context.teacher),
            **_precision(context),
            **_rendering(tokenizer, context.family),
            "tokens": tokens_identity(rows),
            "top_k": k,
            "temperature": temperature,
        }
    )


def teacher_identity(place: Path | EndpointSpec | Teachers | None) -> Any:
    """A model's weights by name, size and checksum; a hub id or a served model by name; several by what they teach."""
    if isinstance(place, Teachers):
        return {".".join(map(str, loc)): teacher_identity(_place(one)) for loc, one in each_teacher(place)}
    if isinstance(place, EndpointSpec):
        return place.identity()
    if place is None or not place.is_dir():
        return str(place)
    return {name: content for name, content in content_of(str(place)).items() if name.endswith(WEIGHTS)}


def _precision(context: StageContext) -> dict[str, str]:
    """What a teacher here computes in; a served one chooses for itself."""
    served = all(isinstance(one, EndpointSpec) for _, one in each_teacher(_teachers(context)))
    dtype = context.recipe.model.dtype
    return {} if served or dtype == "float32" else {"dtype": dtype}


def _teachers(context: StageContext) -> Teacher | None:
    return str(context.teacher) if isinstance(context.teacher, Path) else context.teacher


def _place(one: str | EndpointSpec) -> Path | EndpointSpec:
    return Path(one) if isinstance(one, str) else one


def tokens_identity(rows: Dataset) -> str:
    """Number and checksum of a data set's tokens and labels."""
    import numpy as np

    from posttrain.data.arrow import ListColumn

    value = 0
    for name in ("input_ids", "labels"):
        column = ListColumn(rows, name)
        for first in range(0, len(rows), 1000):
            some = np.arange(first, min(first + 1000, len(rows)))
            value = zlib.crc32(column.lengths[some].tobytes(), value)
            value = zlib.crc32(column.gather(some).astype(np.int32).tobytes(), value)
    return f"{len(rows)} rows, crc32 {value:08x}"


def _rendering(tokenizer: Any, family: Family) -> dict[str, str]:
    text = template_text(family) + json.dumps(dataclasses.asdict(family), sort_keys=True, default=str)
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    pieces = getattr(tokenizer, "backend_tokenizer", None)
    split = pieces.to_str() if pieces is not None else ""
    return {
        "tokenizer": f"{len(tokenizer)} entries, crc32 {zlib.crc32((vocabulary + split).encode()):08x}",
        "template": f"{family.name}, crc32 {zlib.crc32(text.encode()):08x}",
    }


def _arrow_files(directory: Path) -> dict[str, str]:
    files = sorted(directory.glob("*.arrow"))
    return {file.name: f"{file.stat().st_size} bytes, crc32 {checksum(file):08x}" for file in files}


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, sort_keys=True, default=str))
    return plain
