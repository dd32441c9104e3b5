"""What a run leaves on disk, and how to know that a piece of it is whole.

    RUN/recipe.yaml               the resolved recipe               RUN/report.html, report.md, report.json
    RUN/reserved/NAME.parquet     the validation queries            RUN/data/NAME/   the rest, as `datasets` saves it
    RUN/base/                     the model the first stage starts from
    RUN/stages/STAGE/data/        what it trains on (train/, queries.parquet, funnel.json, examples.jsonl)
    RUN/stages/STAGE/checkpoints/ checkpoint-N/, each with a manifest
    RUN/stages/STAGE/model/       the result, as transformers and vLLM load it
    RUN/stages/STAGE/metrics.jsonl, curve.jsonl, evaluation.json, samples.jsonl, stage.json
    RUN/stages/STAGE/rollouts.jsonl   rollouts to read, with every reward's score and reason (stages of RL)

A directory is complete when its manifest stands in it: the manifest is written last, and names every file with its size
and checksum. A file is written beside its place and renamed. So an artefact is complete or absent, whatever was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem

MANIFEST = "manifest.json"


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is complete or absent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


class Damaged(PosttrainError, ValueError):
    """A file that is no JSON object."""


def read_json(path: Path) -> Any:
    """Read a JSON object, or return None where there is no such file.

    Raises:
        Damaged: it is none. Whatever the file belongs to was not written by this module, or was changed since.
    """
    if not path.exists():
        return None
    remedy = "put back what was there, or remove what it belongs to"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(Problem(f"not JSON ({error})", str(path), remedy=remedy)) from error
    if not isinstance(value, dict):
        raise Damaged(Problem("no JSON object", str(path), remedy=remedy))
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, one a line; [] where there is no file. Lines that a kill cut off are left out."""
    rows = []
    # Not `splitlines`: it breaks at U+0085 and U+2028 too, which a text in JSON may hold as they are.
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def seal(directory: Path, **facts: Any) -> None:
    """Declare a directory complete: write its manifest, last, with every file's size and checksum, and `facts`."""
    files = {
        str(path.relative_to(directory)): {"size": path.stat().st_size, "crc32": checksum(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(directory / MANIFEST, {**facts, "files": files})


def faults_of(directory: Path, *, checksums: bool = True) -> list[str]:
    """What is wrong with a sealed directory: [] when it is whole."""
    try:
        manifest = read_json(directory / MANIFEST)
    except Damaged as error:
        return [f"{directory / MANIFEST}: {error.problems[0].what}"]
    if manifest is None:
        return [f"{directory}: incomplete (no {MANIFEST})"]
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return [f"{directory / MANIFEST}: it names no files"]
    faults = []
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.exists():
            faults.append(f"{path}: missing")
        elif path.stat().st_size != entry["size"]:
            faults.append(f"{path}: {path.stat().st_size} bytes, {entry['size']} expected")
        elif checksums and checksum(path) != entry["crc32"]:
            faults.append(f"{path}: checksum differs")
    return faults


def is_complete(directory: Path) -> bool:
    """Whether a sealed directory stands there (sizes looked at, checksums not)."""
    return (directory / MANIFEST).exists() and not faults_of(directory, checksums=False)


def is_made_from(directory: Path, source: Any) -> bool:
    """Whether a sealed directory stands there that `seal(directory, made_from=source)` declared complete.

    One whose manifest does not say what it was made from counts as made from anything.
    """
    return is_complete(directory) and read_json(directory / MANIFEST).get("made_from", source) == source


@dataclass(frozen=True)
class StageDir:
    """The artefacts of one stage."""

    path: Path

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        return self.path / "curve.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def record(self) -> Path:
        """stage.json: name, kind, parent, fingerprint, seconds, funnel. Written when the stage is finished."""
        return self.path / "stage.json"

    @property
    def started(self) -> Path:
        """started.json: the fingerprint of the recipe under which the stage was begun."""
        return self.path / "started.json"

    @property
    def start(self) -> Path:
        """The model that the stage starts from, where that is one of its own."""
        return self.path / "start"

    def clear(self) -> None:
        """Remove what the stage made; the model that it starts from stays.

        A clearing that is killed leaves nothing that a later run would take for a stage of another recipe: the record
        goes first, and what the stage was begun with last.
        """
        self.record.unlink(missing_ok=True)
        for path in sorted(self.path.glob("*")):
            if path.is_dir() and path != self.start:
                shutil.rmtree(path)
            elif path.is_file() and path != self.started:
                path.unlink()
        self.started.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunDir:
    """The artefacts of one run."""

    path: Path

    def stage(self, name: str) -> StageDir:
        return StageDir(self.path / "stages" / name)

    @property
    def base(self) -> Path:
        return self.path / "base"

    def reserved(self, name: str) -> Path:
        """The queries set aside for evaluation from the data set of that name (parquet)."""
        return self.path / "reserved" / f"{name}.parquet"

    def data(self, name: str) -> Path:
        """The rest of the data set of that name (`datasets.load_from_disk`)."""
        return self.path / "data" / name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"
