"""An untrained model that ends its turns, for tests of what plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.model.generation import Completion, Generator, Prompt
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.schema import ModelSpec, TrainedTokenizer
from posttrain.tasks.arithmetic import corpus
from posttrain.templates.families import Sampling, get_family

QWEN3 = get_family("qwen3")
SAMPLED = {mode: Sampling(temperature=1.0) for mode in QWEN3.modes}


def build(folder: Path, texts: Sequence[str] = (), vocabulary: int = 330) -> Path:
    """A random model under `folder`, its tokenizer trained on these texts (default: sums)."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
    }
    tokenizer = TrainedTokenizer(train_on=["text"], vocab_size=vocabulary)
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=sizes, tokenizer=tokenizer)
    build_policy(spec, QWEN3, folder, seed=1, texts=list(texts or corpus(300, 0)))
    return folder


def talkative(policy: Path) -> Any:
    """The model with a bias towards ending its turn: untrained, it ends about one in four tokens."""
    model = load_model(policy)
    head = torch.nn.Linear(*reversed(model.lm_head.weight.shape))
    head.weight = model.lm_head.weight
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    end = load_tokenizer(policy).convert_tokens_to_ids(QWEN3.message_end)
    head.bias.data[end] = 5.0
    model.lm_head = head
    return model


def generator(policy: Path) -> Generator:
    return Generator(talkative(policy), load_tokenizer(policy), QWEN3, max_new_tokens=8, sampling=SAMPLED)


class Served:
    """The model as a server would answer for it: conversations in, completions out, no tokens to go on from."""

    def __init__(self, policy: Path) -> None:
        self._generate = generator(policy)
        self.asked: list[Prompt] = []

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        self.asked += prompts
        return self._generate(prompts, seed=seed, progress=progress)
