"""Bad recipes: each fault is told at its line, in words that say what to do. `# HERE` marks the line expected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe import kinds
from posttrain.recipe.load import load_recipe
from posttrain.recipe.schema import Spec
from posttrain.recipe.stage import Fault, Stage
from posttrain.templates.families import Kind


class Mix(Spec):
    data: str = Field(alias="from")
    share: float = Field(default=1.0, gt=0.0, le=1.0)


class SmallSft(Stage):
    trainer_config: ClassVar[str] = "trl.trainer.sft_config:SFTConfig"
    owned_options: ClassVar[dict[str, str]] = {"packing_strategy": "the stage packs by itself"}

    kind: Literal["sft"] = "sft"
    data: str | list[Mix]
    overlong: Literal["drop", "truncate"] = "drop"
    length: int | Literal["auto"] = "auto"

    def faults(self, recipe: Any, start_kind: Kind) -> Iterator[Fault]:
        if start_kind == "instruct":
            yield Fault(("data",), "an instruct model does not think", remedy="start from a base model")

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        if isinstance(self.data, str):
            return [(("data",), self.data)]
        return [(("data", i, "from"), mix.data) for i, mix in enumerate(self.data)]

    def result_kind(self, start_kind: Kind) -> Kind:
        return "hybrid"


class SmallGrpo(Stage):
    trainer_config: ClassVar[str] = "trl:GRPOConfig"

    kind: Literal["grpo"] = "grpo"
    queries: str
    exclude_queries_of: list[str] = Field(default_factory=list)

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [(("queries",), self.queries)]

    def stage_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return [(("exclude_queries_of", i), name) for i, name in enumerate(self.exclude_queries_of)]


MODEL = """\
  architecture: Qwen3ForCausalLM
  config: {hidden_size: 64, num_hidden_layers: 2}
  tokenizer: {train_on: [chains], vocab_size: 300}"""

GOOD = f"""\
name: tiny
seed: 1
model:
{MODEL}
data:
  chains:
    task: arithmetic
    size: 1000
    reserve: 64
  rows:
    path: rows.jsonl
evaluation:
  data: [chains]
  samples: 4
stages:
  cold_start:
    kind: sft
    data: rows
    train:
      learning_rate: 1e-3
      max_steps: 10
  rl:
    kind: grpo
    queries: chains
    exclude_queries_of: [cold_start]
    train:
      num_generations: 4
    require:
      think_follow: ">= 0.9"
