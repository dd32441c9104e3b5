"""Off-policy distillation from stored log-probabilities: what is learned, and that the teacher is asked once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import Qwen3ForCausalLM

from posttrain.distill.cache_stage import check_stored, open_cache, place_of
from posttrain.distill.cost import cost
from posttrain.distill.schedule import OffPolicyShare
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, is_complete, seal, write_json
from posttrain.model.lock import in_turn
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.fingerprint import recipe_fingerprint
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage, StageContext
from posttrain.rl.rollouts import size_outside_embeddings
from posttrain.run.callbacks import RunRecorder
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import Mode, get_family
from posttrain.templates.render import render

KIND = stage_class("off_policy_distillation")
KIND.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
Recipe.model_rebuild()
QWEN3 = get_family("qwen3")
TEACHERS_WIDTH = 72
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
TRAIN = {
    "max_steps": 12,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


def stage_of(logits: dict[str, Any], **options: Any) -> Any:
    given = {"keep": "all", "max_new_tokens": 16, "queries": {"from": {"sums": 1}}, "train": TRAIN, **options}
    return KIND.model_validate({"teacher": "flagship", "logits": logits, **given})


def recipe(**stages: Stage) -> Recipe:
    return Recipe(
        name="test",
        model=ModelSpec(path="nowhere"),
        data={"sums": DataSpec(task="arithmetic", size=24)},
        evaluation=EvaluationSpec(data=["sums"]),
        engine=EngineSpec(cpu=True),
        stages=stages,
    )


def teach(directory: Path, queries: list[Any]) -> None:
    """A few seconds of training, so that a teacher's answers are well-formed and end."""
    model, tokenizer = load_model(directory).train(), load_tokenizer(directory)
    modes: tuple[Mode, ...] = ("thinking", "non_thinking")
    texts = []
    for row in queries:
        for mode in modes:
            answer = {"role": "assistant", "content": "1", "reasoning_content": "2" if mode == "thinking" else ""}
            texts.append(render([*row["prompt"], answer], QWEN3, mode=mode))
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)


