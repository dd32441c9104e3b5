"""The distillation stages: what they ask of SFT and of TRL, their faults, and that they teach."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain.data.funnel import Funnel
from posttrain.distill.off_policy import OffPolicyDistillationStage
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage, StageContext
from posttrain.sft.queries import limited
from posttrain.sft.sampler import Models
from posttrain.sft.sources import Collector
from posttrain.sft.stage import SftStage
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import Kind, get_family

for cls in (Stage, SftStage, stage_class("off_policy_distillation"), stage_class("on_policy_distillation")):
    cls.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
Recipe.model_rebuild()
QWEN3 = get_family("qwen3")
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


def off_policy(**options: Any) -> OffPolicyDistillationStage:
    stage = stage_class("off_policy_distillation").model_validate(
        {"teacher": "flagship", "queries": {"from": "sums"}, **options}
    )
    assert isinstance(stage, OffPolicyDistillationStage)
    return stage


def on_policy(**options: Any) -> Stage:
    return stage_class("on_policy_distillation").model_validate(
        {"teacher": "flagship", "queries": {"from": "sums"}, **options}
    )


def recipe(*, student: Stage, flagship: Stage | None = None) -> Recipe:
    stages = {} if flagship is None else {"flagship": flagship}
    return Recipe(
        name="test",
        model=ModelSpec(path="nowhere"),
        data={"sums": DataSpec(task="arithmetic", size=24)},
        evaluation=EvaluationSpec(data=["sums"]),
        engine=EngineSpec(cpu=True),
        stages={**stages, "student": student},
    )


def test_the_teacher_answers_in_both_modes_in_the_shares_asked_for() -> None:
    stage = off_policy(
        queries={"from": {"sums": 3, "words": 1}, "limit": 100},
        modes={"thinking": 0.75, "non_thinking": 0.25},
        answers=4,
        keep_per_query=2,
        sampling={"thinking": {"temperature": 0.9}},
    )
    sft = stage.as_sft()
    asked = [(source.rejection_sampling, source.weight) for source in sft.samples]
    assert [(a.queries, a.mode, weight) for a, weight in asked if a] == [
        ("sums", "thinking", 2.25),
        ("sums", "non_thinking", 0.75),
        ("words", "thinking", 0.75),
        ("words", "non_thinking", 0.25),
    ]
    assert [(a.limit, a.samples, a.keep, a.model) for a, _ in asked if a] == [
        (75, 4, 2, "teacher"),
        (75, 4, 2, "teacher"),
        (25, 4, 2, "teacher"),
        (25, 4, 2, "teacher"),
    ]
    temperatures = [a.sampling.temperature if a and a.sampling else None for a, _ in asked]
    assert temperatures == [0.9, None, 0.9, None]
    assert sft.teacher == "flagship"
    assert sft.fusion is not None and sft.fusion.multi_turn is None
    assert stage.result_kind("base") == "hybrid"


def test_both_modes_ask_the_same_queries() -> None:
    stage = off_policy(queries={"from": {"sums": 3, "words": 1}, "limit": 100}).as_sft()
    context: Any = SimpleNamespace(seed=5)
    collector = Collector(context, stage.filters, Funnel(), Models(context))
    rows = Dataset.from_dict({"place": list(range(1000))})
    drawn: dict[str | None, list[list[int]]] = {}
    for number, source in enumerate(stage.samples):
        spec = source.rejection_sampling
        assert spec is not None
        drawn.setdefault(spec.queries, []).append(limited(rows, spec.limit, collector.draw(spec, number))["place"][:])
    assert [len(each[0]) for each in drawn.values()] == [75, 25]
    for thinking, non_thinking in drawn.values():
        assert thinking == non_thinking and thinking != list(range(len(thinking)))


def test_only_the_verifier_filters_and_only_if_asked() -> None:
    assert [one.name for one in off_policy().as_sft().filters.responses.active()] == ["wrong_answer"]
    assert off_policy(keep="all").as_sft().filters.responses.active() == []
    own = off_policy(filters={"responses": {"guessing": False}})
    assert "repetition" in [one.name for one in own.as_sft().filters.responses.active()]


def test_one_mode_alone_has_no_flags() -> None:
    stage = off_policy(modes={"thinking": 1.0, "non_thinking": 0.0})
    assert stage.as_sft().fusion is None
    assert stage.result_kind("base") == "thinking"
    assert off_policy(flags=False).as_sft().fusion is None


@pytest.mark.parametrize("make", [off_policy, on_policy])
def test_a_distillation_without_a_teacher_is_a_fault(make: Any) -> None:
    stage = make(teacher=None)
    assert "has no teacher" in next(fault.what for fault in stage.faults(recipe(student=stage), "base"))


@pytest.mark.parametrize("make", [off_policy, on_policy])
def test_a_teacher_cannot_teach_a_mode_that_it_does_not_have(make: Any) -> None:
    flagship = stage_class("sft").model_validate({"samples": [{"data": "sums", "mode": "thinking"}]})
    student = make(modes={"thinking": 0.5, "non_thinking": 0.5}, start_from="base")
    faults = list(student.faults(recipe(student=student, flagship=flagship), "base"))
    assert [fault.loc for fault in faults] == [("modes", "non_thinking")]
    assert "stage `flagship`" in faults[0].what


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answers": 2, "keep_per_query": 3}, "more than answers"),
        ({"modes": {"thinking": 0.0}}, "at least one a share"),
        ({"queries": {"from": {"sums": 0.0}}}, "must be above 0"),
        ({"queries": {"from": []}}, "names no data set"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        off_policy(**options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("run"))
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        config=SHAPE,
        tokenizer=TrainedTokenizer(train_on=["sums"], vocab_size=330),
    )
    build_policy(spec, QWEN3, run.base, seed=1, texts=list(corpus(300, 0)))
    teacher = spec.model_copy(update={"tokenizer": str(run.base), "config": {**SHAPE, "vocab_size": 400}})
    build_policy(teacher, QWEN3, run.stage("flagship").model, seed=2)
    Dataset.from_list(list(Arithmetic().queries(24, 0))).save_to_disk(str(run.data("sums")))
    return run.path


def context(root: Path, stage: Stage, kind: Kind = "hybrid") -> StageContext:
    run = RunDir(root)
    return StageContext(
        recipe=recipe(student=stage),
        name="student",
        run=run,
        dir=run.stage("student"),
        start=run.base,
        teacher=run.stage("flagship").model,
        family=QWEN3,
        kind=kind,
        quiet=True,
    )


def test_the_student_comes_nearer_to_a_teacher_with_another_padding(root: Path) -> None:
    train = {
        "max_steps": 25,
        "per_device_train_batch_size": 16,
        "max_completion_length": 8,
        "learning_rate": 2e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    stage = on_policy(modes={"thinking": 0.5, "non_thinking": 0.5}, train=train)
    where = context(root, stage)
    where.dir.data.mkdir(parents=True)
    funnel = stage.build_data(where)
    assert funnel["modes"] == {"thinking": funnel["samples"] // 2, "non_thinking": funnel["samples"] // 2}
    trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)
    before = {name: value.clone() for name, value in trainer.teacher_model.state_dict().items()}
    assert trainer.beta == 1.0
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert min(losses) >= 0  # a divergence
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3]), losses
    for name, value in trainer.teacher_model.state_dict().items():
        assert torch.equal(value, before[name])
    student, teacher = trainer.model, trainer.teacher_model
    size, theirs = (model.num_parameters(exclude_embeddings=True) for model in (student, teacher))
    expected = 6 * size * trainer.train_tokens + 2 * size * trainer.rollout_tokens + 2 * theirs * trainer.train_tokens
    assert trainer.flops() == expected


def test_another_tokenizer_is_refused_before_data_are_built(root: Path, tmp_path: Path) -> None:
    stage = on_policy()
    where = context(root, stage)
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        config=SHAPE,
        tokenizer=TrainedTokenizer(train_on=["sums"], vocab_size=300),
    )
    build_policy(spec, QWEN3, tmp_path / "other", seed=3, texts=["other words altogether"] * 50)
    import dataclasses

    with pytest.raises(PosttrainError, match="tokenizers of student and teacher"):
        stage.build_data(dataclasses.replace(where, teacher=tmp_path / "other"))


def test_a_student_with_an_adapter_learns_within_it(root: Path) -> None:
    from peft import LoraConfig

    train = {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 8, "learning_rate": 1e-2}
    stage = on_policy(train={**train, "save_strategy": "no", "report_to": "none"})
    where = context(root, stage)
    if not (where.dir.data / "train").exists():
        where.dir.data.mkdir(parents=True, exist_ok=True)
        stage.build_data(where)
    model, tokenizer = load_model(where.start), load_tokenizer(where.start)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = stage.make_trainer(where, model, tokenizer, adapter)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)
