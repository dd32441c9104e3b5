"""A hub id at a revision: weights and tokenizer both come from that revision, out of a hub's cache on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.model.policy import save_policy, train_tokenizer
from posttrain.recipe.schema import TrainedTokenizer
from posttrain.templates.families import get_family

SHAPE = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "vocab_size": 512,
}
BUILD = """
import sys
from pathlib import Path
from posttrain.model.policy import build_policy
from posttrain.recipe.schema import ModelSpec
from posttrain.templates.families import get_family
spec = ModelSpec.model_validate({"path": "owner/tiny", "revision": sys.argv[1]})
build_policy(spec, get_family("qwen3"), Path(sys.argv[2]), seed=0)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's cache with two revisions of one model, of different width and with different tokenizers."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    family = get_family("qwen3")
    for name, commit, width, size in (("main", "a" * 40, 32, 300), ("v2", "b" * 40, 48, 340)):
        (repository / "refs" / name).write_text(commit)
        tokenizer = train_tokenizer(
            TrainedTokenizer(train_on=["x"], vocab_size=size), ["one and two " * 9, name], family
        )
        model = Qwen3ForCausalLM(Qwen3Config(hidden_size=width, **SHAPE))
        save_policy(model, tokenizer, family, repository / "snapshots" / commit, card={"origin": name})
    return cache


@pytest.mark.parametrize(("revision", "width"), [("main", 32), ("v2", 48)])
def test_weights_and_tokenizer_come_from_the_revision(hub: Path, tmp_path: Path, revision: str, width: int) -> None:
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", BUILD, revision, str(tmp_path)], check=True, env=environment)
    commit = (hub / "models--owner--tiny" / "refs" / revision).read_text()
    there = hub / "models--owner--tiny" / "snapshots" / commit
    vocabulary = [json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] for folder in (tmp_path, there)]
    assert vocabulary[0] == vocabulary[1]
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == width
