"""A recipe's YAML, read with the place of everything in it.

The scalars are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), because YAML 1.1, which
PyYAML follows, surprises where recipes live: it reads `1e-6` as text, `no` as false, `010` as 8 and `1:30` as 90.
Anchors, aliases and merge keys work; top-level keys that begin with `x-` are there to hold anchors and are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.words import Loc, nearest

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where it was built: ten times faster

TAG = "tag:yaml.org,2002:"
CORE_SCHEMA = tuple(
    (name, re.compile(rf"(?:{pattern})\Z"), list(first))
    for name, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            "-+.0123456789",
        ),
        ("merge", r"<<", "<"),
    )
)
DEEPEST = 50
MOST_NODES = 100_000  # after aliases: a recipe is a page, and nested aliases can make a page explode

HINTS = (
    ("tab character", "indent with spaces: YAML knows no tabs"),
    ("\\t", "indent with spaces: YAML knows no tabs"),
    ("mapping values are not allowed", "quote a text that contains `: `, or look at the indentation"),
    ("did not find expected key", "look at the indentation of this line and the one above, and for an unclosed quote"),
    ("expected comment or line break", "look for an unclosed quote above"),
    ("expected <block end>", "look at the indentation of this line and the one above"),
    ("could not find expected ':'", "a key needs a colon and a space after it"),
    ("quoted scalar", "close the quote"),
    ("flow sequence", "close the bracket, or put a comma between the entries"),
    ("flow mapping", "close the brace, or put a comma between the entries"),
    ("cannot start any token", "quote a text that begins with this character"),
    ("undefined alias", "define it above with &NAME"),
    ("expected a single document", "keep one document in the file: remove the line `---`"),
)


class CoreLoader(SafeLoader):  # type: ignore[misc]  # the C loader is untyped
    """Composes nodes whose scalars are resolved by the core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own shape


for _name, _pattern, _first in CORE_SCHEMA:
    CoreLoader.add_implicit_resolver(TAG + _name, _pattern, _first)


