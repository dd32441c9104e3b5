"""Writes docs/recipe.md, the reference of every key of a recipe, from the schema itself.

    python docs/make_reference.py           write docs/recipe.md
    python docs/make_reference.py --check   exit with 1 where the committed file is another

tests/test_docs.py holds the two equal, so the reference cannot fall behind the schema. Meanings are the schema's own
descriptions; NOTES has those that the schema leaves to the key's name, and may not repeat one.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from posttrain.recipe.kinds import STAGE_KINDS, recipe_model, stage_class
from posttrain.recipe.schema import Recipe
from posttrain.recipe.stage import Stage
from posttrain.rl.rewards import GATES, REWARDS, resolve_reward
from posttrain.tasks.registry import TASKS
from posttrain.templates.families import FAMILIES

TARGET = Path(__file__).with_name("recipe.md")

SECTIONS = ("model", "template", "data", "evaluation", "engine")

NOTES = {
    "Recipe.name": "the run's name; its directory is `runs/NAME` unless `--output` says otherwise",
    "Recipe.seed": "every seed of the run is drawn from it",
    "Recipe.model": "the model that the first stage starts from",
    "Recipe.template": "the chat dialect",
    "Recipe.data": "the data sets, by names of your own",
    "Recipe.evaluation": "what every checkpoint is scored on",
    "Recipe.engine": "where trainers run",
    "Recipe.stages": "the stages, by names of your own, run in the order written",
    "ModelSpec.path": "a hub id or a directory; what looks local never goes to a hub",
    "ModelSpec.revision": "branch, tag or commit of a hub's model",
    "ModelSpec.gguf_file": "the GGUF file below `path` that holds the weights",
    "ModelSpec.dtype": "the type of the weights",
    "ModelSpec.adapter": "train a LoRA adapter, in every stage that goes back to this model",
    "TemplateSpec.family": "the template family, see [Template families](#template-families)",
    "DataSpec.split": "the split of a `dataset`",
    "DataSpec.seed": "the task's seed",
    "DataSpec.format": "what the rows are; `auto` tells by the columns, see [Data formats](#data-formats)",
    "DataSpec.limit": "rows read at most, after the filter",
    "DataSpec.on_bad_rows": "`refuse`: every bad row is named and nothing is begun; `skip`: counted, logged, left out",
    "SamplingSpec.temperature": "0: the most probable token",
    "SamplingSpec.top_p": "nucleus sampling; 1: off",
    "SamplingSpec.presence_penalty": "taken from the score of every token that occurred already",
    "ThinkFollow.dialogues": "dialogues held; 0: none",
    "ThinkFollow.turns": "turns of a dialogue",
    "EvaluationSpec.max_new_tokens": "the model's own tokens in a completion; one that needs more counts as wrong",
    "EvaluationSpec.batch_size": "completions generated at once",
    "EvaluationSpec.think_follow": "mode following over several turns",
    "EvaluationSpec.seed": "of all sampling in the evaluation",
    "EngineSpec.launcher": "`none`: this process; `accelerate`: `accelerate launch`",
    "EngineSpec.machines": "machines; each runs the same command on a shared run directory",
    "EngineSpec.main_port": "rank 0's port",
    "EngineSpec.strategy": "`ddp`: whole copies; `zero2`, `zero3`: DeepSpeed; `fsdp2`: PyTorch's FSDP2",
    "EngineSpec.cpu": "train on the CPU even where there is an accelerator",
    "Stage.kind": "the kind of the stage",
    "Optimizer.name": "the one there is",
    "Optimizer.momentum": "Muon's",
    "Optimizer.weight_decay": "Muon's",
    "SftStage.samples": "where samples come from, one entry or several",
    "SftStage.filters": "what is left out of the samples",
    "SampleSource.rejection_sampling": "answers sampled from a model, in place of `data`",
    "Filters.queries": "filters of queries",
    "Filters.responses": "filters of responses",
    "QueryFilters.verifiable": "drop queries whose verifier refuses their reference or accepts rubbish",
    "QueryFilters.single_question": "drop queries that ask several questions",
    "QueryFilters.not_solved_without_thinking": "drop queries that a model answers without thinking",
    "QueryFilters.balance_domains": "cap the large domains",
    "NotSolvedWithoutThinking.max_new_tokens": "of such an answer",
    "NotSolvedWithoutThinking.batch_size": "answers generated at once",
    "ResponseFilters.wrong_answer": "the verifier scores the answer too low",
    "ResponseFilters.repetition": "a substantial part was said before, or the end loops",
    "ResponseFilters.guessing": "the thinking does not lead to the answer",
    "ResponseFilters.disagreement": "thinking and answer differ",
    "ResponseFilters.language_mixing": "languages are mixed, or the style shifts",
    "ResponseFilters.too_similar": "too close to a reserved row",
    "RejectionSampling.mode": "the mode that is asked for; answers in the other are dropped",
    "RejectionSampling.max_new_tokens": "of an answer; longer ones are dropped",
    "RejectionSampling.batch_size": "answers generated at once",
    "Fusion.flags": "how samples say their mode",
    "Fusion.multi_turn": "dialogues joined from single samples; `null`: none",
    "RolloutStage.queries": "which queries are asked, in which order",
    "RolloutStage.thinking_budgets": "a share of the thinking samples is stopped at a budget",
    "QuerySelection.pass_rate": "measure how often the starting model is right, and keep what it can learn",
    "QuerySelection.order": "`hardest_first` needs `pass_rate`",
    "PassRate.batch_size": "completions generated at once",
    "GrpoStage.health": "when a sick run is stopped",
    "RewardSpec.weight": "the reward's weight",
    "RewardSpec.options": "the reward's keyword-only parameters",
    "OffPolicyDistillationStage.queries": "which queries the teacher answers",
    "OffPolicyDistillationStage.supervise_empty_think": "the loss is on empty think blocks too",
    "OffPolicyDistillationStage.packing": "several whole samples a row of `train.max_length` tokens",
    "OnPolicyDistillationStage.health": "when a sick run is stopped",
}
"""Meanings of the keys whose fields have no description, by class and field."""

INTRO = """\
# Recipe reference

