"""What a run will do, before it does it: stages, samples, tokens, parameters, memory, disk, engine."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.load import LoadedRecipe
from posttrain.recipe.references import kinds_of, start_of
from posttrain.recipe.schema import DataSpec, ModelSpec, Recipe
from posttrain.recipe.trainer_options import option_names
from posttrain.run.context import root_spec
from posttrain.run.estimates import Disk, Memory, run_disk, stage_disk, stage_memory, trained_parameters

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_BATCH = 8  # transformers' per_device_train_batch_size
DEFAULT_EPOCHS = 3.0
DEFAULT_LENGTH = 1024  # TRL's max_length


@dataclass(frozen=True)
class StagePlan:
    """One stage, estimated. None where the recipe alone does not tell.

    Attributes:
        samples: samples that optimizer steps consume; tokens: trained tokens at most.
    """

    name: str
    kind: str
    start: str
    model_kind: str
    steps: int | None
    samples: int | None
    tokens: int | None
    parameters: int | None
    trained: int | None
    memory: Memory | None
    disk: Disk | None


def parameter_count(spec: ModelSpec) -> int | None:
    """Parameters of a model, counted on its shape; None for a hub's model whose shape the recipe does not give.

    Raises:
        PosttrainError: no model can be made of the shape, whatever transformers raises.
    """
    try:
        return _counted(spec)
    except Exception as error:
        line = " ".join(str(error).split())
        named = spec.path or spec.architecture or "the model"
        what = f"no model can be made of the shape of {named}: {type(error).__name__}: {line}"[:400]
        raise PosttrainError(Problem(what, remedy="correct `model.config`, or the config.json of the model")) from error


def _counted(spec: ModelSpec) -> int | None:
    import torch
    import transformers

    config: Any = None
    if spec.architecture is not None:
        config = getattr(transformers, spec.architecture).config_class(**_sized(spec))
    elif spec.path is not None and os.path.isabs(spec.path) and (Path(spec.path) / "config.json").exists():
        config = transformers.AutoConfig.from_pretrained(spec.path, local_files_only=True)
    elif spec.config:
        config = transformers.AutoConfig.for_model(**spec.config)
    if config is None:
        return None
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def _sized(spec: ModelSpec) -> dict[str, Any]:
    wanted = getattr(spec.tokenizer, "vocab_size", None)
    return {**({"vocab_size": -(-wanted // 32) * 32} if wanted else {}), **spec.config}


def stage_plan(recipe: Recipe, name: str, counts: Mapping[str, int | None]) -> StagePlan:
    """The estimate of one stage.

    Args:
        counts: parameters of the model at each stage's root, and of each teacher, by stage name.
    """
    stage = recipe.stages[name]
    train = stage.train
    origin = start_of(recipe, name)
    start = origin[1] if origin[0] == "stage" else "its own model" if origin[0] == "model" else "base"
    batch = int(train.get("per_device_train_batch_size", DEFAULT_BATCH))
    batch *= int(train.get("gradient_accumulation_steps", 1)) * recipe.engine.processes
    rows = _rows(recipe, name)
    steps = int(train.get("max_steps", -1))
    if steps <= 0:
        epochs = float(train.get("num_train_epochs", DEFAULT_EPOCHS))
        groups = int(train.get("num_generations", 8)) if "num_generations" in option_names(stage.trainer_config) else 1
        steps = math.ceil(rows * groups / batch * epochs) if rows else 0
    length = train.get("max_length") or train.get("max_completion_length") or DEFAULT_LENGTH
    samples = steps * batch or None
    parameters = counts[name]
    trained = None if parameters is None else trained_parameters(root_spec(recipe, name), parameters)
    return StagePlan(
        name=name,
        kind=stage.kind,
        start=start,
        model_kind=kinds_of(recipe)[name][1],
        steps=steps or None,
        samples=samples,
        tokens=samples * int(length) if samples and length else None,
        parameters=parameters,
        trained=trained,
        memory=None
        if parameters is None or trained is None
        else stage_memory(recipe, name, parameters, trained, counts),
        disk=None if parameters is None or trained is None else stage_disk(recipe, name, parameters, trained),
    )


def _rows(recipe: Recipe, name: str) -> int | None:
    """Rows of the data that a stage names, where the recipe says or a file tells."""
    stage = recipe.stages[name]
    size = getattr(stage, "size", None) or getattr(getattr(stage, "queries", None), "limit", None)
    if size:
        return int(size)
    counted = [_rows_of(recipe.data[data]) for _, data in stage.data_references()]
    known = [rows for rows in counted if rows]
    return sum(known) if known and len(known) == len(counted) else None


def _rows_of(spec: DataSpec) -> int | None:
    if spec.limit or spec.size:
        return (spec.limit or spec.size or 0) - spec.reserve
    path = Path(spec.path or "")
    if spec.path and path.suffix == ".jsonl" and path.is_file():
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip()) - spec.reserve
    return None


def print_plan(loaded: LoadedRecipe, directory: Path) -> None:
    """Validate with the libraries' own judgement, and print the plan.

    Args:
        directory: the run's, there or not yet: it is looked at, and left as it is.

    Raises:
        PosttrainError: a library refuses an option, or a run that stands there cannot go on with this recipe.
    """
    from rich.console import Console
    from rich.table import Table

    from posttrain.evaluation.suites.stage import suite_problems
    from posttrain.run.quiet import hush_libraries

    hush_libraries()
    if problems := suite_problems(loaded.recipe.evaluation):
        raise PosttrainError(problems)
    loaded.check_libraries()
    recipe = loaded.recipe
    roots: dict[int, int | None] = {}
    counts: dict[str, int | None] = {}
    for name in recipe.stages:
        spec = root_spec(recipe, name)
        if id(spec) not in roots:
            vocabulary = spec.tokenizer or recipe.model.tokenizer
            roots[id(spec)] = parameter_count(spec.model_copy(update={"tokenizer": vocabulary}))
        counts[name] = roots[id(spec)]
    console = Console(width=None if Console().is_terminal else 160)
    stages = "1 stage" if len(recipe.stages) == 1 else f"{len(recipe.stages)} stages"
    table = Table(title=f"{recipe.name}: {stages}", title_justify="left")
    for column in (
        "stage",
        "kind",
        "starts from",
        "leaves",
        "steps",
        "samples",
        "tokens <=",
        "parameters",
        "memory",
        "disk",
    ):
        table.add_column(column, justify="left" if column in ("stage", "kind", "starts from", "leaves") else "right")
    plans = [stage_plan(recipe, name, counts) for name in recipe.stages]
    for plan in plans:
        parameters = short(plan.parameters)
        if plan.trained != plan.parameters:
            parameters += f" ({short(plan.trained)} trained)"
        estimates = (plan.steps, plan.samples, plan.tokens)
        sizes = (_memory(plan.memory), short(sum(plan.disk.parts) if plan.disk else None, "B"))
        table.add_row(plan.name, plan.kind, plan.start, plan.model_kind, *map(short, estimates), parameters, *sizes)
    console.print(table)
    engine = recipe.engine
    if engine.launcher == "none":
        where = f"this process, {'CPU' if engine.cpu else 'accelerator if there is one'}"
    else:
        where = f"accelerate launch, {engine.processes} processes on {engine.machines} machine(s), {engine.strategy}"
    console.print(f"engine: {where}")
    known = [plan.memory for plan in plans if plan.memory is not None]
    peak = max(known, key=lambda memory: memory.bytes) if len(known) == len(plans) else None
    sized = {plan.name: plan.disk for plan in plans if plan.disk is not None}
    disk = run_disk(sized, {id(root_spec(recipe, name)): one.model for name, one in sized.items()})
    console.print(
        f"peak memory about {_memory(peak)} over all processes (weights, gradients, optimizer, teacher; activations "
        f"come on top), disk about {short(disk, 'B')}"
    )
    reserved = sum(recipe.data[name].reserve for name in recipe.evaluation.data)
    console.print(
        f"evaluation after each stage: {reserved} reserved queries x {recipe.evaluation.samples} in every mode, "
        f"{len(recipe.evaluation.budgets)} budgets, {recipe.evaluation.think_follow.dialogues} dialogues"
    )
    _print_state(recipe, directory, disk, console)
    console.print("valid")


def _print_state(recipe: Recipe, directory: Path, disk: int, console: Console) -> None:
    """Where the run is to be or stands, what of it is done, and whether there is room for it."""
    from posttrain.model.artifacts import RunDir
    from posttrain.run.pipeline import changes

    run = RunDir(directory)
    if problems := changes(recipe, run):
        raise PosttrainError(problems)
    done = [name for name in recipe.stages if run.stage(name).record.exists()]
    state = f"{len(done)} of {len(recipe.stages)} stages finished" if run.recipe.exists() else "not begun"
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    console.print(f"run: {directory}, {state}; {short(free, 'B')} free on its disk")
    if free < disk:
        console.print(f"[bold]warning:[/bold] the plan needs about {short(disk, 'B')} of disk", highlight=False)


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return "?"
    return short(memory.bytes, "B") + (" + teacher" if memory.with_teacher else "")


def short(value: float | None, unit: str = "") -> str:
    """A count as people say it: 1.2k, 32.8B; `?` where it is not known."""
    if value is None:
        return "?"
    letters = ("", "k", "M", "G", "T") if unit else ("", "k", "M", "B", "T")
    power = 0
    while value >= 1000 and power < len(letters) - 1:
        value, power = value / 1000, power + 1
    number = f"{value:.0f}" if power == 0 else f"{value:.1f}"
    return f"{number}{' ' if unit else ''}{letters[power]}{unit}"
