"""The models that suites evaluate: directories here, or names behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.evaluation.suites.play import Generate, identity_of
from posttrain.run.model_directory import check_directory, family_at, load
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
        PosttrainError: no whole model is there.
    """
    label, directory = _named(given)
    check_directory(directory, "give a model directory, as RUN/stages/STAGE/model, or a server by --endpoint")
    family = family_at(directory)

    def opened() -> Generate:
        from posttrain.model.generation import Generator

        options: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "batch_size": asked.batch_size}
        return Generator(*load(directory), family, **options)

    return Subject(label or _label(directory), family, identity_of(directory), opened, LOCAL_CHUNK)


def _named(given: str) -> tuple[str, Path]:
    """The label, or "", and the directory, whose own name may hold a `=`.

    Raises:
        PosttrainError: the label is none that a directory of answers may have.
    """
    label, sign, path = given.partition("=")
    if not sign or Path(given).exists():
        return "", Path(given)
    _check_label(given, label)
    return label, Path(path)


def _check_label(given: str, label: str) -> None:
    if "/" in label or label in (".", ".."):
        raise PosttrainError(Problem(f"--model {given}: {label!r} is no label", remedy="a word, as base=MODEL"))


def _label(directory: Path) -> str:
    resolved = directory.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name


def served(url: str, given: str, asked: Asked, *, family: str, api_key_env: str | None) -> Subject:
    """A model of an OpenAI-compatible server, as NAME or LABEL=NAME.

    Raises:
        PosttrainError: the server is not there, refuses the key, or has no such model.
    """
    from pydantic import ValidationError

    from posttrain.model.endpoint import Endpoint
    from posttrain.model.served import ServedGenerator
    from posttrain.recipe.endpoint import EndpointSpec

    def endpoint_of(model: str) -> Endpoint:
        try:
            spec = EndpointSpec(endpoint=url, model=model, api_key_env=api_key_env)
        except ValidationError as error:
            option = error.errors()[0]["loc"][0]
            raise PosttrainError(Problem(f"--{option}: {error.errors()[0]['msg']}")) from None
        return Endpoint(spec, who="the server")

    endpoint = endpoint_of(given)
    label, sign, model = given.partition("=")
    if sign and given not in endpoint.names():
        endpoint = endpoint_of(model)
        _check_label(given, label)
    else:
        label = ""
    endpoint.check()
    dialect, spec = get_family(family), endpoint.spec
    return Subject(
        label or spec.model.rstrip("/").rpartition("/")[2],
        dialect,
        {"served": spec.model, "family": family},
        lambda: ServedGenerator(endpoint, dialect, max_new_tokens=asked.max_new_tokens),
        4 * spec.concurrency,
    )