This file is generated by `python docs/make_reference.py` from the schema. Do not edit it.

A recipe is one YAML file (YAML 1.2 scalars: `1e-6` is a number, `no` is text). Unknown keys are refused. Anchors and
merge keys work; top-level keys that begin with `x-` hold anchors and are left out. Relative paths begin at the recipe's
own folder. `posttrain check RECIPE` tells every problem at once, with its line. `--set KEY=VALUE` overrides one key, as
`--set stages.NAME.train.learning_rate=1e-6`; a number in the key counts in a list from 0.

"Required" stands where there is no default.
"""

FORMATS = """\
### Data formats

Three shapes of rows are known. `map` makes the columns where they have other names, `filter` leaves rows out.

| `format` | columns | what becomes of it |
|---|---|---|
| `conversational` | `messages`, perhaps `tools` | a conversation to train on; roles are system, user, assistant, tool |
| `prompt_completion` | `prompt`, `completion`: text or messages | one conversation |
| `queries` | `prompt`: text or messages; `answer`; perhaps the columns below | a query with its reference |

A query may also bring `task` (what scores it, if not `verifier`), `reasoning` and `response` (a worked solution, which
`sft` trains on), `difficulty`, `domain`, `key`, `id`, and `entry` (JSON for the verifier).

Reasoning of an assistant stands in `reasoning_content`, or in a think block at the start of `content`. Two rows with
equal `key` are the same problem; by default the key is the text of the prompt.

`map` values with braces are templates (`"{question}\\nAnswer:"`), others are names of columns. `filter` is an
expression over the columns, as `difficulty <= 4 and domain == "math"`: comparisons, `and`, `or`, `not`, `in`,
`is None`, arithmetic, indexing, a few functions and string methods. It is parsed, never evaluated by Python.
"""

DEMANDS = """\
### Figures of `require`

