"""The models that suites evaluate: directories here, or names behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.suites.play import Generate, identity_of
from posttrain.run.dialect import family_at
from posttrain.templates.families import Family, Mode, get_family

LOCAL_CHUNK = 64
"""Items at a time on a model here: one batch of the generator."""


@dataclass(frozen=True)
class Asked:
    """How every suite is asked. A budget holds for thinking; `modes` empty: all that the model has."""

    budgets: Sequence[int]
    modes: Sequence[Mode]
    limit: int | None
    max_new_tokens: int
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
        label: its column, and its directory.
        identity: what makes it this model and no other.
        load: gives what completes prompts; called when there is something to ask.
        chunk: items asked at a time.
    """

    label: str
    family: Family
    identity: dict[str, Any]
    load: Callable[[], Generate]
    chunk: int


def local(given: str, asked: Asked) -> Subject:
    """A model directory, as DIRECTORY or LABEL=DIRECTORY.

    Raises:
        PosttrainError: no model is there.
    """
    label, _, path = given.rpartition("=")
    directory = Path(path)
    if not (directory / "config.json").exists():
        remedy = "give a model directory, as RUN/stages/STAGE/model, or a server by --endpoint"
        raise PosttrainError(Problem(f"{directory}: no model there (no config.json)", remedy=remedy))
    family = family_at(directory)

    def load() -> Generate:
        from posttrain.model.generation import Generator
        from posttrain.model.policy import load_model, load_tokenizer

        return Generator(
            load_model(directory),
            load_tokenizer(directory),
            family,
            max_new_tokens=asked.max_new_tokens,
            batch_size=asked.batch_size,
        )

    return Subject(label or _label(directory), family, identity_of(directory), load, LOCAL_CHUNK)


def _label(directory: Path) -> str:
    resolved = directory.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name


def served(url: str, model: str, asked: Asked, *, family: str, api_key_env: str | None) -> Subject:
    """A model of an OpenAI-compatible server.

    Raises:
        PosttrainError: the server is not there, refuses the key, or has no such model.
    """
    from pydantic import ValidationError

    from posttrain.model.endpoint import Endpoint
    from posttrain.model.served import ServedGenerator
    from posttrain.recipe.endpoint import EndpointSpec

    try:
        spec = EndpointSpec(endpoint=url, model=model, api_key_env=api_key_env)
    except ValidationError as error:
        raise PosttrainError(Problem(f"--endpoint: {error.errors()[0]['msg']}")) from None
    endpoint = Endpoint(spec, who="the server")
    endpoint.check()
    dialect = get_family(family)
    label = spec.model.rstrip("/").rpartition("/")[2]
    return Subject(
        label,
        dialect,
        {"served": spec.model, "family": family},
        lambda: ServedGenerator(endpoint, dialect, max_new_tokens=asked.max_new_tokens),
        4 * spec.concurrency,
    )
