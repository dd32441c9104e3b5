"""The SFT stage on a tiny model: its data, its trainer, what it refuses, and a build that a kill interrupted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped,unused-ignore]
import pytest
import torch
from datasets import Dataset, load_from_disk
from pydantic import create_model

from posttrain.data.prepare import prepare_data
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, read_json, seal
from posttrain.model.policy import build_policy, family_of, load_model, load_tokenizer, save_policy
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import Recipe
from posttrain.recipe.stage import StageContext
from posttrain.sft.completions import Chunk
from posttrain.sft.stage import SftStage
from posttrain.templates.families import Kind, get_family
from posttrain.templates.render import last_flag

stage_class("sft")  # completes the class's forward references, as loading a recipe does
QWEN3 = get_family("qwen3")

BASE: dict[str, Any] = {
    "architecture": "Qwen3ForCausalLM",
    "config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "tokenizer": {"train_on": ["problems"], "vocab_size": 320},
}
DATA: dict[str, Any] = {
    "problems": {
        "task": "arithmetic",
        "size": 60,
        "options": {"steps": [1, 2]},
        "reserve": 4,
        "decontaminate": "key",
    }
}
TRAIN: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "max_length": 128}


def recipe_of(stages: dict[str, Any], data: dict[str, Any] | None = None, **more: Any) -> Recipe:
    """A recipe with SFT stages alone, so that these tests stand without the other kinds."""
    model = create_model("SftRecipe", __base__=Recipe, stages=(dict[str, SftStage], ...))
    given = {"name": "r", "model": BASE, "data": data or DATA, "evaluation": {"data": ["problems"]}, "stages": stages}
    return model.model_validate({**given, "engine": {"cpu": True, "threads": 1}, **more})


def sft(*samples: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "sft", "samples": list(samples), "train": TRAIN, **more}


def context_of(recipe: Recipe, run: RunDir, name: str, kind: Kind = "base", start: Path | None = None) -> StageContext:
    context = StageContext(
        recipe=recipe,
        name=name,
        run=run,
        dir=run.stage(name),
        start=start or run.base,
        teacher=None,
        family=family_of(recipe.template),
        kind=kind,
        quiet=True,
    )
    context.dir.data.mkdir(parents=True, exist_ok=True)
    return context


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run whose data and base model stand."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    recipe = recipe_of({"only": sft({"data": "problems"})})
    prepare_data(recipe, run, Path())
    rows = load_from_disk(str(run.data("problems")))
    texts = [text for row in rows for text in (row["prompt"][0]["content"], row["reasoning"], row["response"])]
    build_policy(recipe.model, QWEN3, run.base, seed=0, texts=texts)
    seal(run.base)
    return run


@pytest.fixture
def run(prepared: RunDir, tmp_path: Path) -> Iterator[RunDir]:
    """A run of its own over the same data and base model."""
    for name in ("base", "data", "reserved"):
        (tmp_path / name).symlink_to(prepared.path / name)
    yield RunDir(tmp_path)


def build(context: StageContext) -> dict[str, Any]:
    return context.recipe.stages[context.name].build_data(context)


def trainer_of(context: StageContext) -> Any:
    stage = context.recipe.stages[context.name]
    return stage.make_trainer(context, load_model(context.start), load_tokenizer(context.start), None)


def parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- data ------------------------------------------------------------------------------------------------------------


def test_worked_solutions_become_tokens_queries_and_samples_to_read(run: RunDir) -> None:
    context = context_of(recipe_of({"cold": sft({"data": "problems", "mode": "thinking"})}), run, "cold")
    funnel = build(context)
    rows = load_from_disk(str(run.data("problems")))
    train = load_from_disk(str(context.dir.data / "train"))
    samples = lines(context.dir.data / "samples.jsonl")
    assert len(train) == len(samples) == len(rows) == funnel["conversations"]["conversations"]
    tokenizer = load_tokenizer(context.start)
    for row, sample in zip(train, samples, strict=True):
        user, assistant = sample["messages"]
        supervised = tokenizer.decode([token for token in row["labels"] if token != -100])
        assert supervised == f"<think>\n{assistant['reasoning_content']}\n</think>\n\n{assistant['content']}<|im_end|>"
        assert f"<|im_start|>user\n{user['content']}<|im_end|>" in tokenizer.decode(row["input_ids"])
        assert row["length"] == len(row["input_ids"])
    queries = {query["id"]: query for query in parquet(context.dir.data / "queries.parquet")}
    assert queries == {row["id"]: row for row in rows}
    assert read_json(context.dir.data / "funnel.json") == json.loads(json.dumps(funnel))
    steps = [step["step"] for step in funnel["steps"] if step["source"] == "problems (thinking)"]
    assert steps == [
        "readable",
        *("wrong_answer", "repetition", "guessing", "disagreement", "language_mixing", "too_similar"),
        "kept",
    ]
    assert all(step["dropped"] == 0 for step in funnel["steps"])
    kept = [row for row in lines(context.dir.data / "examples.jsonl") if row["verdict"] == "kept"]
    assert kept and all(row["query"] and row["reasoning"] and row["content"] for row in kept)
    assert not (context.dir.data / "work").exists()


def test_reserved_problems_never_become_samples(run: RunDir, tmp_path: Path) -> None:
    rows = load_from_disk(str(run.data("problems")))
    reserved = parquet(run.reserved("problems"))
    leaky = [*rows.to_list()[:5], reserved[0] | {"id": "leak"}]
    (run.path / "data").unlink()
    for name, table in (("problems", rows.to_list()), ("leaky", leaky)):
        Dataset.from_list(table, features=rows.features).save_to_disk(str(run.data(name)))
    data = DATA | {"leaky": DATA["problems"] | {"reserve": 0}}
    context = context_of(recipe_of({"cold": sft({"data": "leaky"})}, data), run, "cold")
    funnel = build(context)
    (similar,) = [step for step in funnel["steps"] if step["step"] == "too_similar"]
    assert similar["why"] == {"query": 1}
    assert "leak" not in [query["id"] for query in parquet(context.dir.data / "queries.parquet")]


def test_sources_are_mixed_by_weight_and_modes_kept(run: RunDir) -> None:
    stages = {
        "both": sft(
            {"data": "problems", "mode": "thinking", "weight": 3, "limit": 20},
            {"data": "problems", "mode": "non_thinking", "weight": 1},
            size=40,
        )
    }
    context = context_of(recipe_of(stages), run, "both", "hybrid")
    funnel = build(context)
    samples = lines(context.dir.data / "samples.jsonl")
    assert Counter(sample["source"] for sample in samples) == {"problems (thinking)": 30, "problems (non_thinking)": 10}
    for sample in samples:
        thinks = sample["source"] == "problems (thinking)"
        assert ("reasoning_content" in sample["messages"][-1]) is thinks and sample["modes"] == [
            "thinking" if thinks else "non_thinking"
        ]
    assert [share["exhausted"] for share in funnel["mix"]] == [True, False]
    texts = {json.dumps(sample["messages"]) for sample in samples if sample["source"] == "problems (thinking)"}
    assert len(texts) == 20  # twenty are there; ten of them come twice


def test_fusion_data_are_flagged_and_every_turn_supervised(run: RunDir) -> None:
    stages = {
        "fusion": sft(
            {"data": "problems", "mode": "thinking"},
            {"data": "problems", "mode": "non_thinking"},
            fusion={"flags": {"unflagged": 0.5, "in_system": 0.2}, "multi_turn": {"share": 0.4, "turns": [2, 3]}},
            train=TRAIN | {"max_length": 512},
        )
    }
    context = context_of(recipe_of(stages), run, "fusion", "thinking")
    funnel = build(context)
    samples = lines(context.dir.data / "samples.jsonl")
    train = load_from_disk(str(context.dir.data / "train"))
    tokenizer = load_tokenizer(context.start)
    assert funnel["conversations"]["multi_turn"] > 5
    for sample, row in zip(samples, train, strict=True):
        supervised = tokenizer.decode([token for token in row["labels"] if token != -100])
        assert supervised.count("<|im_end|>") == len(sample["modes"])
        assert supervised.count("<think>\n\n</think>") == sample["modes"].count("non_thinking")
        for place, message in enumerate(sample["messages"]):
            if message["role"] == "assistant":
                asked = last_flag(sample["messages"][:place], QWEN3) or "thinking"
                assert (asked == "thinking") == ("reasoning_content" in message)


def test_history_strip_gives_one_sample_a_turn_as_served(run: RunDir) -> None:
    fusion = {"multi_turn": {"share": 1.0, "turns": [2, 2]}}
    sources = ({"data": "problems", "mode": "thinking"}, {"data": "problems", "mode": "non_thinking"})
    recipe = recipe_of({"fusion": sft(*sources, fusion=fusion, history="strip")})
    context = context_of(recipe, run, "fusion", "thinking")
    funnel = build(context)
    train = load_from_disk(str(context.dir.data / "train"))
    assert len(train) == funnel["tokens"]["samples"] == 2 * funnel["conversations"]["conversations"]
    tokenizer = load_tokenizer(context.start)
    for row in train:
        context_text = tokenizer.decode(
            [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        )
        assert "<think>" not in context_text


def test_long_samples_are_counted_with_examples(run: RunDir) -> None:
    context = context_of(recipe_of({"all": sft({"data": "problems"})}), run, "all")
    build(context)
    lengths = sorted(load_from_disk(str(context.dir.data / "train"))["length"])
    middle = lengths[len(lengths) // 2]
    short = sum(length <= middle for length in lengths)
    stage = sft({"data": "problems"}, train=TRAIN | {"max_length": middle})
    context = context_of(recipe_of({"cold": stage}), run, "cold")
    funnel = build(context)
    (step,) = [step for step in funnel["steps"] if step["step"] == "tokens"]
    assert step["why"] == {"too_long": len(lengths) - short} and step["kept"] == short
    assert len(load_from_disk(str(context.dir.data / "train"))) == short < len(lengths)
    shown = [row for row in lines(context.dir.data / "examples.jsonl") if row["why"] == "too_long"]
    assert shown and all(f"tokens, max_length {middle}" in row["detail"] for row in shown)


def test_nothing_left_names_the_filter_and_writes_the_funnel(run: RunDir) -> None:
    filters = {"responses": {"guessing": {"shortest": 1000}}}
    context = context_of(recipe_of({"cold": sft({"data": "problems"}, filters=filters)}), run, "cold")
    with pytest.raises(PosttrainError, match=r"no sample left(.|\n)*guessing dropped 5\d of 5\d: too_short") as raised:
        build(context)
    assert Path(raised.value.problems[0].where).exists()
    with pytest.raises(PosttrainError, match="no sample is in mode thinking"):
        build(
            context_of(
                recipe_of({"fusion": sft({"data": "problems", "mode": "non_thinking"}, fusion={})}), run, "fusion"
            )
        )


# --- rejection sampling from a model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memorised(prepared: RunDir) -> Path:
    """A model that knows the solutions of a few problems by heart, in thinking mode."""
    recipe = recipe_of({"learn": sft({"data": "problems", "mode": "thinking", "limit": 6})})
    context = context_of(recipe, prepared, "learn")
    build(context)
    train = load_from_disk(str(context.dir.data / "train"))
    model = load_model(context.start).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    width = max(train["length"])
    ids = torch.tensor([row + [0] * (width - len(row)) for row in train["input_ids"]])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in train["labels"]])
    for _ in range(120):
        loss = model(input_ids=ids, labels=labels, attention_mask=(labels.cumsum(1) > -(10**9)).long()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02
    target = context.dir.model
    save_policy(model.eval(), load_tokenizer(context.start), QWEN3, target, card={})
    seal(target)
    return target


FROM_LEARN: dict[str, Any] = {
    "queries_of": "learn",
    "from": "learn",
    "samples": 3,
    "keep": 1,
    "max_new_tokens": 40,
    "chunk": 6,
}


def with_learn(prepared: RunDir, run: RunDir, **rejection: Any) -> StageContext:
    (run.path / "stages").mkdir()
    (run.path / "stages" / "learn").symlink_to(prepared.path / "stages" / "learn")
    learn = sft({"data": "problems", "mode": "thinking", "limit": 6})
    fused = sft({"rejection_sampling": FROM_LEARN | rejection}, {"data": "problems", "mode": "non_thinking"}, fusion={})
    return context_of(recipe_of({"learn": learn, "fusion": fused}), run, "fusion", "thinking")


def test_a_models_own_right_answers_become_samples(prepared: RunDir, run: RunDir, memorised: Path) -> None:
    context = with_learn(prepared, run)
    funnel = build(context)
    label = "queries of learn answered by learn (thinking)"
    made = funnel["rejection_sampling"][label]
    assert made["queries"] == 6 and made["completions"] == 18 and made["accepted"] >= 9
    own = [s for s in lines(context.dir.data / "samples.jsonl") if label in s["source"]]
    assert own and all("thinking" in sample["modes"] for sample in own)


def test_a_build_killed_while_sampling_ends_the_same(
    prepared: RunDir, run: RunDir, memorised: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = RunDir(tmp_path / "other")
    other.path.mkdir()
    for name in ("base", "data", "reserved"):
        (other.path / name).symlink_to(prepared.path / name)
    whole, killed = with_learn(prepared, run), with_learn(prepared, other)
    build(whole)

    class Killed(BaseException):
        pass

    write, made = Chunk.write, 0

    def die(self: Chunk, rows: Any) -> None:
        nonlocal made
        made += 1
        if made > 2:
            raise Killed
        write(self, rows)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Chunk, "write", die)
        build(killed)
    assert len(list(killed.dir.data.rglob("chunk-*.jsonl"))) == 2
    build(killed)
    for name in ("samples.jsonl", "funnel.json", "examples.jsonl"):
        ours, theirs = ((context.dir.data / name).read_text() for context in (killed, whole))
        assert ours.replace(str(other.path), "RUN") == theirs.replace(str(run.path), "RUN")
    trains = [load_from_disk(str(context.dir.data / "train")) for context in (killed, whole)]
    assert trains[0].to_list() == trains[1].to_list()


def test_queries_answered_without_thinking_can_be_left_out(prepared: RunDir, run: RunDir, memorised: Path) -> None:
    asked = {"not_solved_without_thinking": {"model": "learn", "samples": 2, "max_new_tokens": 24}}
    stages = {
        "learn": sft({"data": "problems", "mode": "thinking"}),
        "cold": sft({"data": "problems", "limit": 8}, filters={"queries": asked | {"verifiable": True}}),
    }
    (run.path / "stages").mkdir()
    (run.path / "stages" / "learn").symlink_to(prepared.path / "stages" / "learn")
    funnel = build(context_of(recipe_of(stages), run, "cold"))
    steps = {step["step"]: step for step in funnel["steps"]}
    assert steps["not_solved_without_thinking"]["in"] == steps["verifiable"]["kept"] > 0
    assert steps["readable"]["in"] == steps["not_solved_without_thinking"]["kept"]


def test_a_model_that_is_not_there_is_named(run: RunDir) -> None:
    source = {"rejection_sampling": {"queries": "problems", "from": "./nowhere", "samples": 1}}
    with pytest.raises(PosttrainError, match="nowhere"):
        build(context_of(recipe_of({"cold": sft(source)}), run, "cold"))


# --- training --------------------------------------------------------------------------------------------------------


def test_the_trainer_takes_the_data_as_they_are(run: RunDir) -> None:
    context = context_of(recipe_of({"cold": sft({"data": "problems"})}), run, "cold")
    build(context)
    trainer = trainer_of(context)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    row = next(
        row
        for row in load_from_disk(str(context.dir.data / "train"))
        if row["input_ids"] == batch["input_ids"][0].tolist()
    )
    assert row["labels"] == batch["labels"][0].tolist()
    args = trainer.args
    assert args.use_cpu and not args.bf16 and not args.gradient_checkpointing and args.max_length is None
    assert args.seed == args.data_seed == context.seed and args.output_dir == str(context.dir.checkpoints)
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_muon_is_made_for_the_model_and_the_schedule_drives_it(run: RunDir) -> None:
    optimizer = {"name": "muon", "learning_rate": 0.02}
    train = TRAIN | {"learning_rate": 1e-3, "warmup_steps": 2}
    context = context_of(recipe_of({"cold": sft({"data": "problems"}, optimizer=optimizer, train=train)}), run, "cold")
    build(context)
    trainer = trainer_of(context)
    assert type(trainer).__name__ == "SFTTrainer"
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "MuonAdamW"
    rates = {group["algorithm"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"muon": 0.02, "adamw": 1e-3}


@pytest.mark.parametrize("packing", [False, True])
def test_a_resumed_training_ends_with_the_same_weights(run: RunDir, packing: bool) -> None:
    """Three epochs with a checkpoint inside the second: sampler, schedule and Muon's state come back."""
    batch = 4 if packing else 10
    train = TRAIN | {"max_length": 96, "per_device_train_batch_size": batch, "learning_rate": 1e-3, "logging_steps": 1}
    stage = sft({"data": "problems"}, packing=packing, optimizer={"learning_rate": 0.02}, train=train)
    build(context_of(recipe_of({"cold": stage}), run, "cold"))
    epoch = -(-len(load_from_disk(str(run.stage("cold").data / "train"))) // batch)
    saved, steps = epoch + epoch // 2, 3 * epoch
    stage["train"] |= {"max_steps": steps, "save_steps": saved, "lr_scheduler_type": "linear"}
    context = context_of(recipe_of({"cold": stage}), run, "cold")
    whole = trainer_of(context)
    whole.train()
    torch.manual_seed(99)  # what the global state was left at must not matter
    resumed = trainer_of(context)
    resumed.train(resume_from_checkpoint=str(context.dir.checkpoints / f"checkpoint-{saved}"))
    assert resumed.state.global_step == whole.state.global_step == steps
    for (name, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    after = [[row["loss"] for row in one.state.log_history if "loss" in row][saved:] for one in (whole, resumed)]
    assert after[0] == after[1] and len(after[0]) == steps - saved


def test_packed_samples_cost_what_they_cost_alone(run: RunDir) -> None:
    train = TRAIN | {"max_length": 96}
    stages = {
        "packed": sft({"data": "problems"}, packing=True, train=train),
        "plain": sft({"data": "problems"}, train=train),
    }
    recipe = recipe_of(stages)
    losses = {}
    for name in stages:
        context = context_of(recipe, run, name)
        build(context)
        trainer = trainer_of(context)
        dataset = trainer.train_dataset
        if name == "packed":
            assert len(dataset) < 30 and max(map(sum, dataset["seq_lengths"])) <= 96
        batch = trainer.data_collator([dataset[place] for place in range(len(dataset))])
        trainer.model.train()  # losses are means over supervised tokens, of the same tokens in both
        losses[name] = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert losses["packed"] == pytest.approx(losses["plain"], rel=1e-5)


def test_a_trainers_refusal_is_told_with_its_place(run: RunDir) -> None:
    stage = sft({"data": "problems"}, train=TRAIN | {"lr_scheduler_type": "no_such_schedule"})
    context = context_of(recipe_of({"cold": stage}), run, "cold")
    build(context)
    with pytest.raises(PosttrainError, match=r"stages\.cold\.train: SFTConfig refuses"):
        trainer_of(context)


# --- what a recipe cannot ask for ------------------------------------------------------------------------------------

THINKING = {"data": "problems", "mode": "thinking"}
PLAIN = {"data": "problems", "mode": "non_thinking"}


def sampled(**more: Any) -> dict[str, Any]:
    return {"rejection_sampling": {"queries": "problems", "samples": 1, **more}}


@pytest.mark.parametrize(
    ("stage", "family", "kind", "expected"),
    [
        (sft(THINKING), "qwen3", "base", []),
        (sft(THINKING, PLAIN, fusion={}), "qwen3", "thinking", []),
        (sft(THINKING, PLAIN), "qwen3", "instruct", []),
        (sft(THINKING), "qwen2_5", "instruct", [(("samples", 0), "thinking samples")]),
        (sft(PLAIN), "qwen3_thinking_2507", "thinking", [(("samples", 0), "no such mode"), (("samples",), "alone")]),
        (
            sft(THINKING, PLAIN, fusion={}),
            "qwen2_5",
            "instruct",
            [(("samples", 0), ""), (("fusion",), "no mode flags")],
        ),
        (sft(THINKING, fusion={}), "qwen3", "thinking", [(("fusion",), "without non-thinking samples")]),
        (sft({"data": "problems"}, fusion={}), "qwen3", "thinking", []),  # the rows may hold both
        (sft(PLAIN), "qwen3", "thinking", [(("samples",), "non-thinking samples alone")]),
        (
            sft(THINKING, sampled(mode="non_thinking"), fusion={}),
            "qwen3",
            "thinking",
            [(("samples", 1, "rejection_sampling", "mode"), "of kind thinking")],
        ),
        (
            sft(sampled(**{"from": "teacher"})),
            "qwen3",
            "base",
            [(("samples", 0, "rejection_sampling", "from"), "the stage has none")],
        ),
        (sft(THINKING, train={"packing": True}), "qwen3", "base", [(("train", "packing"), "own option")]),
        (
            sft(THINKING, packing=True, train={"max_length": None}),
            "qwen3",
            "base",
            [(("train", "max_length"), "length")],
        ),
    ],
)
def test_faults(stage: dict[str, Any], family: str, kind: Kind, expected: list[tuple[Any, str]]) -> None:
    recipe = recipe_of({"s": stage}, template={"family": family})
    faults = list(recipe.stages["s"].faults(recipe, kind))
    assert [fault.loc for fault in faults] == [loc for loc, _ in expected]
    for fault, (_, words) in zip(faults, expected, strict=True):
        assert words in fault.what


@pytest.mark.parametrize(
    ("stage", "start", "result"),
    [
        (sft(THINKING), "base", "thinking"),
        (sft(PLAIN), "base", "instruct"),
        (sft(THINKING, PLAIN), "base", "hybrid"),
        (sft({"data": "problems"}), "instruct", "instruct"),
        (sft(THINKING), "instruct", "thinking"),
        (sft(sampled(), PLAIN, fusion={}), "thinking", "hybrid"),
        (sft(THINKING), "hybrid", "hybrid"),
    ],
)
def test_the_kind_of_the_result(stage: dict[str, Any], start: Kind, result: Kind) -> None:
    assert recipe_of({"s": stage}).stages["s"].result_kind(start) == result


def test_references_are_named_with_their_place() -> None:
    asked = {"queries": {"not_solved_without_thinking": {"model": "cold"}}}
    stage = recipe_of({"s": sft(THINKING, sampled(), {"rejection_sampling": FROM_LEARN}, filters=asked)}).stages["s"]
    assert stage.data_references() == [
        (("samples", 0, "data"), "problems"),
        (("samples", 1, "rejection_sampling", "queries"), "problems"),
    ]
    assert stage.stage_references() == [
        (("samples", 2, "rejection_sampling", "queries_of"), "learn"),
        (("samples", 2, "rejection_sampling", "from"), "learn"),
        (("filters", "queries", "not_solved_without_thinking", "model"), "cold"),
    ]
