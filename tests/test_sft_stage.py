"""The data of the SFT stage: tokens, modes, mixture, reserved rows, flags, what is dropped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir, read_json
from posttrain.model.policy import load_tokenizer
from posttrain.templates.render import last_flag
from tests.sft_stage import DATA, QWEN3, TRAIN, build, context_of, lines, parquet, prepared, recipe_of, run, sft

__all__ = ["prepared", "run"]


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
    cut = {"queries": "problems", "from": "base", "samples": 1, "keep": 1, "mode": "thinking", "max_new_tokens": 2}
    with pytest.raises(PosttrainError, match=r"usable dropped(.|\n)*truncated(.|\n)*raise `max_new_tokens`"):
        build(context_of(recipe_of({"cut": sft({"rejection_sampling": cut})}), run, "cut"))
    with pytest.raises(PosttrainError, match="no sample is in mode thinking"):
        build(
            context_of(
                recipe_of({"fusion": sft({"data": "problems", "mode": "non_thinking"}, fusion={})}), run, "fusion"
            )
        )
