"""LoRA over a stage's end: merged into the weights, or continued by the next stage; equal either way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import posttrain

RECIPE = """\
name: adapters
model:
  architecture: Qwen3ForCausalLM
  config: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 32,
    intermediate_size: 64, max_position_embeddings: 128, tie_word_embeddings: true}}
  tokenizer: {{train_on: [problems], vocab_size: 300}}
  adapter: {{lora: {{r: 4, lora_alpha: 8, target_modules: all-linear}}, at_boundary: {boundary}}}
data:
  problems: {{task: arithmetic, size: 80, options: {{steps: [1, 1]}}, reserve: 4, decontaminate: key}}
evaluation: {{data: [problems], max_new_tokens: 4, think_follow: {{dialogues: 0}}}}
engine: {{cpu: true, threads: 1}}
stages:
  first: {{kind: sft, samples: [{{data: problems}}], train: {{max_steps: 4, learning_rate: 1e-2}}}}
  second: {{kind: sft, samples: [{{data: problems}}], train: {{max_steps: 2, learning_rate: {rate}}}}}
"""


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("boundary", ["merge", "continue"])
def test_a_second_stage_without_learning_leaves_the_first_ones_model(boundary: str, tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(boundary=boundary, rate="0.0"))
    done = posttrain("run", recipe, "--output", run)
    assert done.returncode == 0, done.stderr
    assert "first: adapter merged, logits differ by" in done.stderr
    base, first, second = (weights(run / place) for place in ("base", "stages/first/model", "stages/second/model"))
    assert base.keys() == first.keys() == second.keys()
    assert any(not torch.equal(base[name], first[name]) for name in base)
    # At a learning rate of 0 the second stage adds nothing: merged again, or taken up and merged again, it is the same.
    for name in base:
        torch.testing.assert_close(second[name], first[name], rtol=1e-5, atol=1e-6)
    kept = run / "stages/first/adapter/manifest.json"
    assert kept.exists() == (boundary == "continue")
    if boundary == "continue":
        ends = [json.loads((run / f"stages/{name}/adapter/manifest.json").read_text()) for name in ("first", "second")]
        assert ends[0]["base"] == ends[1]["base"] == "base"  # below the run, which may be moved between its stages


def test_a_continued_adapter_goes_on_from_where_it_was(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(boundary="continue", rate="1e-2"))
    gate = ["--set", "stages.first.require={thinking.accuracy: '>= 1'}"]
    done = posttrain("run", recipe, "--output", tmp_path / "begun", *gate)
    assert done.returncode == 3, done.stderr
    (tmp_path / "begun").rename(run)
    done = posttrain("run", recipe, "--output", run)
    assert done.returncode == 0, done.stderr
    assert "first: finished already" in done.stderr
    file = "adapter/adapter_model.safetensors"
    first, second = (load_file(run / "stages" / name / file) for name in ("first", "second"))
    far = sum((second[name] - first[name]).norm() for name in first)
    size = sum(tensor.norm() for tensor in first.values())
    # Two steps move it a little; a fresh adapter (B = 0, A drawn anew) would be as far away as its own size.
    assert 0 < far < 0.5 * size