def models(run: RunDir, students: int) -> None:
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        config=SHAPE,
        tokenizer=TrainedTokenizer(train_on=["sums"], vocab_size=330),
    )
    build_policy(spec, QWEN3, run.base, seed=1, texts=list(corpus(300, 0)))
    flagship = {"tokenizer": str(run.base), "config": {**SHAPE, "vocab_size": 400, "intermediate_size": TEACHERS_WIDTH}}
    build_policy(spec.model_copy(update=flagship), QWEN3, run.stage("flagship").model, seed=2)
    for number in range(students):
        config = {**SHAPE, "intermediate_size": 32 + 16 * number}
        student = spec.model_copy(update={"tokenizer": str(run.base), "config": config})
        build_policy(student, QWEN3, run.stage(f"student_{number}").path / "start", seed=3 + number)
    queries = list(Arithmetic().queries(24, 0))
    teach(run.stage("flagship").model, queries)
    Dataset.from_list(queries).save_to_disk(str(run.data("sums")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    models(RunDir(path), students=3)
    return path


def context(root: Path, stage: Stage, number: int = 0) -> StageContext:
    run, name = RunDir(root), f"student_{number}"
    return StageContext(
        recipe=recipe(**{name: stage}),
        name=name,
        run=run,
        dir=run.stage(name),
        start=run.stage(name).path / "start",
        teacher=run.stage("flagship").model,
        family=QWEN3,
        kind="base",
        quiet=True,
    )


def built(root: Path, stage: Any, number: int = 0) -> tuple[StageContext, dict[str, Any]]:
    where = context(root, stage, number)
    where.dir.data.mkdir(parents=True, exist_ok=True)
    return where, stage.build_data(where)


def trained(where: StageContext, stage: Any, peft_config: Any = None) -> Any:
    trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), peft_config)
    trainer.train()
    return trainer


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every forward pass of the teacher, however it is called."""
    seen: list[int] = []

    original = torch.nn.Module.__call__

    def counting(module: Any, *args: Any, **kwargs: Any) -> Any:
        if type(module).__name__ == "Qwen3Model" and module.config.intermediate_size == TEACHERS_WIDTH:
            seen.append(kwargs["input_ids"].numel() if "input_ids" in kwargs else args[0].numel())
        return original(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    return seen


def test_three_students_two_epochs_and_a_second_run_ask_the_teacher_once(
    root: Path, tmp_path: Path, forwards: list[int]
) -> None:
    stage = stage_of({"top_k": 16}, train={**TRAIN, "max_steps": -1, "num_train_epochs": 2})
    where, funnel = built(root, stage)
    first = len(forwards)
    assert first > 0 and funnel["logprobs"]["asked_of_the_teacher"] == funnel["logprobs"]["tokens"] > 0
    trained(where, stage)
    for number in (1, 2):
        where, funnel = built(root, stage, number)
        assert funnel["logprobs"]["asked_of_the_teacher"] == 0
        trainer = trained(where, stage)
        assert trainer.state.epoch == 2.0
        assert trainer.model.config.intermediate_size == 32 + 16 * number
    assert len(forwards) == first  # two epochs of three students later

    shared = {"top_k": 16, "cache": str(tmp_path / "shared")}
    built(root, stage_of(shared))
    assert len(forwards) > first
    second = tmp_path / "second"
    models(RunDir(second), students=1)
    asked = len(forwards)
    where, _ = built(second, stage_of(shared))
    assert len(forwards) == asked
    assert (
        load_from_disk(str(where.dir.data / "train"))[:]
        == load_from_disk(str(context(root, stage).dir.data / "train"))[:]
    )


def test_a_shared_folder_of_something_else_is_refused(root: Path, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    built(root, stage_of({"top_k": 4, "cache": shared}))
    with pytest.raises(PosttrainError, match=r"logprobs was made from something else: top_k: 4 -> 5"):
        built(root, stage_of({"top_k": 5, "cache": shared}))
    with pytest.raises(PosttrainError, match=r"answers was made from .*asked.*\.max_new_tokens: 16 -> 14"):
        built(root, stage_of({"top_k": 4, "cache": shared}, max_new_tokens=14))
    where = dataclasses.replace(context(root, stage_of({"cache": shared})), teacher=RunDir(root).base)
    with pytest.raises(PosttrainError, match=r"teacher\.model\.safetensors: .* -> "):
        where.recipe.stages["student_0"].build_data(where)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_the_loss_is_the_divergence_of_the_two_models(
    root: Path, packing: bool, beta: float, temperature: float
) -> None:
    """With every entry stored, against the models' own logits. The stored half precision is all that differs."""
    from posttrain.distill.buckets import bucket_divergence

    entries = len(load_tokenizer(root / "base"))
    train = {**TRAIN, "max_steps": 1, "learning_rate": 0.0, **({"max_length": 128} if packing else {})}
    logits = {"top_k": 1000, "beta": beta, "temperature": temperature}
    stage = stage_of(logits, packing=packing, train={**train, "per_device_train_batch_size": 1 if packing else 48})
    where, _ = built(root, stage)
    trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).item()
    student, teacher = trainer.model, load_model(RunDir(root).stage("flagship").model)
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "position_ids")}
    kept = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        ours, theirs = (
            (model(**inputs, use_cache=False).logits[:, :-1][kept][:, :entries] / temperature).log_softmax(-1)
            for model in (student, teacher)
        )
    expected = bucket_divergence(ours, theirs, beta).mean().item()
    assert loss == pytest.approx(expected, rel=2e-3)


