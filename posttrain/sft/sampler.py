"""A model that the recipe names, ready to answer: where it lies, its dialect, and the generator over it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, read_json
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.teacher import Teachers, each_teacher
from posttrain.templates.families import Family, Mode, Sampling, get_family

if TYPE_CHECKING:
    from posttrain.model.generation import Completion, Prompt
    from posttrain.recipe.schema import SamplingSpec
    from posttrain.recipe.stage import StageContext

log = logging.getLogger("posttrain")

NAMED = ("start", "base", "teacher")


class Sampler(Protocol):
    """Whatever answers prompts as `model.generation.Generator` does: in order, deterministic in prompts and seed."""

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]: ...


@runtime_checkable
class StreamingSampler(Sampler, Protocol):
    """A sampler that answers many prompts at once and hands the answers out as they come, each with its number.

    It reads prompts (each with its own seed) as far as it has room, so they may be many.
    """

    def stream(self, asked: Iterable[tuple[Prompt, int]]) -> Iterator[tuple[int, Completion]]: ...


def stage_named(reference: str | EndpointSpec) -> str | None:
    """The stage that a model reference names; None for start, base, teacher, a directory, a hub id or a served model.

    What contains a slash, or begins with a dot or a tilde, is a directory or a hub id: a stage's name does neither.
    """
    if isinstance(reference, EndpointSpec) or reference in NAMED:
        return None
    return None if "/" in reference or reference.startswith((".", "~")) else reference


def model_place(context: StageContext, reference: str | EndpointSpec) -> Path | EndpointSpec:
    """Where the model of a reference is: an artefact of the run, a directory, a hub id as it stands, or a server.

    Raises:
        PosttrainError: `teacher`, and the stage has none.
    """
    if isinstance(reference, EndpointSpec):
        return reference
    if reference == "start":
        return context.start
    if reference == "base":
        return context.run.base
    if reference == "teacher":
        if context.teacher is None:
            raise PosttrainError(
                Problem(
                    f"stage {context.name}: a model is taken from `teacher`, and the stage has none",
                    remedy="set `teacher:`",
                )
            )
        if isinstance(context.teacher, Teachers):
            what = f"stage {context.name}: `teacher` means one model here, and the stage has several teachers"
            raise PosttrainError(Problem(what, remedy="name the model itself"))
        return context.teacher
    stage = stage_named(reference)
    return Path(reference).expanduser() if stage is None else context.run.stage(stage).model


def check_served(context: StageContext, references: Iterable[str | EndpointSpec]) -> None:
    """See that every served model among these, the teachers included where one is asked, is up and is the one named.

    Raises:
        PosttrainError: all that are not.
    """
    from posttrain.model.endpoint import Endpoint

    wanted: dict[EndpointSpec, str] = {}
    for reference in references:
        if isinstance(reference, EndpointSpec):
            wanted.setdefault(reference, "the server")
        elif reference == "teacher" and not isinstance(context.teacher, Path):
            wanted |= {one: "the teacher" for _, one in each_teacher(context.teacher) if isinstance(one, EndpointSpec)}
    problems: list[Problem] = []
    for spec, who in wanted.items():
        try:
            Endpoint(spec, who=who).check()
        except PosttrainError as error:
            problems += error.problems
    if problems:
        raise PosttrainError(problems)


def dialect(directory: Path, default: Family) -> Family:
    """The family a policy was saved with; the default for a directory that does not say."""
    said = read_json(directory / "posttrain.json") if directory.is_dir() else None
    if not isinstance(said, dict) or "family" not in said:
        return default
    return dataclasses.replace(
        get_family(said["family"]), stop_thinking=said.get("stop_thinking", default.stop_thinking)
    )


def identity(directory: Path | EndpointSpec) -> Any:
    """What tells one state of a model from another: its manifest's checksums, its path where it has none, or the name
    under which it is served."""
    if isinstance(directory, EndpointSpec):
        return directory.identity()
    manifest = read_json(directory / MANIFEST) if directory.is_dir() else None
    return manifest["files"] if manifest else str(directory)


def sampling_of(specs: Mapping[Mode, SamplingSpec]) -> dict[Mode, Sampling]:
    """The recipe's sampling per mode as the generator takes it."""
    return {mode: Sampling(**spec.model_dump()) for mode, spec in specs.items()}


class Models:
    """The models a stage samples from, one in memory at a time: sources that ask the same one in turn share it."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._directory: Path | None = None
        self._loaded: tuple[Any, Any] | None = None

    def sampler(
        self,
        reference: str | EndpointSpec,
        *,
        max_new_tokens: int,
        batch_size: int,
        sampling: Mapping[Mode, Sampling] | None = None,
    ) -> Sampler:
        """A generator over the model of a reference: here, on the accelerator where there is one, or a served one.

        Args:
            batch_size: prompts at once; a served model's `concurrency` stands in its place.
            sampling: what differs from the family's own sampling, by mode.

        Raises:
            PosttrainError: there is no such model.
        """
        place = model_place(self._context, reference)
        if isinstance(place, EndpointSpec):
            from posttrain.model.endpoint import Endpoint
            from posttrain.model.served import ServedGenerator

            teaches = reference == "teacher" or isinstance(self._context.teacher, Teachers)
            server = Endpoint(place, who="the teacher" if teaches else "the server")
            server.check()
            return ServedGenerator(server, self._context.family, max_new_tokens=max_new_tokens, sampling=sampling)
        from posttrain.model.vllm_generation import generator_over

        if self._loaded is None or place != self._directory:
            self._loaded = None  # two large models may not fit
            self._directory, self._loaded = place, self._load(place, str(reference))
        model, tokenizer = self._loaded
        family = dialect(place, self._context.family)
        return generator_over(
            model, tokenizer, family, max_new_tokens=max_new_tokens, batch_size=batch_size, sampling=sampling
        )

    def _load(self, directory: Path, reference: str) -> tuple[Any, Any]:
        import torch

        from posttrain.model.policy import load_model, load_tokenizer, placed
        from posttrain.model.vllm_generation import VllmEngine

        context = self._context
        log.info("%s: loading %s to sample from", context.name, directory)
        if context.recipe.engine.threads:
            torch.set_num_threads(context.recipe.engine.threads)
        spec = context.recipe.model
        try:
            tokenizer = load_tokenizer(directory)
            if context.recipe.engine.sampler == "vllm":
                return VllmEngine(directory, dtype=spec.dtype), tokenizer
            model = load_model(directory, dtype=spec.dtype, attention=spec.attention)
        except PosttrainError:
            raise
        except Exception as error:  # transformers raises what it likes
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PosttrainError(
                Problem(f"stage {context.name}: no model could be loaded from {reference!r} ({directory}): {first}")
            ) from error
        return placed(model, cpu=context.recipe.engine.cpu), tokenizer


def open_sampler(
    context: StageContext,
    reference: str | EndpointSpec,
    *,
    max_new_tokens: int,
    batch_size: int,
    sampling: Mapping[Mode, Sampling] | None = None,
) -> Sampler:
    """A sampler from one model (`Models.sampler`)."""
    return Models(context).sampler(reference, max_new_tokens=max_new_tokens, batch_size=batch_size, sampling=sampling)