@dataclass
class Source:
    """A document: its value, and where each part of it stands."""

    name: str
    root: Node | None
    problems: list[Problem] = field(default_factory=list)
    _entries: dict[int, list[tuple[Any, Node, Node]]] = field(default_factory=dict)
    _values: dict[int, tuple[Any, int]] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)

    def value(self) -> Any:
        """The document's value, nodes aliased twice being one object. Faults found on the way are in `problems`."""
        value, size = self._value(self.root) if self.root is not None else (None, 0)
        if size > MOST_NODES:
            problem = Problem(
                f"aliases make {size:,} entries of this file", self.name, remedy="a recipe needs no such thing"
            )
            raise PosttrainError([*self.problems, problem])
        return value

    def has(self, loc: Loc) -> bool:
        """Whether something stands at a place."""
        return self._find(loc)[1]

    def line(self, loc: Loc) -> int:
        """The 1-based line of a place, or of the nearest thing above it that stands in the file."""
        return self._find(loc)[0]

    def where(self, loc: Loc) -> str:
        return f"{self.name}:{self.line(loc)}"

    def _find(self, loc: Loc) -> tuple[int, bool]:
        node, mark = self.root, 1
        for part in loc:
            if isinstance(node, MappingNode):
                found = [entry for entry in self.entries(node) if str(entry[0]) == str(part)]
                if not found:
                    return mark, False
                mark, node = _line(found[-1][1]), found[-1][2]
            elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                mark = _line(node)
            else:
                return mark, False
        return mark, True

    def entries(self, node: MappingNode) -> list[tuple[Any, Node, Node]]:
        """(key, key's node, value's node) of a mapping: what it merges (`<<`) and then its own, which wins."""
        if id(node) not in self._entries:
            self._entries[id(node)] = []  # a mapping merged into itself ends here
            self._entries[id(node)] = [*self._merged(node), *self._own(node)]
        return self._entries[id(node)]

    def _own(self, node: MappingNode) -> Iterator[tuple[Any, Node, Node]]:
        lines: dict[Any, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                continue
            if not isinstance(key_node, ScalarNode):
                self._problem(key_node, "a key must be one word, not a list or a mapping")
                continue
            key = self._scalar(key_node)
            if isinstance(key, bool | None):
                self._problem(key_node, f"the key `{key_node.value}` is no text", "put it in quotes")
                continue
            if key in lines:
                self._problem(
                    key_node, f"the key `{key}` stands here twice: first on line {lines[key]}", "keep one of the two"
                )
            lines[key] = _line(key_node)
            yield key, key_node, value_node

    def _merged(self, node: MappingNode) -> Iterator[tuple[Any, Node, Node]]:
        for key_node, value_node in node.value:
            if key_node.tag != TAG + "merge":
                continue
            # The first of several merged mappings wins, so it comes last here.
            sources = value_node.value[::-1] if isinstance(value_node, SequenceNode) else [value_node]
            for source in sources:
                if isinstance(source, MappingNode):
                    yield from self.entries(source)
                else:
                    self._problem(source, "`<<` merges mappings, and this is none", "write `<<: *NAME` of a mapping")

    def _value(self, node: Node) -> tuple[Any, int]:
        if id(node) in self._values:
            return self._values[id(node)]
        if id(node) in self._open:
            self._problem(node, "this holds itself through an alias", "write it out")
            return None, 1
        self._open.add(id(node))
        made: tuple[Any, int]
        if isinstance(node, MappingNode):
            pairs = {key: self._value(value) for key, _, value in self.entries(node)}
            made = {key: value for key, (value, _) in pairs.items()}, 1 + sum(size for _, size in pairs.values())
        elif isinstance(node, SequenceNode):
            items = [self._value(item) for item in node.value]
            made = [value for value, _ in items], 1 + sum(size for _, size in items)
        else:
            made = self._scalar(node), 1
        self._open.discard(id(node))
        self._values[id(node)] = made
        return made

    def _scalar(self, node: Node) -> Any:
        text, tag = str(node.value), node.tag.removeprefix(TAG)
        try:
            match tag:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
                case "float":
                    return _number(text)
        except ValueError:
            self._problem(node, f"{text[:40]!r} is not {tag}")
            return None
        self._problem(
            node, f"the tag {node.tag!r} is not known here", "remove it: a recipe holds text, numbers, lists, mappings"
        )
        return None

    def _problem(self, node: Node, what: str, remedy: str = "") -> None:
        self.problems.append(Problem(what, f"{self.name}:{_line(node)}", remedy=remedy))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _number(text: str) -> float:
    plain = text.lower().replace("_", "")
    return {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}.get(plain) or float(plain)


def parse_yaml(text: str, name: str) -> Source:
    """Parse one YAML document.

    Args:
        name: what its problems name as their file.

    Raises:
        PosttrainError: the text is not YAML; one line says where and what.
    """
    try:
        _refuse_depth(text, name)
        return Source(name, yaml.compose(text, CoreLoader))
    except yaml.MarkedYAMLError as error:
        raise PosttrainError(_syntax_problem(error, text, name)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PosttrainError(
            Problem("a character that YAML does not allow", f"{name}:{line}", remedy="remove it")
        ) from None


def _refuse_depth(text: str, name: str) -> None:
    """Composing is recursive, libyaml's in C: a file of a hundred thousand brackets would end the process."""
    depth = 0
    event: Any
    for event in yaml.parse(text, CoreLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise PosttrainError(Problem("nested too deep to be a recipe", f"{name}:{event.start_mark.line + 1}"))


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, name: str) -> Problem:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    # Where a quote or a bracket is left open, the place it was opened at helps, not the file's end.
    opened = any(word in said for word in ("quoted scalar", "flow sequence", "flow mapping"))
    mark = (error.context_mark if opened else None) or error.problem_mark or error.context_mark
    # libyaml says the same of a tab as of an @: what stands there tells.
    lines = text.split("\n")
    here = lines[mark.line][mark.column :] if mark is not None and mark.line < len(lines) else ""
    remedy = next((hint for part, hint in HINTS if part in said or (part == "tab character" and here[:1] == "\t")), "")
    where = f"{name}:{mark.line + 1}" if mark is not None else name
    column = f" (column {mark.column + 1})" if mark is not None else ""
    return Problem(f"not YAML: {said}{column}", where, remedy=remedy)


def read_source(path: Path) -> Source:
    """Read a recipe's file.

    Raises:
        PosttrainError: there is no such file, it is no UTF-8 text, or it is not YAML.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        beside = [found.name for found in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, [name for name in beside if name != path.name])  # itself: a link to nowhere
        remedy = f"did you mean {path.parent / near}?" if near else "check the path"
        raise PosttrainError(Problem(f"there is no recipe {path}", remedy=remedy)) from None
    except OSError as error:
        raise PosttrainError(Problem(f"the recipe {path} cannot be read: {error.strerror}")) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PosttrainError(Problem("not UTF-8 text", f"{path}:{line}", remedy="save the file as UTF-8")) from None
    return parse_yaml(text, str(path))