def test_a_student_learns_and_a_cross_entropy_counts(root: Path) -> None:
    stage = stage_of({"top_k": 16, "cross_entropy": 0.5}, train={**TRAIN, "max_steps": 20})
    where, _ = built(root, stage)
    history = [entry for entry in trained(where, stage).state.log_history if "loss" in entry]
    assert history[-1]["divergence"] < 0.7 * history[0]["divergence"]
    for entry in history:
        assert entry["divergence"] >= 0
        assert entry["loss"] == pytest.approx(entry["divergence"] + 0.5 * entry["cross_entropy"], rel=1e-3)
        assert 0 < entry["teacher_tail"] < 1


def test_a_student_with_an_adapter_learns_within_it(root: Path) -> None:
    from peft import LoraConfig

    stage = stage_of({"top_k": 16}, train={**TRAIN, "max_steps": 2})
    where, _ = built(root, stage)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), adapter)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)


def sealed(where: StageContext, funnel: dict[str, Any]) -> Path:
    """A stage's data as a run leaves them; where its log-probabilities lie."""
    seal(where.dir.data, funnel=funnel, seconds=1.0)
    place = place_of(where.dir.data)
    assert place is not None
    return place


@pytest.mark.parametrize("fault", ["a byte", "gone", "moved"])
def test_a_run_that_goes_on_mends_the_log_probabilities(
    root: Path, tmp_path: Path, forwards: list[int], fault: str
) -> None:
    """Its data are whole; what they lean on lies elsewhere, and is looked at before the training goes on."""
    stage = stage_of({"top_k": 16, "cache": str(tmp_path / "shared")})
    where, funnel = built(root, stage)
    place = sealed(where, funnel)
    stage.mend_data(where)
    asked = len(forwards)
    shard = place / "shard-00000.arrow"
    good = shard.read_bytes()
    if fault == "a byte":
        shard.write_bytes(good[:-900] + bytes([good[-900] ^ 1]) + good[-899:])
    elif fault == "gone":
        shutil.rmtree(place)
    else:
        (tmp_path / "shared").rename(tmp_path / "other")
        stage = stage_of({"top_k": 16, "cache": str(tmp_path / "other")})
        where = context(root, stage)
    stage.mend_data(where)
    assert (len(forwards) > asked) == (fault != "moved")
    place = place_of(where.dir.data) or tmp_path
    assert (place / shard.name).read_bytes() == good and is_complete(where.dir.data)
    open_cache(where.dir.data)


def test_stored_answers_that_are_gone_are_told_before_a_stage_begins(root: Path, tmp_path: Path) -> None:
    stored = stage_of({"top_k": 16, "cache": str(tmp_path / "shared")})
    where, funnel = built(root, stored)
    place = sealed(where, funnel)
    later = dataclasses.replace(where, name="student_1")
    check_stored(later, "student_0")
    write_json(where.dir.record, {"name": "student_0"})
    check_stored(later, "student_0")
    (place / "shard-00000.arrow").unlink()
    with pytest.raises(PosttrainError, match=r"stored by stage student_0(.|\n)*--restart-from student_0"):
        check_stored(later, "student_0")
    where.dir.record.unlink()


def test_what_a_second_student_finds_there_cost_it_nothing(root: Path, tmp_path: Path) -> None:
    stage = stage_of({"top_k": 16, "cache": str(tmp_path / "shared")})
    costs = []
    for number in (0, 1, 0):  # the first once more, as after a kill before its own data were whole
        where, funnel = built(root, stage, number)
        sealed(where, funnel)
        costs.append(cost(where.dir))
    assert costs[2]["teacher_answers"] == costs[0]["teacher_answers"]
    assert costs[0]["teacher_answers"] == 48 and costs[0]["teacher_answered"] > 48
    assert costs[1]["teacher_answers"] is None and costs[1]["teacher_answered"] is None


