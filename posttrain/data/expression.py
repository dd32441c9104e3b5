"""The expressions of `filter:`: Python's comparisons over a row's columns, and nothing that could do harm.

    difficulty <= 4 and domain == "math"
    len(answer) < 20 and not prompt.startswith("Draw") and level in ["easy", "hard"]

Names are columns. There are comparisons, `and`, `or`, `not`, `in`, `is None`, arithmetic on numbers, indexing, a few
functions and methods of strings. The text is parsed, never evaluated by Python.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.errors import PosttrainError, Problem

Row = Mapping[str, Any]
Value = Callable[[Row], Any]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (len, min, max, abs, int, float, str, round, any, all)
}
METHODS = {"startswith", "endswith", "lower", "upper", "strip", "count", "split", "isdigit"}
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}


class ExpressionFault(Exception):
    """An expression cannot be evaluated on a row, with the reason."""


def compile_filter(text: str, where: str = "filter") -> Callable[[Row], bool]:
    """A function that says whether a row is kept. It raises ExpressionFault where a row does not fit the expression.

    Raises:
        PosttrainError: the text is no expression, or has something that is not allowed in it.
    """
    try:
        tree = ast.parse(re.sub(r"\s*\n\s*", " ", text.strip()), mode="eval")  # YAML may fold it over lines
        value = _compile(tree.body)
    except SyntaxError as error:
        place = f" at column {error.offset}" if error.offset else ""
        raise PosttrainError(Problem(f"{text!r} is no expression: {error.msg}{place}", where, remedy=_REMEDY)) from None
    except (RecursionError, MemoryError):
        raise PosttrainError(Problem("the expression is nested too deeply", where)) from None
    except ValueError as error:  # null bytes, half surrogate pairs
        raise PosttrainError(Problem(f"{text!r} is no expression: {error}", where)) from None
    except ExpressionFault as fault:
        raise PosttrainError(Problem(f"{text!r}: {fault}", where, remedy=_REMEDY)) from None

    def keeps(row: Row) -> bool:
        try:
            return bool(value(row))
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise ExpressionFault(f"the filter cannot be evaluated: {error}") from None

    return keeps


_REMEDY = 'compare columns, as in: difficulty <= 4 and domain == "math"'


def _compile(node: ast.expr) -> Value:
    handler = _NODES.get(type(node))
    if handler is None:
        raise ExpressionFault(f"{ast.unparse(node)!r} is not allowed ({type(node).__name__})")
    return handler(node)


def _constant(node: ast.Constant) -> Value:
    value = node.value
    if not isinstance(value, str | int | float | bool | None):
        raise ExpressionFault(f"{ast.unparse(node)!r} is not allowed")
    return lambda row: value


def _name(node: ast.Name) -> Value:
    name = {"true": True, "false": False, "null": None}.get(node.id, node.id)
    if not isinstance(name, str):
        return lambda row: name

    def column(row: Row) -> Any:
        try:
            return row[name]
        except KeyError:
            raise ExpressionFault(f"the filter needs column {name!r}; the row has {', '.join(row)}") from None

    return column


def _members(node: ast.List | ast.Tuple | ast.Set) -> Value:
    members = [_compile(member) for member in node.elts]
    return lambda row: [member(row) for member in members]


def _bool_op(node: ast.BoolOp) -> Value:
    values = [_compile(value) for value in node.values]
    if isinstance(node.op, ast.And):
        return lambda row: all(value(row) for value in values)
    return lambda row: any(value(row) for value in values)


def _unary(node: ast.UnaryOp) -> Value:
    operand = _compile(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda row: not operand(row)
    if isinstance(node.op, ast.USub):
        return lambda row: -operand(row)
    raise ExpressionFault(f"{ast.unparse(node)!r} is not allowed")


def _arithmetic(node: ast.BinOp) -> Value:
    apply = _ARITHMETIC.get(type(node.op))
    if apply is None:
        raise ExpressionFault(f"the operator in {ast.unparse(node)!r} is not allowed")
    left, right = _compile(node.left), _compile(node.right)

    def value(row: Row) -> Any:
        a, b = left(row), right(row)
        if not (isinstance(a, int | float) and isinstance(b, int | float)):
            raise ExpressionFault(f"{ast.unparse(node)!r} calculates with {type(a).__name__} and {type(b).__name__}")
        return apply(a, b)

    return value


def _compare(node: ast.Compare) -> Value:
    operands = [_compile(operand) for operand in (node.left, *node.comparators)]
    comparisons = [_COMPARISONS[type(op)] for op in node.ops]

    def value(row: Row) -> bool:
        left = operands[0](row)
        for compare, operand in zip(comparisons, operands[1:], strict=True):
            right = operand(row)
            if not compare(left, right):
                return False
            left = right
        return True

    return value


def _subscript(node: ast.Subscript) -> Value:
    value, index = _compile(node.value), _compile(node.slice)
    return lambda row: value(row)[index(row)]


def _call(node: ast.Call) -> Value:
    if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
        raise ExpressionFault(f"{ast.unparse(node)!r}: arguments by name or * are not allowed")
    arguments = [_compile(argument) for argument in node.args]
    if isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
        function = FUNCTIONS[node.func.id]
        return lambda row: function(*(argument(row) for argument in arguments))
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        owner, method = _compile(node.func.value), node.func.attr

        def call(row: Row) -> Any:
            text = owner(row)
            if not isinstance(text, str):
                raise ExpressionFault(f"{ast.unparse(node)!r}: {method} is for text, not {type(text).__name__}")
            return getattr(text, method)(*(argument(row) for argument in arguments))

        return call
    allowed = f"functions are {', '.join(FUNCTIONS)}; methods of text {', '.join(sorted(METHODS))}"
    raise ExpressionFault(f"{ast.unparse(node)!r} is not allowed: {allowed}")


_NODES: dict[type[ast.expr], Callable[[Any], Value]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.List: _members,
    ast.Tuple: _members,
    ast.Set: _members,
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary,
    ast.BinOp: _arithmetic,
    ast.Compare: _compare,
    ast.Subscript: _subscript,
    ast.Call: _call,
}
