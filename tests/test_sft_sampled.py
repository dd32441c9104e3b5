"""SFT data sampled from a model, and a build that a kill interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, seal
from posttrain.model.policy import load_model, load_tokenizer, save_policy
from posttrain.recipe.stage import StageContext
from posttrain.sft.completions import Chunk
from tests.sft_stage import FROM_LEARN, QWEN3, build, context_of, lines, prepared, recipe_of, run, sft

__all__ = ["prepared", "run"]


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