def test_a_resumed_run_counts_the_tokens_before(root: Path) -> None:
    stage = stage_of({"top_k": 4}, train={**TRAIN, "max_steps": 4, "save_strategy": "steps", "save_steps": 2})
    where, funnel = built(root, stage)
    sealed(where, funnel)
    counted = []
    for checkpoint in (None, where.dir.checkpoints / "checkpoint-2"):
        trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)
        recorder = RunRecorder(where, trainer, None, 0)
        trainer.add_callback(recorder)
        if checkpoint is not None:
            recorder.resume(checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        counted.append(cost(where.dir)["trained"])
    assert counted[0] == counted[1] > 0


def test_a_teacher_in_another_precision_is_another_teacher(root: Path, tmp_path: Path) -> None:
    stage = stage_of({"top_k": 4, "cache": str(tmp_path / "shared")})
    where, _ = built(root, stage)
    half = where.recipe.model_copy(update={"model": ModelSpec(path="nowhere", dtype="bfloat16")})
    with pytest.raises(PosttrainError, match=r"dtype: \(not there\) -> bfloat16"):
        stage.build_data(dataclasses.replace(where, recipe=half))


def _build_too(root: Path, shared: str) -> None:
    built(root, stage_of({"top_k": 4, "cache": shared}), 1)


def test_two_runs_that_share_answers_take_turns(root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    other = multiprocessing.get_context("fork").Process(target=_build_too, args=(root, str(shared)))
    with in_turn(shared / "answers", "this run"):
        other.start()
        other.join(2)
        assert other.is_alive() and not (shared / "answers" / "fingerprint.json").exists()
    other.join(60)
    assert other.exitcode == 0 and is_complete(shared / "answers" / "data")


def test_where_it_is_stored_is_no_part_of_a_stage(root: Path, tmp_path: Path) -> None:
    (tmp_path / "somewhere").mkdir()
    marks = [
        json.dumps(recipe_fingerprint(recipe(student_0=stage_of(logits)), "student_0"))
        for logits in ({"top_k": 16}, {"top_k": 16, "cache": str(tmp_path / "somewhere")}, {"top_k": 17})
    ]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"logits": {"cross_entropy": 0.1, "temperature": 2.0}}, "at another temperature than 1"),
        ({"logits": {}, "train": {"loss_type": "dft"}}, "train.loss_type has no effect"),
        ({"logits": {}, "teacher": {"by_data": {"sums": "./one"}}}, "of one teacher"),
    ],
)
def test_what_cannot_be_is_a_fault(options: dict[str, Any], said: str) -> None:
    stage = stage_of(options.pop("logits"), **options)
    assert said in " ".join(fault.what for fault in stage.faults(recipe(student_0=stage), "base"))


def anew(where: StageContext) -> None:
    """Clear what an earlier test built under the stage's name, as a run does for a stage begun anew."""
    shutil.rmtree(where.dir.data, ignore_errors=True)
    where.dir.data.mkdir(parents=True)


def on_policy_of(**options: Any) -> Any:
    kind = stage_class("on_policy_distillation")
    kind.model_rebuild(_types_namespace={"ModelSpec": ModelSpec})
    train = {
        **TRAIN,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        **options.pop("train", {}),
    }
    return kind.model_validate({"teacher": "flagship", "queries": {"from": "sums"}, "train": train, **options})


def test_the_line_between_off_policy_and_on_policy_is_kept_to() -> None:
    share = OffPolicyShare(stage="one", first=1.0, last=0.0)
    steps = [share.is_off_policy(step, 100) for step in range(100)]
    assert sum(steps) == 50 and sum(steps[:20]) == 18 and sum(steps[80:]) == 2  # areas under the line
    assert sum(OffPolicyShare(stage="one", first=0.3, last=0.3).is_off_policy(step, 10) for step in range(10)) == 3


