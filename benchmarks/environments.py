"""The share of multi-turn rollouts' time that environments take: every game in every difficulty, in one batch.

The model is a small untrained Qwen3, which answers in few and cheap tokens: a real one makes the share smaller. It says
nothing that could be played, so each of its messages is handed to the game as the move that the reference player makes
there: the games do their whole work, on one thread beside the model. Target: 2 % of the rollouts' time at most.

    python benchmarks/environments.py [--instances 4] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from posttrain.evaluation.play import Episode, Limits, TokenSpeaker, play
from posttrain.model.generation import Generator, Prompt
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.schema import ModelSpec, TrainedTokenizer
from posttrain.rl.environments import ENVIRONMENTS
from posttrain.rl.environments.task import GameEnvironment, MtrBench, drawn
from posttrain.tasks.environment import Reply
from posttrain.templates.families import Sampling, get_family
from posttrain.templates.parsed import ParsedMessage

FAMILY = get_family("qwen3_instruct_2507")
TARGET = 0.02
TURN_TOKENS = 64  # about 10 are said: a short move, where a model that thinks says hundreds


class ReferencePlays(GameEnvironment):
    """A game in which the reference player's move is made, whatever the model says. Its own time is not counted."""

    thinking = 0.0

    def reset(self, row: Mapping[str, Any]) -> str:
        self._told = super().reset(row)
        self._player = type(self.monitor.game).reference()
        return self._told

    def step(self, message: ParsedMessage) -> Reply:
        start = time.perf_counter()
        content = f"\\boxed{{{self._player(self._told)}}}"
        self.thinking += time.perf_counter() - start
        reply = self.monitor.step(content, message.content)
        self._told = reply.text
        return reply


def generator(folder: Path, texts: list[str]) -> Generator:
    """A model of about 0.2M parameters that ends its turns after TURN_TOKENS at the latest."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1}
    sizes |= {"head_dim": 32, "intermediate_size": 288, "max_position_embeddings": 8192}
    tokenizer = TrainedTokenizer(train_on=["text"], vocab_size=500)
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=sizes, tokenizer=tokenizer)
    build_policy(spec, FAMILY, folder, seed=1, texts=texts)
    model, tokens = load_model(folder), load_tokenizer(folder)
    bias = torch.nn.Linear(*reversed(model.lm_head.weight.shape))
    bias.weight = model.lm_head.weight
    bias.bias = torch.nn.Parameter(torch.zeros(len(bias.weight)))
    bias.bias.data[tokens.convert_tokens_to_ids(FAMILY.message_end)] = 4.0
    model.lm_head = bias
    sampling = {"non_thinking": Sampling(temperature=1.0)}
    return Generator(model, tokens, FAMILY, max_new_tokens=TURN_TOKENS, batch_size=512, sampling=sampling)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--instances", type=int, default=4, help="of each game in each difficulty")
    options.add_argument("--results", type=Path)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    rows = list(MtrBench("all").queries(arguments.instances * 3 * len(ENVIRONMENTS), 0))
    with tempfile.TemporaryDirectory() as folder:
        speak = TokenSpeaker(generator(Path(folder), [row["prompt"][0]["content"] for row in rows[:200]]), Limits())
    drawn.cache_clear()  # making the queries drew the same instances
    start = time.perf_counter()
    episodes = [Episode.begin(ReferencePlays(), row, Prompt(row["prompt"])) for row in rows]
    play(episodes, speak, seed=1)
    seconds = time.perf_counter() - start
    by_game: defaultdict[str, list[float]] = defaultdict(list)
    for row, episode in zip(rows, episodes, strict=True):
        thinking = episode.environment.thinking if isinstance(episode.environment, ReferencePlays) else 0.0
        by_game[row["task"]].append((episode.seconds - thinking) / max(1, episode.outcome.turns))
        seconds -= thinking
    inside = sum(episode.seconds for episode in episodes) - sum(e.environment.thinking for e in episodes)  # type: ignore[attr-defined]
    for name, each in sorted(by_game.items(), key=lambda item: -sum(item[1])):
        print(f"{name:40} {1e3 * sum(each) / len(each):8.3f} ms a turn")
    turns = sum(episode.outcome.turns for episode in episodes)
    print(f"{len(rows)} episodes, {turns} turns, {seconds:.1f} s, of which {inside:.2f} s in environments")
    share = inside / seconds
    result = {"name": "environments", "ours": round(share, 5), "theirs": None, "unit": "share of rollout time"}
    result |= {"ratio": None, "target": TARGET, "met": share <= TARGET}
    if arguments.results:
        arguments.results.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
