"""The dialect of a model directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from posttrain.model.artifacts import read_json
from posttrain.templates.families import Family, get_family


def family_at(directory: Path) -> Family:
    """What the run that made the model wrote beside it, stop text included; else Qwen3."""
    facts = read_json(directory / "posttrain.json") or {"family": "qwen3", "stop_thinking": None}
    family = get_family(facts["family"])
    if facts["stop_thinking"] is not None:
        family = dataclasses.replace(family, stop_thinking=facts["stop_thinking"])
    return family