def test_some_steps_learn_from_stored_answers_and_a_resumed_run_goes_on(root: Path) -> None:
    stored = stage_of({"top_k": 16})
    built(root, stored)
    run = RunDir(root)
    build_link = run.stage("student_0").model
    if not build_link.exists():
        build_link.symlink_to(run.base)
    stage = on_policy_of(
        off_policy={"stage": "student_0", "first": 1.0, "last": 0.0},
        train={"save_strategy": "steps", "save_steps": 2, "save_total_limit": 4, "gradient_accumulation_steps": 2},
    )
    where = dataclasses.replace(context(root, stage, 1), recipe=recipe(student_0=stored, student_1=stage))
    anew(where)
    assert list(stage.faults(where.recipe, "hybrid")) == []
    stage.build_data(where)
    weights = []
    for checkpoint in (None, "checkpoint-2"):
        torch.manual_seed(5)
        trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)
        trainer.train(resume_from_checkpoint=checkpoint and str(where.dir.checkpoints / checkpoint))
        weights.append(trainer.model.state_dict())
        if checkpoint is None:
            kinds = ["off_policy/divergence" in entry for entry in trainer.state.log_history if "loss" in entry]
            assert kinds == [stage.off_policy.is_off_policy(step, 6) for step in range(6)]
            assert sum(kinds) == 3
            losses = [entry for entry in trainer.state.log_history if "off_policy/divergence" in entry]
            for entry in losses:
                assert entry["loss"] == pytest.approx(entry["off_policy/divergence"], rel=0.2)
            # A rollout is trained on once; the teacher reads no stored answer anew.
            assert 0 < trainer.taught_tokens == trainer.rollout_tokens < trainer.train_tokens
            size = size_outside_embeddings(trainer.teacher_model)
            assert trainer._other_forward_tokens() == size * trainer.taught_tokens
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_student_that_lets_packed_answers_read_each_other_is_refused(root: Path) -> None:
    """The stage that packed them has tried its own student, not this one."""

    class Leaky(Qwen3ForCausalLM):  # type: ignore[misc]
        def forward(self, input_ids: Any, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **rest)

    packing = {"packing": True, "train": {**TRAIN, "max_length": 128, "per_device_train_batch_size": 1}}
    anew(context(root, stage_of({"top_k": 4})))
    stored = stage_of({"top_k": 4}, **packing)
    built(root, stored)
    if not RunDir(root).stage("student_0").model.exists():
        RunDir(root).stage("student_0").model.symlink_to(RunDir(root).base)
    stage = on_policy_of(off_policy={"stage": "student_0", "first": 0.5, "last": 0.5})
    where = dataclasses.replace(context(root, stage, 1), recipe=recipe(student_0=stored, student_1=stage))
    anew(where)
    stage.build_data(where)
    stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)
    leaky = Leaky.from_pretrained(where.start)
    with pytest.raises(PosttrainError, match="does not keep packed samples apart"):
        stage.make_trainer(where, leaky, load_tokenizer(where.start), None)
    anew(context(root, stored))


def test_a_teacher_that_is_the_start_without_its_adapter_has_no_copy(root: Path) -> None:
    from peft import LoraConfig

    stage = on_policy_of(train={"beta": 1.0, "max_steps": 1, "learning_rate": 0.0})
    where = context(root, stage, 2)
    where = dataclasses.replace(where, teacher=where.start)
    anew(where)
    stage.build_data(where)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.0)
    trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), adapter)
    assert trainer.teacher_model is None
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:  # an adapter that has learned something
                value.normal_(std=0.3)
    ids = torch.randint(5, 300, (2, 12))
    ones = torch.ones_like(ids)
    inputs = {"prompt_ids": ids[:, :5], "prompt_mask": ones[:, :5], "completion_ids": ids[:, 5:]}
    inputs["completion_mask"] = ones[:, 5:]
    loss, _, tokens = trainer._compute_loss(trainer.model, inputs, None)
    loss.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in trainer.model.parameters() if parameter.grad is not None)
    entries = len(load_tokenizer(where.start))
    with torch.no_grad():
        ours = trainer.model(ids, use_cache=False).logits[:, 4:-1, :entries].log_softmax(-1)
        theirs = load_model(where.start)(ids, use_cache=False).logits[:, 4:-1, :entries].log_softmax(-1)
    expected = (ours.exp() * (ours - theirs)).sum(-1).mean()
    assert tokens == 14 and expected > 0.01
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)
