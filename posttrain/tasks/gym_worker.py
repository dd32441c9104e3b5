"""Runs in a child process (`isolated`): makes and scores reasoning-gym items.

Some of the library's scorers hand the answer to `eval` or to sympy's parser, which evaluates too. Such an answer is let
through only if it is a literal, or a plain mathematical expression (`_harmless`); it could not earn a full score
otherwise. Two scorers pay for a wrong answer (`_cheats`): "nan" is at no distance from any number, and in puzzle24 any
four numbers that make 24 would do, not only those given.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import random
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import CURRICULA, DATASETS

SPARE = 10  # items made beyond those asked for, and a tenth more: they stand in for items that fail
LONGEST = 4000  # characters of an answer, or four times the gold answer's

_EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
_PARSED = {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
_FUNCTIONS = set("sin cos tan cot sec csc asin acos atan sinh cosh tanh log ln exp sqrt Abs pi".split())  # noqa: SIM905
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.Call, ast.Load, ast.operator, ast.unaryop)


def names() -> list[str]:
    """Every task name of the installed library."""
    return sorted(DATASETS)


def problem(name: str, config: dict[str, Any], level: int | None) -> str | None:
    """What is wrong with the options of a task, or None."""
    fields = [field.name for field in dataclasses.fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    if unknown := [option for option in config if option not in fields]:
        return f"no option is called {', '.join(unknown)}; {name} has {', '.join(fields)}"
    if level is not None and name not in CURRICULA:
        return f"{name} has no levels"
    try:
        _dataset(name, config, level, size=1, seed=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def items(
    name: str, config: dict[str, Any], levels: list[int | None], size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """`size` items whose gold answer scores 1, and one `{"failed": why}` for each that was left out."""
    random.seed(seed)  # one of the generators draws from the global one
    spare = size + SPARE + size // 10
    datasets = [
        _dataset(name, config, level, size=-(-spare // len(levels)), seed=seed + 7919 * i)
        for i, level in enumerate(levels)
    ]
    made = 0
    for i in range(spare):
        if made == size:
            return
        which, index = i % len(levels), i // len(levels)
        try:
            item = datasets[which][index]
            score = datasets[which].score_answer(item["answer"], item)
            if not isinstance(item["answer"], str) or score < 1:
                raise ValueError(f"its own answer scores {score:g}")
            entry = json.dumps(encode(item))
        except Exception as error:
            yield {"failed": f"{type(error).__name__}: {error}"[:200]}
            continue
        made += 1
        level = levels[which]
        yield {
            "question": item["question"],
            "answer": item["answer"],
            "entry": entry,
            "difficulty": 0 if level is None else level,
            "category": datasets[which].category,
        }


def score(name: str, config: str, answer: str, entry: str) -> float:
    """The library's own score of an answer. `config` and `entry` are JSON, as `items` was given and made them."""
    item = decode(json.loads(entry))
    if answer != item["answer"] and (not _harmless(name, answer, item["answer"]) or _cheats(name, answer, item)):
        return 0.0
    return float(_scorer(name, config)(answer, item))


@lru_cache(maxsize=256)
def _scorer(name: str, config: str) -> Callable[[str, Any], float]:
    scorer: Callable[[str, Any], float] = _dataset(name, json.loads(config), None, size=1, seed=0).score_answer
    return scorer


def _dataset(name: str, config: dict[str, Any], level: int | None, *, size: int, seed: int) -> Any:
    options: dict[str, Any] = {}
    if level is not None:
        curriculum = CURRICULA[name]()
        for attribute, definition in curriculum.attributes.items():
            curriculum.set_attr_level(attribute, min(level, len(definition.levels) - 1))
        made = curriculum.generate_configuration()
        options = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return reasoning_gym.create_dataset(name, **{**options, **config, "size": size, "seed": seed})


def _harmless(name: str, answer: str, gold: str) -> bool:
    """Whether an answer may be given to the scorer of a task: neither endless nor evaluated as code."""
    if len(answer) > max(LONGEST, 4 * len(gold)):
        return False
    if name not in _EVALUATED | _PARSED:
        return True
    try:
        tree = ast.parse(answer.strip(), mode="eval")
        if name in _PARSED:
            return _is_mathematics(tree)
        ast.literal_eval(tree)
        return True
    except SyntaxError:
        return name in _EVALUATED  # eval cannot read it either, so the scorer compares it as text
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False


def _cheats(name: str, answer: str, item: dict[str, Any]) -> bool:
    """Whether the library's scorer would pay for this answer though it is wrong."""
    if name == "puzzle24":
        return sorted(map(int, re.findall(r"\d+", answer))) != sorted(item["metadata"]["numbers"])
    nan = re.compile(r"(?<![a-z])nan(?![a-hk-z])", re.IGNORECASE)
    return bool(nan.search(answer)) and not nan.search(item["answer"])


def _is_mathematics(tree: ast.Expression) -> bool:
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Constant) and not _is_modest(node.value, 1e15):
            return False
        if isinstance(node, ast.Name) and len(node.id) > 1 and node.id not in _FUNCTIONS:
            return False
        if isinstance(node, ast.Call) and (node.keywords or len(node.args) != 1 or not isinstance(node.func, ast.Name)):
            return False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _is_small(node.right):
            return False
    return True


def _is_small(exponent: ast.expr) -> bool:
    """No power within the exponent, and no number above 100 in it: 9**9**9 never ends."""
    for node in ast.walk(exponent):
        if isinstance(node, ast.Pow | ast.Mult):
            return False
        if isinstance(node, ast.Constant) and not _is_modest(node.value, 100):
            return False
    return True


def _is_modest(value: object, limit: float) -> bool:
    return type(value) in (int, float) and abs(value) <= limit  # type: ignore[arg-type]


def encode(value: Any) -> Any:
    """A value as JSON that `decode` gives back with its types: tuples, sets and other keys than text are marked."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and "__type__" not in value:
            return {str(key): encode(item) for key, item in value.items()}
        return {"__type__": "dict", "items": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple | set | frozenset):
        kind = next(kind for kind in (tuple, set, frozenset) if isinstance(value, kind))
        members = value if kind is tuple else sorted(value, key=repr)
        return {"__type__": kind.__name__, "items": [encode(item) for item in members]}
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy's numbers and arrays
        return encode(value.tolist())
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if type(value) in (Fraction, Decimal):
        return {"__type__": type(value).__name__, "value": str(value)}
    raise TypeError(f"an entry holds a {type(value).__name__}, which cannot be kept")


def decode(value: Any) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("__type__")
    if kind == "dict":
        return {decode(key): decode(item) for key, item in value["items"]}
    if kind in ("Fraction", "Decimal"):
        return {"Fraction": Fraction, "Decimal": Decimal}[kind](value["value"])
    if kind is not None:
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(item) for item in value["items"])
    return {key: decode(item) for key, item in value.items()}
