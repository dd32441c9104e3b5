"""The options of a library's config class, read from its source and not by importing it.

`import trl` costs five seconds, most of them torch's. A dataclass's fields stand in its source: name, annotation and
default. Base classes are followed through the imports of each module; enumerations and `choices` of a field's metadata
are read where they are literals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OptionField:
    """One option of a config class.

    Attributes:
        annotation: the type as the source writes it.
        default: the default as the source writes it; "" where there is none.
        choices: the values allowed, where the source says so; () where anything of the type is.
        type: the annotation's syntax tree.
    """

    name: str
    annotation: str
    default: str
    choices: tuple[Any, ...]
    type: ast.expr


@dataclass(frozen=True)
class _Module:
    """A parsed module: its classes, and (module, name) of each name it imports from elsewhere."""

    name: str
    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, tuple[str, str]]


@cache
def config_fields(reference: str, *, undecorated: bool = False) -> Mapping[str, OptionField]:
    """The fields that a config class's constructor takes, its base classes' included.

    Args:
        reference: `module:Class`.
        undecorated: read the annotations of classes that are not decorated with `@dataclass` as well (transformers'
            model configurations are made dataclasses by their base class).

    Raises:
        LookupError: the package is not installed, or has no such class.
    """
    module_name, _, class_name = reference.partition(":")
    found = _resolve(module_name, class_name)
    if found is None:
        raise LookupError(f"{module_name} has no class {class_name}")
    return dict(_fields(*found, undecorated))


@cache
def trainers_choices(reference: str, option: str) -> tuple[str, ...]:
    """The texts that a config class or its trainer holds an option against; () where no source of theirs can be read.

    Some options are plain text to the config, and refused at the first loss. Right for options whose every value the
    trainer asks for by name, as `loss_type`.

    Args:
        reference: the config class, `module:Class`; the trainer of `x_config` is in `x_trainer`.
    """
    module_name, _, class_name = reference.partition(":")
    found = _resolve(module_name, class_name)
    config = found[0].name if found else ""
    paths = [module_path(name) for name in (config, config.removesuffix("_config") + "_trainer")]
    held: dict[str, None] = {}
    for tree in [ast.parse(path.read_text(encoding="utf-8")) for path in paths if path]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and option in (
                getattr(node.left, "attr", ""),
                getattr(node.left, "id", ""),
            ):
                held |= dict.fromkeys(_texts(node.comparators))
    return tuple(held)


def _texts(sides: list[ast.expr]) -> Iterator[str]:
    for side in sides:
        for value in side.elts if isinstance(side, ast.List | ast.Tuple | ast.Set) else [side]:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def _fields(module: _Module, cls: ast.ClassDef, undecorated: bool) -> dict[str, OptionField]:
    fields: dict[str, OptionField] = {}
    for base in reversed(cls.bases):
        if isinstance(base, ast.Name) and (found := _resolve(module.name, base.id)) is not None:
            fields |= _fields(*found, undecorated)
    if not undecorated and not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return fields
    for statement in cls.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name, default = statement.target.id, statement.value
            annotation = _unquoted(statement.annotation)
            arguments = _field_arguments(default)
            if (
                "ClassVar" in ast.unparse(annotation)
                or ast.unparse(arguments.get("init", ast.Constant(True))) == "False"
            ):
                continue
            written = arguments.get("default", arguments.get("default_factory")) if arguments else default
            fields[name] = OptionField(
                name,
                ast.unparse(annotation),
                ast.unparse(written) if written is not None else "",
                _choices(module, annotation, arguments),
                annotation,
            )
    return fields


def _unquoted(annotation: ast.expr) -> ast.expr:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    return annotation


def _field_arguments(default: ast.expr | None) -> dict[str, ast.expr]:
    """The arguments of `field(...)`, or {} where the default is a plain value."""
    if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("field"):
        return {keyword.arg: keyword.value for keyword in default.keywords if keyword.arg}
    return {}


def union_members(annotation: ast.expr) -> list[ast.expr]:
    """The members of a union, however it is written (`A | B`, `Union[A, B]`, `Optional[A]`); else the type itself."""
    annotation = _unquoted(annotation)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return union_members(annotation.left) + union_members(annotation.right)
    if isinstance(annotation, ast.Subscript):
        name, inner = type_name(annotation), annotation.slice
        if name == "Optional":
            return [*union_members(inner), ast.Constant(None)]
        if name == "Union":
            elements = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return [member for element in elements for member in union_members(element)]
    return [annotation]


def type_name(annotation: ast.expr) -> str:
    """The last name of a type, without its parameters: `list` of `list[str]`, `Module` of `nn.Module`."""
    head = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return ast.unparse(head).rpartition(".")[2]


def literal_values(annotation: ast.expr) -> tuple[Any, ...]:
    """The values of `Literal[...]`; () for any other type."""
    if not isinstance(annotation, ast.Subscript) or type_name(annotation) != "Literal":
        return ()
    elements = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return tuple(element.value for element in elements if isinstance(element, ast.Constant))


def _choices(module: _Module, annotation: ast.expr, arguments: Mapping[str, ast.expr]) -> tuple[Any, ...]:
    metadata = arguments.get("metadata")
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "choices":
                try:
                    return tuple(ast.literal_eval(value))
                except ValueError:
                    break  # computed: not to be read here
    for member in union_members(annotation):
        if (
            isinstance(member, ast.Name)
            and member.id[:1].isupper()
            and (values := _enum_values(module.name, member.id))
        ):
            return values
    return ()


def _enum_values(module_name: str, name: str) -> tuple[Any, ...]:
    found = _resolve(module_name, name)
    if found is None or not any(ast.unparse(base).endswith("Enum") for base in found[1].bases):
        return ()
    values = (statement.value for statement in found[1].body if isinstance(statement, ast.Assign))
    return tuple(value.value for value in values if isinstance(value, ast.Constant))


def _resolve(module_name: str, name: str, seen: frozenset[str] = frozenset()) -> tuple[_Module, ast.ClassDef] | None:
    """The class that a name means in a module, followed through imports; None where that cannot be read."""
    module = _module(module_name)
    if module is None or module_name in seen:
        return None
    if name in module.classes:
        return module, module.classes[name]
    if name in module.imports:
        return _resolve(*module.imports[name], seen | {module_name})
    return None


@cache
def _module(name: str) -> _Module | None:
    path = module_path(name)
    if path is None:
        return None
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    classes: dict[str, ast.ClassDef] = {}
    imports: dict[str, tuple[str, str]] = {}
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.ClassDef):
            classes[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - statement.level + 1]) if statement.level else ""
            source = ".".join(part for part in (above, statement.module) if part)
            imports |= {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
    return _Module(name, classes, imports)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, those under `if` and `try` included (`if TYPE_CHECKING:` names what is loaded lazily)."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements(statement.body)
            yield from _statements(statement.orelse)


def module_path(name: str) -> Path | None:
    """The source of a module, found without importing anything of its package."""
    top, _, rest = name.partition(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a module without a spec, as a test's __main__
        return None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin and not rest else None
    for root in spec.submodule_search_locations:
        base = Path(root, *rest.split(".")) if rest else Path(root)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def architecture_config(architecture: str) -> tuple[str | None, list[str]]:
    """The config class of a transformers architecture, and every causal language model known.

    Returns:
        (`module:Class`, or None where it cannot be told; names of the architectures that end in a language model head).
    """
    pairs = _auto_names("modeling_auto")
    known = sorted({name for _, name in pairs if name.endswith(("ForCausalLM", "LMHeadModel"))})
    configs = [model_type_config(model_type)[0] for model_type, name in pairs if name == architecture]
    return next((config for config in configs if config is not None), None), known


def model_type_config(model_type: str) -> tuple[str | None, list[str]]:
    """The config class of a transformers model type (`module:Class`, or None), and every model type known."""
    configs = {name: cls for name, cls in _auto_names("auto_mappings") if cls.endswith("Config")}
    folder = model_type.replace("-", "_")
    module = f"transformers.models.{folder}.configuration_{folder}"
    found = model_type in configs and module_path(module) is not None
    return f"{module}:{configs[model_type]}" if found else None, sorted(configs)


@cache
def _auto_names(module: str) -> list[tuple[str, str]]:
    """The pairs (model type, class name) that stand in a module of transformers.models.auto."""
    path = module_path(f"transformers.models.auto.{module}")
    return re.findall(r'\("([\w-]+)", "(\w+)"\)', path.read_text(encoding="utf-8")) if path is not None else []