`require` maps a figure to a comparison in quotes: `{think_follow: ">= 0.95", thinking.accuracy: "> 0.5"}`. Signs are
`>=`, `<=`, `>`, `<`, `==`. Figures are `think_follow` (hybrid models) and, below `thinking.` or `non_thinking.`:
`accuracy`, `pass@K` (K a power of 2 up to `evaluation.samples`, and that itself), `mode_followed`, `well_formed`,
`eos`, `truncated`, `thinking_tokens` (`.mean`, `.p50`, `.p95`), `by_data.NAME`, `by_difficulty.LEVEL`. A run that
misses one stops after that stage, with its report, and exit code 3.
"""


class Reference:
    """Builds the text; a class of options gets its section where it is first named."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._known: set[type[BaseModel]] = set()
        self._used: set[str] = set()

    def text(self) -> str:
        """The whole reference.

        Raises:
            ValueError: a key has no meaning, or a note is for no key.
        """
        self._add(INTRO)
        self._known |= {Recipe}
        self._add("## Recipe\n", self._table(Recipe, Recipe.model_fields))
        for name in SECTIONS:
            self._section(name)
        self._stages()
        self._lists()
        if unused := set(NOTES) - self._used:
            raise ValueError(f"notes for keys that describe themselves, or are gone: {', '.join(sorted(unused))}")
        return "\n".join(self.lines).rstrip() + "\n"

    def _add(self, *parts: str) -> None:
        self.lines += [part.rstrip() + "\n" for part in parts]

    def _section(self, name: str) -> None:
        annotation = Recipe.model_fields[name].annotation
        cls = next(one for one in _models(annotation))
        title = "data.NAME" if name == "data" else name
        self._add(f"## {title}\n", _doc(cls))
        self._class(cls)
        if name == "data":
            self._add(FORMATS)

    def _class(self, cls: type[BaseModel], fields: Mapping[str, FieldInfo] | None = None) -> None:
        """The table of a class, and the sections of the classes that it names."""
        self._known.add(cls)
        own = cls.model_fields if fields is None else fields
        self._add(self._table(cls, own))
        for field in own.values():
            for part in _models(field.annotation):
                if part not in self._known:
                    self._known.add(part)
                    self._add(f"### {part.__name__}\n", _doc(part))
                    self._class(part)

    def _stages(self) -> None:
        self._add("## stages.NAME\n", _doc(Stage))
        self._class(Stage, {name: field for name, field in Stage.model_fields.items() if name != "model"})
        self._add(
            "`model` (see [model](#model)) lets a stage start from a model of its own, as a student does; a key "
            "`tokenizer` that is left out there means the recipe's.\n",
            DEMANDS,
        )
        for kind in STAGE_KINDS:
            cls = stage_class(kind)
            module, _, config = cls.trainer_config.partition(":")
            self._add(
                f"## kind: {kind}\n",
                _doc(inspect.getmodule(cls)),
                f"`train:` takes the options of `{module}.{config}`, checked against the installed version.\n",
            )
            self._class(cls, {n: f for n, f in cls.model_fields.items() if n not in Stage.model_fields})
            if cls.owned_options:
                rows = [f"| `{key}` | {_cell(why)} |" for key, why in cls.owned_options.items()]
                self._add("Refused under `train:`, because the stage decides:\n")
                self._add("\n".join(["| option | why |", "|---|---|", *rows]))

    def _lists(self) -> None:
        families = [
            f"| `{name}` | {family.kind} | {', '.join(family.modes)} | {', '.join(family.flags.values()) or 'none'} |"
            for name, family in FAMILIES.items()
        ]
        self._add("## Template families\n")
        self._add("\n".join(["| family | kind | modes (first: default) | flags |", "|---|---|---|---|", *families]))
        tasks = [
            f"| `{name}{'NAME' if name.endswith(':') else ''}` | {_doc(_load(at))} |" for name, at in TASKS.items()
        ]
        self._add("## Tasks and verifiers\n", "For `data.NAME.task` and `data.NAME.verifier`.\n")
        self._add("\n".join(["| name | what |", "|---|---|", *tasks]))
        rewards = [
            f"| `{name}` | {_doc(resolve_reward(name))} | {_options(resolve_reward(name))} |" for name in REWARDS
        ]
        self._add(
            "## Rewards\n", "For `rewards:` of a `grpo` stage; a reward of your own is `package.module:function`.\n"
        )
        self._add("\n".join(["| name | what | options |", "|---|---|---|", *rewards]))
        gates = " and ".join(f"`{gate}`" for gate in GATES)
        self._add(f"Under `combine: product` the scores of {gates} multiply the others.\n")

    def _table(self, cls: type[BaseModel], fields: Mapping[str, FieldInfo]) -> str:
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        for name, field in fields.items():
            key = field.alias or name
            rows.append(f"| `{key}` | {_value(field)} | {_default(field)} | {self._meaning(cls, name, field)} |")
        return "\n".join(rows)

    def _meaning(self, cls: type[BaseModel], name: str, field: FieldInfo) -> str:
        if field.description:
            return _cell(field.description)
        for owner in cls.__mro__:
            if f"{owner.__name__}.{name}" in NOTES:
                self._used.add(f"{owner.__name__}.{name}")
                return _cell(NOTES[f"{owner.__name__}.{name}"])
            if name in (said := _attribute_docs(owner)):
                return _cell(said[name])
        raise ValueError(f"{cls.__name__}.{name} has no meaning: give its field a description")


