"""`posttrain distill`: a recipe for one teacher, one student and some data, written for people and run."""

from __future__ import annotations

import json
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import read_json, write_text
from posttrain.recipe.schema import ModelSpec
from posttrain.recipe.source import parse_yaml
from posttrain.run.distill_data import as_name, as_written, data_sets
from posttrain.run.model_directory import family_at, told_family
from posttrain.run.output import check_directory_to_write, check_file_to_write
from posttrain.templates.families import FAMILIES, Family, get_family

BATCH, ACCUMULATION = 8, 4
WIDTH, RATE = 1024, 2e-5
"""A learning rate that suits a model of this hidden size; narrower ones want more, in inverse proportion (Yang et al.
2022, arXiv 2203.03466)."""


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        teacher: a model's directory, a hub id, or the URL of a server; teacher_model: its name there.
        student: a model's directory or a hub id.
        data: files of queries (JSONL, JSON, parquet) or names of tasks.
        output: the run's directory; None: runs/NAME.
        family: template family; None: the teacher's own, or qwen3.
        verifier: what scores answers to rows of files; None: told from the answers.
        max_new_tokens: of an answer.
        words: the command, as it was given.
    """

    teacher: str
    student: str
    data: Sequence[str]
    output: Path | None = None
    teacher_model: str | None = None
    family: str | None = None
    verifier: str | None = None
    max_new_tokens: int = 2048
    words: Sequence[str] = ()


def write_distillation(asked: Asked) -> tuple[Path, Path]:
    """Write the recipe beside the run's directory.

    Returns:
        The recipe's path and the run's directory.

    Raises:
        PosttrainError: teacher, student or data cannot be used; another recipe stands there already, or nothing can be
            written there.
    """
    teacher, teacher_words = _teacher(asked)
    if asked.student.startswith(("http://", "https://")):
        what = f"--student {asked.student} is a server, and a student is trained here"
        raise PosttrainError(Problem(what, remedy="give a model's directory or a hub id"))
    name = _name(asked, teacher_words)
    output = asked.output or Path("runs") / name
    if output.name in ("", ".."):
        raise PosttrainError(Problem(f"--output {output} is no directory of this run's own", remedy="as runs/NAME"))
    file = output.with_name(f"{output.name}.yaml")
    check_file_to_write(file)
    check_directory_to_write(output)
    text = _text(asked, teacher, teacher_words, name, file, output)
    standing = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
    begun = any((output / "stages").glob("*/started.json"))
    if standing is not None and _recipe(standing) != _recipe(text) and (begun or _mark(standing) not in standing):
        raise PosttrainError(
            Problem(
                "a recipe stands there, and is not the one that this command writes",
                where=str(file),
                why="it was changed, or is of another command, or its run has begun",
                remedy=f"run it: `posttrain run {file} --output {output}`; or choose another --output",
            )
        )
    write_text(file, text)
    return file, output


def _recipe(text: str) -> str:
    """A recipe without its comments' lines: the command may be spelled in several ways."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _mark(text: str) -> str:
    """A checksum of a recipe without its comments' lines, among which it stands."""
    return f"checksum {zlib.crc32(_recipe(text).encode()):08x}"


