"""The data sets of a run: read, the validation rows set aside before any generation, and the rest decontaminated."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.decontamination import decontaminate
from posttrain.data.reserve import reserve
from posttrain.data.sources import LoadCounts, load
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir, is_made_from, seal, write_json
from posttrain.progress import progress
from posttrain.tasks.registry import get_task

if TYPE_CHECKING:
    from datasets import Dataset

    from posttrain.recipe.schema import DataSpec, Recipe

log = logging.getLogger("posttrain")


def prepare_data(
    recipe: Recipe, run: RunDir, base_dir: Path, *, sources: Mapping[str, Any] | None = None, quiet: bool = True
) -> None:
    """Make the data sets of a recipe that are not there yet, or were made from something else.

    All reserved rows are chosen first: a row of one data set may be too close to a reserved row of another.

    Args:
        base_dir: where relative paths of the recipe begin.
        sources: what each data set is made from, as its manifest is to say.
        quiet: show no progress.

    Raises:
        PosttrainError: a data set cannot be read, has bad rows, or is to reserve conversations or more problems than it
            has.
    """
    sources = sources or {}
    missing = [name for name in recipe.data if not _stands(recipe, run, name, sources.get(name))]
    with tempfile.TemporaryDirectory() as scratch:
        training: dict[str, tuple[Dataset, dict[str, Any]]] = {}
        for name in missing:
            spec = recipe.data[name]
            loaded = load(name, spec, base_dir=base_dir, seed=recipe.seed, cache_dir=Path(scratch), quiet=quiet)
            if spec.reserve and "prompt" not in loaded.dataset.column_names:
                raise PosttrainError(no_queries(name))
            rest, reserved = reserve(loaded.dataset, spec.reserve, recipe.seed)
            training[name] = rest, _facts(name, spec, loaded.counts, rest, reserved)
            if spec.reserve:
                _write_parquet(reserved, run.reserved(name))
        everything = [row for name in recipe.data if recipe.data[name].reserve for row in reserved_rows(run, name)]
        for name, (rest, facts) in training.items():
            _keep(recipe, run, name, rest, facts, everything, quiet)
            seal(run.data(name), made_from=sources.get(name))


def _stands(recipe: Recipe, run: RunDir, name: str, source: Any) -> bool:
    reserved = not recipe.data[name].reserve or run.reserved(name).exists()
    return reserved and is_made_from(run.data(name), source)


def no_queries(name: str) -> Problem:
    """What is told where conversations are to be reserved."""
    return Problem(
        f"data {name!r} are conversations: they cannot be reserved for evaluation",
        f"data.{name}.reserve",
        "an evaluation asks a question and scores the answer, and a conversation has neither apart",
        "reserve from queries (`prompt`, `answer` and a `verifier`; `map` makes the columns), or leave `reserve` out",
    )


def reserved_rows(run: RunDir, name: str) -> list[dict[str, Any]]:
    """The rows of a data set that were set aside for evaluation."""
    import pyarrow.parquet as parquet

    rows: list[dict[str, Any]] = parquet.read_table(run.reserved(name)).to_pylist()
    return rows


def _facts(name: str, spec: DataSpec, counts: LoadCounts, rest: Dataset, reserved: Dataset) -> dict[str, Any]:
    """What became of the rows so far. Reserved rows that a task cannot keep apart from others are told at once."""
    shared_starts = getattr(get_task(spec.task), "shared_starts", None) if spec.task and spec.reserve else None
    shared = shared_starts(reserved) if shared_starts else []
    for line in shared:
        log.warning("data %s: %s", name, line)
    return {
        "rows_read": counts.read,
        "filtered_out": counts.filtered,
        "bad_rows_skipped": counts.bad,
        "bad_rows": list(counts.bad_examples),
        "reserved": len(reserved),
        "like_reserved": counts.kept - len(reserved) - len(rest),  # the same problems once more
        "not_held_out": shared,
    }


def _keep(
    recipe: Recipe,
    run: RunDir,
    name: str,
    rest: Dataset,
    facts: Mapping[str, Any],
    reserved: list[Any],
    quiet: bool,
) -> None:
    method = recipe.data[name].decontaminate
    compared = bool(reserved) and method != "off"
    with progress(f"comparing data {name} with reserved rows", len(rest), quiet=quiet or not compared) as advance:
        kept, report = decontaminate(rest, reserved, method=method, progress=advance)
    if not len(kept) and name in _trained_on(recipe):
        rows = len(rest) + facts["like_reserved"] + facts["reserved"]
        raise PosttrainError(
            Problem(
                f"data {name!r} has no row left to train on: of {rows} rows {facts['reserved']} are reserved, and "
                f"{rows - facts['reserved']} were too close to reserved ones",
                f"data.{name}.reserve",
                remedy="reserve fewer, give more rows, or choose another `decontaminate`",
            )
        )
    directory = run.data(name)
    shutil.rmtree(directory, ignore_errors=True)
    kept.save_to_disk(str(directory))
    write_json(directory / "funnel.json", {**facts, "decontamination": report.to_dict(), "for_training": len(kept)})


def _trained_on(recipe: Recipe) -> set[str]:
    """The data sets that a stage uses, or a tokenizer is trained on; the others may be for evaluation alone."""
    models = [recipe.model, *(stage.model for stage in recipe.stages.values())]
    texts = {name for model in models for name in getattr(model and model.tokenizer, "train_on", ())}
    return texts | {name for stage in recipe.stages.values() for _, name in stage.data_references()}


def _write_parquet(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    dataset.to_parquet(str(partial))
    partial.replace(path)
