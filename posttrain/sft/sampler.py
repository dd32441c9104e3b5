"""A model that the recipe names, ready to answer: where it lies, its dialect, and the generator over it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, read_json
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


def stage_named(reference: str) -> str | None:
    """The stage that a model reference names; None for start, base, teacher, a directory or a hub id.

    What contains a slash, or begins with a dot or a tilde, is a directory or a hub id: a stage's name does neither.
    """
    if reference in NAMED or "/" in reference or reference.startswith((".", "~")):
        return None
    return reference


def model_directory(context: StageContext, reference: str) -> Path:
    """Where the model of a reference lies: an artefact of the run, a directory, or a hub id as it stands.

    Raises:
        PosttrainError: `teacher`, and the stage has none.
    """
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
        return context.teacher
    stage = stage_named(reference)
    return Path(reference).expanduser() if stage is None else context.run.stage(stage).model


def dialect(directory: Path, default: Family) -> Family:
    """The family a policy was saved with; the default for a directory that does not say."""
    said = read_json(directory / "posttrain.json") if directory.is_dir() else None
    if not isinstance(said, dict) or "family" not in said:
        return default
    return dataclasses.replace(
        get_family(said["family"]), stop_thinking=said.get("stop_thinking", default.stop_thinking)
    )


def identity(directory: Path) -> Any:
    """What tells one state of a model from another: its manifest's checksums, or its path where it has none."""
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
        reference: str,
        *,
        max_new_tokens: int,
        batch_size: int,
        sampling: Mapping[Mode, Sampling] | None = None,
    ) -> Sampler:
        """A generator over the model of a reference, on the accelerator where there is one.

        Args:
            sampling: what differs from the family's own sampling, by mode.

        Raises:
            PosttrainError: there is no such model.
        """
        from posttrain.model.generation import Generator

        directory = model_directory(self._context, reference)
        if self._loaded is None or directory != self._directory:
            self._loaded = None  # two large models may not fit
            self._directory, self._loaded = directory, self._load(directory, reference)
        model, tokenizer = self._loaded
        family = dialect(directory, self._context.family)
        return Generator(
            model, tokenizer, family, max_new_tokens=max_new_tokens, batch_size=batch_size, sampling=sampling
        )

    def _load(self, directory: Path, reference: str) -> tuple[Any, Any]:
        import torch

        from posttrain.model.policy import load_model, load_tokenizer
        from posttrain.model.trainer_defaults import on_accelerator

        context = self._context
        log.info("%s: loading %s to sample from", context.name, directory)
        if context.recipe.engine.threads:
            torch.set_num_threads(context.recipe.engine.threads)
        spec = context.recipe.model
        try:
            tokenizer = load_tokenizer(directory)
            model = load_model(directory, dtype=spec.dtype, attention=spec.attention)
        except (OSError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PosttrainError(
                Problem(f"stage {context.name}: no model could be loaded from {reference!r} ({directory}): {first}")
            ) from error
        if on_accelerator(context):
            model.to(torch.accelerator.current_accelerator())
        return model, tokenizer


def open_sampler(
    context: StageContext,
    reference: str,
    *,
    max_new_tokens: int,
    batch_size: int,
    sampling: Mapping[Mode, Sampling] | None = None,
) -> Sampler:
    """A sampler from one model (`Models.sampler`)."""
    return Models(context).sampler(reference, max_new_tokens=max_new_tokens, batch_size=batch_size, sampling=sampling)
