"""A model's directory that a command line names: looked at before anything begins, its dialect, and loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import read_json
from posttrain.recipe.weights import directory_faults, has_weights
from posttrain.templates.families import Family, get_family
from posttrain.templates.recognize import family_of_template


def check_directory(directory: Path, remedy: str) -> None:
    """Refuse what is no model's directory, or a damaged one.

    Args:
        remedy: what to name instead.

    Raises:
        PosttrainError: no model is there, or its files are not whole.
    """
    if not (directory / "config.json").exists():
        raise PosttrainError(Problem(f"{directory}: no model there (no config.json)", remedy=remedy))
    problems = problems_of(directory)
    if not has_weights(directory):
        problems.append(Problem(f"{directory}: no weights there", remedy=remedy))
    if problems:
        raise PosttrainError(problems)


def problems_of(directory: Path) -> list[Problem]:
    """What is wrong with the files of a model's directory; [] where there is none."""
    return [Problem(fault, remedy="copy or fetch it once more") for fault in directory_faults(directory)]


def family_at(directory: Path) -> Family:
    """What the run that made the model wrote beside it, stop text included; else its chat template's; else Qwen3."""
    facts = read_json(directory / "posttrain.json")
    if not facts:
        return told_family(directory) or get_family("qwen3")
    family = get_family(facts["family"])
    stop = facts.get("stop_thinking")
    return family if stop is None else dataclasses.replace(family, stop_thinking=stop)


def told_family(directory: Path) -> Family | None:
    """The family that renders as the chat template of a model's directory does; None where there is none."""
    own = directory / "chat_template.jinja"
    try:
        text = own.read_text(encoding="utf-8") if own.exists() else None
        text = text or (read_json(directory / "tokenizer_config.json") or {}).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None  # told when the tokenizer is loaded
    if isinstance(text, list):  # several, by name
        text = next((one.get("template") for one in text if one.get("name") == "default"), None)
    return family_of_template(text) if isinstance(text, str) else None


def load(directory: Path) -> tuple[Any, Any]:
    """The model, on the accelerator if there is one, and its tokenizer.

    There it keeps the type it is stored in; a CPU computes in float32, which is faster than bfloat16 on most.

    Raises:
        PosttrainError: transformers refuses them, whatever it raises.
    """
    import torch

    from posttrain.model.policy import load_model, load_tokenizer, placed

    dtype = "auto" if torch.accelerator.is_available() else "float32"
    try:
        return placed(load_model(directory, dtype=dtype)), load_tokenizer(directory)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        what = f"the model at {directory} could not be loaded: {type(error).__name__}: {line}"
        raise PosttrainError(Problem(what, remedy="name a directory that transformers loads")) from error