"""

# (what stands in GOOD, what is put there, words of the problem and of its remedy)
BAD: list[tuple[str, str, str]] = [
    # keys
    ("seed: 1", "sead: 1 # HERE", "unknown key `sead`.*did you mean `seed`"),
    ("evaluation:", "stage: {} # HERE\nevaluation:", "unknown key `stage`.*did you mean `stages`"),
    ("  samples: 4", "  sample: 4 # HERE", "`sample` under `evaluation:`.*did you mean `samples`"),
    ("    reserve: 64", "    resreve: 64 # HERE", "`resreve` under `data.chains:`.*did you mean `reserve`"),
    (
        "    data: rows",
        "    data: rows\n    trian: {} # HERE",
        "`trian` under `stages.cold_start:`.*did you mean `train`",
    ),
    (
        "    data: rows",
        "    data: rows\n    max_steps: 3 # HERE",
        "unknown key `max_steps`.*write it under the stage's `train:`",
    ),
    ("    data: rows", "    data:\n    - {from: rows, shares: 0.5} # HERE", "`shares`.*did you mean `share`"),
    ("vocab_size: 300}", "vocab_sise: 300} # HERE", "unknown key `vocab_sise`.*did you mean `vocab_size`"),
    ("train_on: [chains], vocab_size: 300}", "train_on: [chains]} # HERE", "`model.tokenizer.vocab_size` is missing"),
    ("seed: 1", "seed: 1\nname: other # HERE", "`name` stands here twice: first on line 1"),
    ("      max_steps: 10", "      learning_rate: 1 # HERE", "`learning_rate` stands here twice: first on line 22"),
    ("seed: 1", "seed: 1\nyes: 1 # HERE", "unknown key `yes`"),
    ("seed: 1", "seed: 1\ntrue: 1 # HERE", "the key `true` is no text.*quotes"),
    # types
    ("seed: 1", "seed: one # HERE", "`seed` must be a whole number, not the text 'one'"),
    ("seed: 1", "seed: true # HERE", "`seed` must be a whole number, not true"),
    ("seed: 1", 'seed: "1" # HERE', "must be a whole number, not the text '1'.*write 1 without quotes"),
    ("    size: 1000", "    size: 1e3 # HERE", "`data.chains.size` must be a whole number.*write 1000"),
    ("name: tiny", "name: 2026 # HERE", '`name` must be text, not the number 2026.*"2026"'),
    ("name: tiny", "name: a b # HERE", "`name` cannot be 'a b'"),
    ("  data: [chains]", "  data: chains # HERE", r"`evaluation.data` must be a list.*\['chains'\]"),
    ("  data: [chains]", "  data: [] # HERE", "`evaluation.data` is empty.*at least 1"),
    ("  samples: 4", "  samples: 0 # HERE", "`evaluation.samples` must be at least 1, not 0"),
    ("    size: 1000", "    size: -1 # HERE", "`data.chains.size` must be greater than 0, not -1"),
    (
        "    reserve: 64",
        "    reserve: 64\n    format: chat # HERE",
        "`data.chains.format` must be 'auto', 'conversational'",
    ),
    (
        "    data: rows",
        "    data: rows\n    overlong: truncat # HERE",
        "must be 'drop' or 'truncate'.*did you mean `truncate`",
    ),
    (
        "    data: rows",
        "    data: rows\n    length: autom # HERE",
        "must be a whole number or 'auto'.*did you mean `auto`",
    ),
    ("    data: rows", "    data: 3 # HERE", "`stages.cold_start.data` must be text or a list, not the number 3"),
    ("    data: rows", "    data:\n    - from: rows\n      share: 2 # HERE", "share` must be at most 1, not 2"),
    ("    train:\n      num_g", "    train: # HERE\n    - num_g", "`stages.rl.train` must be a mapping, not a list"),
    ('      think_follow: ">= 0.9"', "      think_follow: 0.9 # HERE", "`stages.rl.require.think_follow` must be text"),
    ("  samples: 4", "  samples: # HERE", "`evaluation.samples` must be a whole number, not empty"),
    # shape of stages
    (
        "    kind: grpo",
        "    kind: gropo # HERE",
        "`stages.rl.kind` must be .*not the text 'gropo'.*did you mean `grpo`",
    ),
    ("  rl:\n    kind: grpo", "  rl: # HERE\n    knid: grpo", "`stages.rl.kind` is missing.*not `knid:`"),
    (
        "  rl:\n    kind: grpo",
        "  rx: grpo # HERE\n  rl:\n    kind: grpo",
        "`stages.rx` must be a mapping, not the text 'grpo'",
    ),
    (
        "  cold_start:\n    kind: sft\n    data: rows",
        "  cold_start: # HERE\n    kind: sft",
        "`stages.cold_start.data` is missing",
    ),
    ("  rl:\n", "  r.l: # HERE\n", "'r.l' cannot be a name under `stages:`"),
    ("  rl:\n", "  base: # HERE\n", "no stage can be called `base`"),
    ("  architecture: Q", "  path: ./x\n  architecture: Q", "either `path`.*or `architecture`"),
    (
        "    task: arithmetic",
        "    task: arithmetic\n    path: rows.jsonl",
        "exactly one of `path`, `dataset`, `task`",
    ),
    ("    size: 1000\n", "", "a procedural task needs `size`"),
    # options of libraries
    ("      max_steps: 10", "      max_step: 10 # HERE", "`max_step`: SFTConfig has none.*did you mean `max_steps`"),
    ("learning_rate: 1e-3", 'learning_rate: "1e-3" # HERE', "must be a number, not the text '1e-3'.*without quotes"),
    ("max_steps: 10", "max_steps: true # HERE", "`max_steps` must be a whole number, not true"),
    ("max_steps: 10", "max_steps: 1e2 # HERE", "`max_steps` must be a whole number.*write 100"),
    ("max_steps: 10", "packing: yes # HERE", "`packing` must be true or false.*write true"),
    ("max_steps: 10", "lr_scheduler_type: cosin # HERE", "`lr_scheduler_type` must be .*did you mean `cosine`"),
    ("max_steps: 10", "save_strategy: never # HERE", "`save_strategy` must be 'no', 'steps', 'epoch' or 'best'"),
    ("max_steps: 10", "optim: muon # HERE", "`optim`.*optimizer: {name: muon"),
    ("learning_rate: 1e-3", "learning_rate: -1e-3 # HERE", "`learning_rate` must be at least 0, not -0.001"),
    ("max_steps: 10", "weight_decay: -1 # HERE", "`weight_decay` must be at least 0"),
    ("max_steps: 10", "output_dir: x # HERE", "`output_dir` is not yours to set.*where files go is the run's"),
    ("max_steps: 10", "seed: 3 # HERE", "`seed` is not yours.*recipe's `seed:`"),
    ("max_steps: 10", "eval_strategy: steps # HERE", "`eval_strategy` is not yours.*`evaluation:`"),
    ("max_steps: 10", "deepspeed: {} # HERE", "`deepspeed` is not yours.*`engine:`"),
    ("max_steps: 10", "packing_strategy: bfd # HERE", "`packing_strategy` is not yours.*the stage packs by itself"),
    ("max_steps: 10", "evaluate_every: 3 # HERE", "`evaluate_every`.*write it beside `train:`"),
    ("max_steps: 10", "report_to: wandbb # HERE", "`report_to` knows no 'wandbb'.*did you mean `wandb`"),
    ("num_generations: 4", "num_generation: 4 # HERE", "GRPOConfig has none.*did you mean `num_generations`"),
    (
        "num_generations: 4",
        "chat_template_kwargs: {} # HERE",
        "`chat_template_kwargs`.*for each sample, not for a run",
    ),
    (
        "num_generations: 4",
        "reward_weights: [1, a] # HERE",
        r"`reward_weights` must be a list \(a number each\) or null",
    ),
    ("Qwen3ForCausalLM", "Qwen3ForCasualLM # HERE", "no causal language model.*did you mean `Qwen3ForCausalLM`"),
    (
        "{hidden_size: 64,",
        "{hiden_size: 64, # HERE\n   ",
        "`hiden_size`: Qwen3Config has none.*did you mean `hidden_size`",
    ),
    ("{hidden_size: 64,", "{hidden_size: x, # HERE\n   ", "`hidden_size` must be a whole number, not the text 'x'"),
    (
        "vocab_size: 300}",
        "vocab_size: 300}\n  adapter: {lora: {r: 8, lora_alfa: 16}} # HERE",
        "LoraConfig has none.*did you mean `lora_alpha`",
    ),
    ("vocab_size: 300}", "vocab_size: 300}\n  adapter: {lora: {bias: some}} # HERE", "`bias` must be 'none', 'all'"),
    (
        "vocab_size: 300}",
        "vocab_size: 300}\n  adapter: {lora: {target_modules: [q_proj, lm_head]}} # HERE",
        "an adapter on the output layer would not be trained",
    ),
    # references
    ("    data: rows", "    data: row # HERE", "there is no `row` under `data:`.*did you mean `rows`"),
    ("train_on: [chains]", "train_on: [chain] # HERE\n   ", "there is no `chain` under `data:`"),
    (
        "    queries: chains",
        "    queries: chains\n    start_from: coldstart # HERE",
        "no stage `coldstart`.*mean `cold_start`",
    ),
    ("    data: rows", "    data: rows\n    start_from: rl # HERE", "stage `rl` comes after `cold_start`"),
    ("    queries: chains", "    queries: chains\n    teacher: rl # HERE", "stage `rl` refers to itself"),
    (
        "    queries: chains",
        "    queries: chains\n    teacher: coldstart # HERE",
        "did you mean the stage `cold_start`",
    ),
    ("    data: rows", "    data: rows\n    start_from: a/b # HERE", "`a/b` is no stage.*`model: {path: ...}`"),
    (
        "max_steps: 10",
        "optim: sgd # HERE\n    optimizer: {learning_rate: 1}",
        "given twice: `optimizer` and `train.optim`",
    ),
    (
        "  architecture: Qwen3ForCausalLM\n  config",
        "  path: owner/model\n  config",
        "the shape of a model with a `path` names no class.*model_type",
    ),
    (
        "architecture: Qwen3ForCausalLM\n  config: {hid",
        "path: owner/model\n  config: {model_type: qwen33, # HERE\n    hid",
        "no model type `qwen33`.*did you mean `qwen3`",
    ),
    (
        "architecture: Qwen3ForCausalLM\n  config: {hid",
        "path: owner/model\n  config: {model_type: qwen3, hiden_layers: 3, # HERE\n    hid",
        "`hiden_layers`: Qwen3Config has none.*did you mean `num_hidden_layers`",
    ),
    ("  architecture: Q", "  revision: abc # HERE\n  architecture: Q", "`revision` is for a model with a `path`"),
    ("[cold_start]", "[cold_strat] # HERE", "there is no stage `cold_strat`.*did you mean `cold_start`"),
    ("  data: [chains]", "  data: [chains, rows] # HERE", "`rows` sets no rows aside.*reserve"),
    ("  samples: 4", "  budget_stages: [ri] # HERE", "there is no stage `ri`.*did you mean `rl`"),
    ("  samples: 4", "  budgets: [0, -1] # HERE", "budget of -1 tokens is less than none"),
    (
        "    task: arithmetic",
        "    task: arithmetics # HERE",
        "no task is called 'arithmetics'.*did you mean arithmetic",
    ),
    ("    size: 1000", "    size: 1000\n    options: {step: 3} # HERE", "no option is called 'step'"),
    ("    size: 1000", "    size: 1000\n    options: {seed: 3} # HERE", "`seed` stands beside `options:`, not in it"),
    ("    task: arithmetic", "    task: math # HERE", "math"),
    (
        "seed: 1",
        "seed: 1\ntemplate: {family: qwen33} # HERE",
        "unknown template family 'qwen33'.*did you mean 'qwen3'",
    ),
    ("vocab_size: 300}", "vocab_size: 300}\n  kind: instruct", "an instruct model does not think"),
    (
        "vocab_size: 300}",
        "vocab_size: 300}\n  kind: hybrid # HERE\ntemplate: {family: qwen2_5}",
        "a hybrid model does not go with the template family qwen2_5",
    ),
    ("  tokenizer: {train_on: [chains], vocab_size: 300}", "", "needs a tokenizer"),
    # demands
    ('">= 0.9"', '"0.9" # HERE', "'0.9' is no demand.*>= 0.95"),
    ('">= 0.9"', '">= 95" # HERE', "a share between 0 and 1.*write 0.95"),
    ("think_follow:", "thinkfollow: # HERE\n       ", "no figure `thinkfollow`.*did you mean `think_follow`"),
    ("think_follow:", "accuracy: # HERE\n       ", "say which mode: `thinking.accuracy` or `non_thinking.accuracy`"),
    ("think_follow:", "thinking.pass@3: # HERE\n       ", "pass@k is measured at powers of 2"),
    # paths
    ("path: rows.jsonl", "path: row.jsonl # HERE", "row.jsonl: no such file or folder.*did you mean rows.jsonl"),
    ("path: rows.jsonl", "path: part-*.jsonl # HERE", "no file matches"),
    ("path: rows.jsonl", "path: empty.jsonl # HERE", "empty.jsonl is empty"),
    ("path: rows.jsonl", "path: notes.txt # HERE", "cannot tell what kind of file this is"),
    ("path: rows.jsonl", "path: models/tiny # HERE", "no file in it ends in"),
    ("path: rows.jsonl", "path: rows.jsonl\n    size: 3 # HERE", "this is no task.*write `limit:`"),
    ("path: rows.jsonl", "path: rows.jsonl\n    options: {a: 1} # HERE", "a file takes no `options`"),
    ("path: rows.jsonl", "path: rows.jsonl\n    filter: 'len(' # HERE", "is no expression"),
    ("path: rows.jsonl", "path: rows.jsonl\n    map: {prompt: '{a'} # HERE", "the template '{a' is malformed"),
    ("path: rows.jsonl", "dataset: ./nowhere # HERE", "nowhere does not exist.*nothing is looked up on a hub"),
    (
        "    queries: chains",
        "    queries: chains\n    teacher: models/tyni # HERE",
        "models/tyni does not exist.*models/tiny",
    ),
    (
        "    queries: chains",
        "    queries: chains\n    teacher: models/tiny # HERE",
        "no model's directory: it has no config",
    ),
    ("    queries: chains", "    queries: chains\n    teacher: a/b/c # HERE", "a/b/c does not exist"),
    (
        MODEL,
        "  path: models/bare # HERE",
        "has no tokenizer, and the recipe names none",
    ),
    (MODEL, "  path: models/hollow # HERE", "models/hollow holds no weights.*for a new model write `architecture:`"),
    # YAML
    ("seed: 1", "seed: 1\n\tname: x # HERE", "not YAML.*no tabs"),
    ("seed: 1", "seed: a: b # HERE", "not YAML: mapping values are not allowed.*quote a text"),
    ("samples: 4", 'samples: "4', "not YAML.*look for an unclosed quote above"),
    ('">= 0.9"', '">= 0.9 # HERE', "not YAML.*close the quote"),
    ("  data: [chains]", "  data: [chains # HERE", "not YAML.*flow sequence.*close the bracket"),
    ("seed: 1", "seed: *nowhere # HERE", "not YAML.*undefined alias.*&NAME"),
    ("seed: 1", "seed: !!python/object:os.system 1 # HERE", "the tag .* is not known here"),
    ("seed: 1", "seed: 1\nx-loop: &a [*a] # HERE", "holds itself through an alias"),
    ("seed: 1", "<<: [3] # HERE", "`<<` merges mappings, and this is none"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kinds, "STAGE_KINDS", {})
    for name, cls in (("sft", SmallSft), ("grpo", SmallGrpo)):
        register(monkeypatch, name, cls)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    for model, file in (("bare", "pytorch_model.bin"), ("hollow", "tokenizer.json")):
        (tmp_path / "models" / model).mkdir()
        for name in ("config.json", file):
            (tmp_path / "models" / model / name).write_text("{}")
    return tmp_path


def register(monkeypatch: pytest.MonkeyPatch, name: str, cls: type[Stage]) -> None:
    monkeypatch.setitem(kinds.STAGE_KINDS, name, f"{cls.__module__}:{cls.__name__}")


def problems_of(folder: Path, text: str, *overrides: str) -> tuple[Problem, ...]:
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(PosttrainError) as caught:
        load_recipe(folder / "recipe.yaml", overrides)
    return caught.value.problems


def line_of(problem: Problem) -> int:
    found = re.search(r"recipe\.yaml:(\d+)", problem.where)
    assert found, f"no file and line: {problem}"
    return int(found[1])


def edited(old: str, new: str, text: str = GOOD) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


def test_the_good_one_is_good(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    recipe = load_recipe(folder / "recipe.yaml").recipe
    assert recipe.stages["cold_start"].train == {"learning_rate": 1e-3, "max_steps": 10}


@pytest.mark.parametrize(("old", "new", "words"), BAD, ids=[" ".join(new.split()[:3]) or old for old, new, _ in BAD])
def test_a_bad_recipe(folder: Path, old: str, new: str, words: str) -> None:
    text = edited(old, new)
    problems = problems_of(folder, text)
    told = "\n".join(map(str, problems))
    matching = [problem for problem in problems if re.search(words, str(problem), re.DOTALL)]
    assert len(matching) == 1, told
    if "# HERE" in text:
        expected = next(number for number, line in enumerate(text.splitlines(), 1) if "# HERE" in line)
        assert line_of(matching[0]) == expected, told
    # One mistake is one problem, except where a name was lost with it.
    assert len(problems) == 1, told


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 40


def test_all_problems_of_a_file_at_once_in_its_order(folder: Path) -> None:
    text = GOOD
    for old, new in (
        ("seed: 1", "sead: 1"),  # an unknown key
        ("{hidden_size: 64,", "{hiden_size: 64,"),  # of the model's own class
        ("    task: arithmetic", "    task: arithmetics"),  # of the tasks
        ("  samples: 4", "  samples: 0"),  # a range
        ("    data: rows", "    data: row"),  # a reference
        ("max_steps: 10", "max_step: 10"),  # a trainer's option, in one stage
        ("[cold_start]", "[cold_strat]"),  # a reference, in another
        ("num_generations: 4", "num_generations: four"),  # a trainer's type
        ('">= 0.9"', '"0.9"'),  # left out: the evaluation is unsound, so what it measures is not known
    ):
        text = edited(old, new, text)
    problems = problems_of(folder, text)
    assert [line_of(problem) for problem in problems] == [2, 5, 9, 16, 20, 23, 27, 29]
    assert "hidden_size" in problems[1].remedy


def test_what_depends_on_an_unsound_part_waits(folder: Path) -> None:
    """A misspelt `reserve` makes no second problem of the evaluation that needs it, but other faults are still told."""
    text = edited("    reserve: 64", "    resreve: 64")
    text = edited("    exclude_queries_of: [cold_start]", "    exclude_queries_of: [cold]", text)
    assert [line_of(problem) for problem in problems_of(folder, text)] == [11, 27]


def test_a_stage_judges_itself_beside_an_unsound_one(folder: Path) -> None:
    text = edited("vocab_size: 300}", "vocab_size: 300}\n  kind: instruct")
    text = edited("    queries: chains", "    queries: 3", text)
    assert "does not think" in problems_of(folder, text)[0].what
    assert len(problems_of(folder, text)) == 2


def test_a_problem_says_what_why_and_what_to_do(folder: Path) -> None:
    told = str(problems_of(folder, edited("max_steps: 10", "output_dir: x"))[0])
    assert told.splitlines() == [
        f"{folder}/recipe.yaml:23: `output_dir` is not yours to set under `train:`",
        "    why: where files go is the run's: RUN/stages/STAGE",
        "    do:  remove it",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the recipe is empty"),
        (b"- 1\n", "the recipe must be a mapping, not a list"),
        (b"name: \xff\n", "recipe.yaml:1: not UTF-8"),
        (b"name: x\nseed: \x01\n", "recipe.yaml:2: a character that YAML does not allow"),
        (b"name: x\n---\nname: y\n", "recipe.yaml:2: not YAML: expected a single document"),
        (b"name: x\nseed: " + b"[" * 200_000, "recipe.yaml:2: nested too deep"),
        (b"- " * 3000, "recipe.yaml:1: nested too deep"),
        (b"name: x\nmodel:\n\tpath: y\n", "recipe.yaml:3: (.|\n)*indent with spaces: YAML knows no tabs"),
    ],
)
def test_a_file_that_is_no_recipe(folder: Path, content: bytes, words: str) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    with pytest.raises(PosttrainError, match=words):
        load_recipe(folder / "recipe.yaml")


def test_a_recipe_that_is_not_there(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    with pytest.raises(PosttrainError, match=r"(?s)there is no recipe .*did you mean .*recipe\.yaml"):
        load_recipe(folder / "recpie.yaml")
    with pytest.raises(PosttrainError, match="cannot be read"):
        load_recipe(folder)


def test_aliases_do_not_explode(folder: Path) -> None:
    bomb = "x-0: &a0 [1, 2]\n" + "".join(f"x-{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(PosttrainError, match="aliases make"):
        (folder / "recipe.yaml").write_text(bomb + GOOD)
        load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.cold_start.train.max_step=3", "`max_step`: SFTConfig has none.*did you mean `max_steps`"),
        ("stages.cold_start.train.learning_rate=fast", "`learning_rate` must be a number"),
        ("stages.cold.train.learning_rate=1e-6", "no `cold` under `stages:`.*did you mean `cold_start`"),
        ("stages.cold_start.trian.learning_rate=1e-6", "unknown key `trian`"),
        ("stages.cold_start.data=row", "there is no `row` under `data:`"),
        ("evaluation.data.1=rows", "`evaluation.data` is a list of 1: '1' is no place in it"),
        ("evaluation.data.0=rows", "`rows` sets no rows aside"),
        ("data.chains.reserve=1001", "1001 rows cannot be reserved of 1000"),
        ("evaluation.sampling={thinking: {temperature: .nan}}", "`.*temperature` must be a finite number"),
        ("stages.rl.exclude_queries_of=[base]", "there is no stage `base`"),
        ("stages.cold_start.train.learning_rate=.nan", "`learning_rate` must be a finite number, not nan"),
        ("stages.cold_start.train.max_length=0", "`max_length` must be at least 1, not 0"),
        ("stages.cold_start.train.max_steps=0", "`max_steps` must be at least 1, or -1 for `num_train_epochs`"),
        ("stages.rl.train.top_p=2", "`top_p` must be at most 1, not 2"),
        ("stages.rl.train.num_train_epochs=1e308", "`num_train_epochs` must be at most 1,000,000, not 1e.308"),
        ("model.config.num_hidden_layers=1000000", "`num_hidden_layers` must be at most 2,000, not 1000000"),
        ("model.config.hidden_size=0", "`hidden_size` must be at least 1, not 0"),
        ("name.first=x", "`name` is the text 'tiny': nothing can be set below it"),
        ("seed", "not of the form KEY=VALUE"),
        ("seed=[", "not YAML"),
        ("engine={processes: 2}", "need `launcher: accelerate`"),
        ("x=1", "unknown key `x`"),
        ("model.path=./here", "either `path`"),
    ],
)
def test_a_bad_override_is_named(folder: Path, override: str, words: str) -> None:
    (problem,) = problems_of(folder, GOOD, override)
    assert re.search(words, str(problem), re.DOTALL), problem
    assert problem.where.endswith(f"--set {override}"), problem


def test_bad_overrides_come_after_the_file(folder: Path) -> None:
    text = edited("  samples: 4", "  samples: 0")
    problems = problems_of(folder, text, "seed=x", "stages.rl.train.num_generations=four")
    assert [problem.where.rpartition("/")[2] for problem in problems] == [
        "recipe.yaml:16",
        "--set seed=x",
        "--set stages.rl.train.num_generations=four",
    ]
