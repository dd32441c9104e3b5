"""Rows written to real files and read as data sets, for tests of what is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.sources import load_data
from posttrain.errors import PosttrainError


@dataclass(frozen=True)
class Spec:
    """A data set's description, with the defaults of the recipe's schema."""

    path: str | None = None
    dataset: str | None = None
    split: str = "train"
    task: str | None = None
    size: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    format: str = "auto"
    map: dict[str, str] = field(default_factory=dict)
    filter: str | None = None
    limit: int | None = None
    verifier: str | None = None
    on_bad_rows: str = "refuse"


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
        for row in rows
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def query(n: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"What is {n} + {n}?", "answer": 2 * n, **more}


def chat(n: int, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": answer}]}


def read(tmp_path: Path, rows: list[Any], **spec: Any) -> list[dict[str, Any]]:
    path = write(tmp_path / "rows.jsonl", rows)
    return list(load_data("d", Spec(path=str(path), **spec), base_dir=tmp_path, seed=0))


def faults(tmp_path: Path, rows: list[Any], **spec: Any) -> list[str]:
    with pytest.raises(PosttrainError) as error:
        read(tmp_path, rows, **spec)
    return [f"{Path(problem.where).name if problem.where else ''}|{problem.what}" for problem in error.value.problems]
