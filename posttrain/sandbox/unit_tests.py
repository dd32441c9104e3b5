"""Unit tests read, not run: what they need of the answer."""

from __future__ import annotations

import ast
import builtins

from posttrain.sandbox.job import UnitTests


def parse_tests(code: str) -> ast.Module | None:
    """The tests parsed; None where they are no Python."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def run_anything(tree: ast.Module) -> bool:
    """Whether tests do anything when they are run: asserts or calls at once, or something that is collected."""
    return any(map(_runs, tree.body))


def _runs(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith("test")
    if isinstance(node, ast.ClassDef):
        collected = node.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in node.bases)
        return collected and any(map(_runs, node.body))
    if isinstance(node, ast.AsyncFunctionDef) or (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)):
        return False
    return any(isinstance(inner, ast.Assert | ast.Call) for inner in ast.walk(node))


def read_tests(tests: UnitTests) -> tuple[str, list[str]]:
    """The tests without a stub of the entry point, and the names that they may want of the answer.

    These are the names that they use and neither bind nor have from Python: so an answer cannot stand in for `abs`.
    """
    tree = parse_tests(tests.code)
    if tree is None:
        return tests.code, []  # the judge says what is wrong with them
    lines = tests.code.splitlines(keepends=True)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == tests.entry_point:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines[first - 1 : node.end_lineno] = ["\n"] * (int(node.end_lineno or first) - first + 1)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | {tests.entry_point}
    return "".join(lines), sorted({node.id for node in names} - bound - set(dir(builtins)))