def _text(asked: Asked, teacher: Any, teacher_words: str, name: str, file: Path, output: Path) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = file.absolute().parent
    data = data_sets(asked.data, asked.verifier, folder)
    rate, why_rate = _rate(asked.student)
    tokens = _tokens(asked)
    family, why_family = _family(asked)
    rows = sum(one.rows - one.reserve for one in data)
    student = Path(asked.student)
    gguf = student.name if student.suffix == ".gguf" else ""
    batch = max(1, min(BATCH, rows // 2))
    accumulation = max(1, min(ACCUMULATION, rows // (4 * batch)))
    values = {
        "command": shlex.join(["posttrain", *asked.words]),
        "file": file,
        "output": output,
        "name": name,
        "teacher": json.dumps(as_written(teacher, folder)),
        "teacher_words": teacher_words,
        "student": json.dumps(as_written(str(student.parent) if gguf else asked.student, folder)),
        "gguf": json.dumps(gguf) if gguf else "",
        "student_words": student.name,
        "family": family.name,
        "why_family": why_family,
        "data": data,
        "names": ", ".join(_plain(one.name) for one in data),
        "tokens": tokens,
        "length": tokens + tokens // 2,
        "modes": json.dumps({mode: 1 / len(family.modes) for mode in family.modes}),
        "both": len(family.modes) > 1 and bool(family.flags),
        "batch": batch,
        "accumulation": accumulation,
        "crosses": _tokenizers_differ(asked.teacher, asked.student, family),
        "steps": max(1, min(200, rows // (batch * accumulation))),
        "off_policy_rate": f"{rate:.0e}",
        "on_policy_rate": f"{rate / 2:.0e}",
        "why_rate": why_rate,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    template = environment.get_template("distill_recipe.yaml.jinja")
    return template.render(values, mark=_mark(template.render(values, mark="")))


def _plain(text: str) -> str:
    """A text as YAML: in quotes where it would be read as something else."""
    try:
        return text if parse_yaml(text, "").value() == text else json.dumps(text)
    except PosttrainError:
        return json.dumps(text)


def _teacher(asked: Asked) -> tuple[Any, str]:
    """The teacher as the recipe has it, and in words."""
    if not asked.teacher.startswith(("http://", "https://")):
        if asked.teacher_model:
            what = "--teacher-model names a model of a server, and the teacher is none"
            raise PosttrainError(Problem(what, remedy="give --teacher as http://HOST:PORT/v1, or leave it out"))
        return asked.teacher, Path(asked.teacher).name
    model = asked.teacher_model or _only_model(asked.teacher)
    return {"endpoint": asked.teacher, "model": model}, Path(model).name


def _tokenizers_differ(teacher: str, student: str, family: Family) -> bool:
    """Whether two local models' tokenizers have other entries; False where that cannot be told from here."""
    ours, theirs = _entries(student), _entries(teacher)
    if ours is None or theirs is None:
        return False
    given = [marker for marker in family.markers if marker not in ours]  # to the student, when its run begins
    return ours | {marker: len(ours) + place for place, marker in enumerate(given)} != theirs


def _entries(model: str) -> dict[str, int] | None:
    """The entries of a local model's tokenizer by their text."""
    try:
        said = read_json(Path(model).expanduser() / "tokenizer.json")
        return said and {**said["model"]["vocab"], **{one["content"]: one["id"] for one in said["added_tokens"]}}
    except (ValueError, KeyError, TypeError):
        return None  # of another make, or damaged: told when the models are compared


def _only_model(url: str) -> str:
    """The model of a server that has one."""
    from pydantic import ValidationError

    from posttrain.model.endpoint import Endpoint
    from posttrain.recipe.endpoint import EndpointSpec

    try:
        names = Endpoint(EndpointSpec(endpoint=url, model="unknown"), who="the teacher").names()
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise PosttrainError(Problem(f"--teacher: {what}")) from None
    if len(names) != 1:
        listed = ", ".join(f"`{name}`" for name in names) or "none"
        raise PosttrainError(Problem(f"{url} serves several models: {listed}", remedy="choose one by --teacher-model"))
    return names[0]


def _name(asked: Asked, teacher: str) -> str:
    if asked.output is not None:
        return as_name(asked.output.name)
    return as_name(f"{Path(asked.student).name}-from-{teacher}")


def _family(asked: Asked) -> tuple[Family, str]:
    """The template family, and what tells it."""
    if asked.family:
        return get_family(asked.family), "as asked"
    teacher = Path(asked.teacher).expanduser()
    try:
        if read_json(teacher / "posttrain.json"):
            return family_at(teacher), "the teacher's own"
        told = told_family(teacher)
    except (ValueError, KeyError):
        told = None  # told when the recipe is checked
    if told is not None:
        return told, "its chat template renders as the teacher's does"
    if (teacher / "config.json").exists():
        names = ", ".join(FAMILIES)
        return get_family("qwen3"), f"the teacher's chat template is none of {names}: it is asked in this one"
    return get_family("qwen3"), "nothing here tells the teacher's; --family chooses"


def _shape(student: str) -> Mapping[str, Any]:
    """A local student's configuration; {} for a hub id."""
    try:
        shape = read_json(Path(student).expanduser() / "config.json")
    except ValueError:
        shape = None  # told when the recipe is checked
    return shape if isinstance(shape, dict) else {}


def _rate(student: str) -> tuple[float, str]:
    width = _shape(student).get("hidden_size")
    if not isinstance(width, int) or width < 1:
        return RATE, "for a model of 0.5 to 2 billion parameters; smaller ones want more"
    return RATE * max(1.0, WIDTH / width), f"for a hidden size of {width}: narrower models want more"


def _tokens(asked: Asked) -> int:
    """Tokens of an answer: what is asked for, or half of the student's positions where that is less."""
    from posttrain.recipe.positions import positions

    path = Path(asked.student).expanduser().absolute()
    room = positions(ModelSpec(path=str(path)))
    return asked.max_new_tokens if room is None else min(asked.max_new_tokens, room // 2)