def _load(path: str) -> Any:
    from importlib import import_module

    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _doc(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return _cell(" ".join(paragraph.split()))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _options(function: Any) -> str:
    found = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return ", ".join(f"`{p.name}` ({p.default})" for p in found) or "none"


def _attribute_docs(cls: type) -> dict[str, str]:
    """The texts that stand below the attributes of a class."""
    if cls.__module__.split(".")[0] != "posttrain":
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            said = following.value
            if isinstance(said, ast.Constant) and isinstance(said.value, str):
                found[node.target.id] = said.value
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of options inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _value(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(entry, bound):g}"
        for entry in field.metadata
        for bound, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(entry, bound, None) is not None
    ]
    text = _type(field.annotation)
    if any(isinstance(entry, BeforeValidator) for entry in field.metadata):
        text = f"`true`, `false` or {text}"
    return f"{text} {' and '.join(bounds)}".rstrip()


def _type(annotation: Any) -> str:
    """A type in the words of a recipe's author."""
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Any: "anything"}
    if annotation in names:
        return names[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "stage" if annotation is Stage else f"[{annotation.__name__}](#{_anchor(annotation)})"
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(_type(part) for part in parts if part is not NoneType)
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)} {_type(parts[0])}s"
    if origin is dict:
        keys = "name" if parts[0] is str else _type(parts[0])
        return "mapping" if parts[1] is Any else f"mapping, {keys}: {_type(parts[1])}"
    return _type(parts[0])  # Annotated, SerializeAsAny


def _anchor(cls: type[BaseModel]) -> str:
    """Where the section of a class stands: those of the recipe's own sections bear the key's name."""
    for name in SECTIONS:
        if cls in list(_models(Recipe.model_fields[name].annotation))[:1]:
            return "dataname" if name == "data" else name
    return cls.__name__.lower()


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    switch = any(isinstance(entry, BeforeValidator) for entry in field.metadata)
    if default is PydanticUndefined:
        return "**required**"
    if default is None:
        return "`false`" if switch else "–"
    if isinstance(default, BaseModel):
        return "`true`" if switch else "its own"
    return f"`{json.dumps(default, ensure_ascii=False)}`" if not isinstance(default, str) else f"`{default}`"


def main() -> int:
    """Write the reference, or check it. Returns the exit code."""
    assert issubclass(recipe_model(), Recipe)
    text = Reference().text()
    if "--check" in sys.argv[1:]:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        print(f"{TARGET}: {'up to date' if current == text else 'out of date: run python docs/make_reference.py'}")
        return int(current != text)
    TARGET.write_text(text, encoding="utf-8")
    print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
