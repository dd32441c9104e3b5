"""Think tokens that a model lacks: added, trained under LoRA, in both ends of the network, merged and saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.model.policy import adapter_config, added_tokens, build_policy, load_model, load_tokenizer
from posttrain.recipe.schema import Adapter, ModelSpec
from posttrain.templates.families import get_family

from .conftest import posttrain

FAMILY = get_family("qwen3")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
RECIPE = """\
name: added
model:
  path: ./model
  kind: instruct
  adapter: {{lora: {{r: 4, lora_alpha: 8, target_modules: all-linear}}, at_boundary: {boundary}}}
data:
  problems: {{task: arithmetic, size: 80, options: {{steps: [1, 1]}}, reserve: 4, decontaminate: key}}
evaluation: {{data: [problems], max_new_tokens: 4, think_follow: {{dialogues: 0}}}}
engine: {{cpu: true, threads: 1}}
stages:
  first: {{kind: sft, samples: [{{data: problems, mode: thinking}}], train: {{max_steps: 3, learning_rate: 1e-2}}}}
  second:
    kind: grpo
    queries: {{from: problems}}
    rewards: {{"tests.test_added_tokens:variety": 1.0}}
    train: {{max_steps: 2, learning_rate: 1e-2, per_device_train_batch_size: 8, num_generations: 4,
      max_completion_length: 8}}
"""


def variety(query: Mapping[str, Any], rollout: Any) -> float:
    """A reward that differs between the rollouts of a model that can do nothing yet."""
    return sum(map(ord, rollout.text)) % 7 / 6


def instruct_tokenizer(folder: Path) -> Any:
    """A tokenizer with ChatML's markers and without think tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.save_pretrained(str(folder))
    return made


def instruct_model(folder: Path, *, tied: bool) -> None:
    """A Llama that never heard of thinking, as a directory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = len(instruct_tokenizer(folder))
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **shape, tie_word_embeddings=tied)).save_pretrained(str(folder))


@pytest.mark.parametrize(("tied", "boundary"), [(True, "continue"), (False, "merge")])
def test_rows_of_added_tokens_are_trained_and_saved(tied: bool, boundary: str, tmp_path: Path) -> None:
    """By the SFT and the RL trainer, at the input and at the output; no other row moves."""
    instruct_model(tmp_path / "model", tied=tied)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(boundary=boundary))
    run = tmp_path / "run"
    done = posttrain("run", tmp_path / "recipe.yaml", "--output", run)
    assert done.returncode == 0, done.stderr
    assert "added to the vocabulary: <think> </think>" in done.stderr
    assert "trained with the adapter, whole: <think> </think>" in done.stderr
    ids = load_tokenizer(run / "base").convert_tokens_to_ids(["<think>", "</think>"])
    before, first, second = (
        load_file(run / place / "model.safetensors") for place in ("base", "stages/first/model", "stages/second/model")
    )
    assert before.keys() == first.keys() == second.keys()
    assert ("lm_head.weight" in before) != tied
    inputs, outputs = "model.embed_tokens.weight", "model.embed_tokens.weight" if tied else "lm_head.weight"
    # A rollout need not have the tokens in it, but every one of its own is chosen against them.
    for name, start, end in ((inputs, before, first), (outputs, before, first), (outputs, first, second)):
        moved = (end[name] != start[name]).any(dim=1)
        assert moved.nonzero()[:, 0].tolist() == ids
    assert added_tokens(run / "stages/second/model") == ["<think>", "</think>"]
    # What was saved is the tokens' row at both ends: the model is loaded as anyone would.
    model = load_model(run / "stages/second/model")
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_where_the_recipe_trains_embeddings_itself_it_is_left_to_it(tied: bool, tmp_path: Path) -> None:
    instruct_model(tmp_path / "model", tied=tied)
    spec = ModelSpec(path=str(tmp_path / "model"))
    build_policy(spec, FAMILY, tmp_path / "base", seed=0)
    model, tokenizer = load_model(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    added = added_tokens(tmp_path / "base")
    ids = tokenizer.convert_tokens_to_ids(added)

    def trained(**options: Any) -> Any:
        return adapter_config(Adapter(lora={**LORA, **options}), model, tokenizer, added).trainable_token_indices

    assert trained() == {name: ids for name in ["embed_tokens"] + ([] if tied else ["lm_head"])}
    assert trained(trainable_token_indices=[3]) == [3]
    assert trained(modules_to_save=["embed_tokens"]) is None
    assert adapter_config(Adapter(lora=LORA), model, tokenizer, []).trainable_token_indices is None


def write_gguf(path: Path, vocabulary: int) -> None:
    """A Llama of one layer with random weights, as llama.cpp would write it."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    block |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes = {"token_embd": (vocabulary, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32) * 0.3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_weights_of_a_gguf_file_become_a_plain_directory(tmp_path: Path) -> None:
    """Loaded, given its think tokens, saved, and loaded again without a word of quantisation."""
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    tokenizer = instruct_tokenizer(tmp_path / "tokenizer")
    write_gguf(tmp_path / "tiny.gguf", len(tokenizer))
    spec = ModelSpec(path=str(tmp_path), gguf_file="tiny.gguf", tokenizer=str(tmp_path / "tokenizer"))
    build_policy(spec, FAMILY, tmp_path / "policy", seed=0)
    assert "quantization_config" not in json.loads((tmp_path / "policy/config.json").read_text())
    source = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="tiny.gguf").eval()
    made, ids = load_model(tmp_path / "policy"), torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits[..., : len(tokenizer)], source(ids).logits)
    assert added_tokens(tmp_path / "policy") == ["<think>", "</think>"]
    assert len(load_tokenizer(tmp_path / "policy")) == len(tokenizer) + 2
