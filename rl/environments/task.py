r"""The games as tasks: `mtr_bench:NAME`, one game; `mtr_bench:CLASS`, the ten of a class; `mtr_bench:all`."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.environments import ENVIRONMENTS, game_class
from posttrain.rl.environments.game import CATEGORIES, DIFFICULTIES, Difficulty, Game
from posttrain.rl.environments.monitor import Monitor
from posttrain.tasks.answers import boxes
from posttrain.tasks.environment import Outcome, Reply
from posttrain.tasks.task import Query, derive_seed, make_query, text_key
from posttrain.templates.parsed import ParsedMessage

PLAYERS = ("reference", "random")


class GameEnvironment:
    """A game behind its monitor, as whoever plays takes it."""

    def __init__(self) -> None:
        self.monitor: Monitor

    def reset(self, row: Mapping[str, Any]) -> str:
        self.monitor = monitor_of(row)
        return self.monitor.opening()

    def step(self, message: ParsedMessage) -> Reply:
        return self.monitor.step(message.content, message.reasoning or "")

    @property
    def outcome(self) -> Outcome:
        return self.monitor.outcome


def monitor_of(row: Mapping[str, Any]) -> Monitor:
    """A fresh monitor of a row's game."""
    entry = json.loads(row["entry"])
    instance = entry["game"], entry["seed"], entry["difficulty"]
    game = deepcopy(drawn(*instance)) if game_class(entry["game"]).costly else _draw(*instance)
    return Monitor(game, entry["max_turns"])


def _draw(game: str, seed: int, difficulty: Difficulty) -> Game:
    return game_class(game)(seed, difficulty)


drawn = lru_cache(maxsize=256)(_draw)  # a group's rollouts all begin with the same instance


class MtrBench:
    """A game, or several, as rows of queries that are played.

    Options of `queries`:
        difficulty: easy, medium or hard, or a list of them that take turns. Default: all three.
        max_turns: moves allowed, invalid ones included. Default: the game's own.
        players: makes conversations to train on in place of queries: which player plays, with weights, as
            {reference: 3, random: 1}. A random player's games are mostly lost.

    A row's `difficulty` is 1, 2 or 3. All rows of a game have the same rules: `decontaminate: key` is the way to keep
    training apart from evaluation. A key stands for how an instance begins, so that no reserved one begins as one that
    is trained on; where a game has too few starts for that (`shared_starts` tells), for its seed.
    """

    rewards: Mapping[str, float] = {"environment": 1.0}

    def __init__(self, member: str) -> None:
        self.name = f"mtr_bench:{member}"
        if member == "all":
            self.games = sorted(ENVIRONMENTS)
        elif member in CATEGORIES:
            self.games = sorted(name for name in ENVIRONMENTS if game_class(name).category == member)
        else:
            self.games = [game_class(member).name]

    def environment(self) -> GameEnvironment:
        return GameEnvironment()

    def queries(
        self,
        size: int,
        seed: int,
        *,
        difficulty: str | Sequence[str] = DIFFICULTIES,
        max_turns: int | None = None,
        players: Mapping[str, float] | None = None,
    ) -> Iterator[Query]:
        levels = [difficulty] if isinstance(difficulty, str) else list(difficulty)
        if problems := list(_option_faults(levels, max_turns, players)):
            raise PosttrainError(Problem(what, f"{self.name}: options") for what in problems)
        rows = (self._query(number, seed, levels, max_turns) for number in range(size))
        if players is None:
            return rows
        return _conversations(rows, dict(players), random.Random(derive_seed(self.name, "players", seed)))

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        """The game's score when every box of one message is a move, in order."""
        monitor = monitor_of(query)
        for move in boxes(content):
            monitor.step(f"\\boxed{{{move}}}")
        return monitor.outcome.score

    def gold(self, query: Mapping[str, Any]) -> str:
        """The reference player's moves, a box each."""
        moves = transcript(query, "reference", random.Random(0))[0]
        return "\n".join(message["content"] for message in moves if message["role"] == "assistant")

    def problem(self, answer: str) -> str | None:
        """Why a row of a file without an `entry` cannot be scored."""
        return "a game needs an `entry`, which only queries made by the task have"

    def shared_starts(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Which of these rows may begin as other instances do, in words: their games have too few starts."""
        kinds = Counter((entry["game"], entry["difficulty"]) for entry in (json.loads(row["entry"]) for row in rows))
        return [
            f"{game}, {level}, has {starts} different starts: {count} instances differ from others by later draws alone"
            for (game, level), count in sorted(kinds.items())
            if (starts := game_class(game).starts.get(level)) is not None
        ]

    def _query(self, number: int, seed: int, levels: Sequence[str], max_turns: int | None) -> Query:
        game = self.games[number % len(self.games)]
        round_, turn = divmod(number // len(self.games), len(levels))
        level = levels[turn]
        instance = derive_seed(game, level, seed, round_)  # the same, whatever other games and levels are asked for
        entry = {"game": game, "seed": instance, "difficulty": level, "max_turns": max_turns}
        row = {"entry": json.dumps(entry)}
        monitor = monitor_of(row)
        start = str(instance) if level in monitor.game.starts else text_key(monitor.game.beginning())
        return make_query(
            id=f"{game}-{level}-{seed}-{round_}",
            prompt=monitor.opening(),
            answer="",
            task=f"mtr_bench:{game}",
            domain=game_class(game).category,
            difficulty=1 + DIFFICULTIES.index(level),
            key=f"{game}/{level}/{start}",
            **row,
        )


def _option_faults(levels: Sequence[Any], max_turns: Any, players: Any) -> Iterator[str]:
    for level in levels:
        if level not in DIFFICULTIES:
            yield f"difficulty is {', '.join(DIFFICULTIES)} or a list of these, not {level!r}"
    if not levels:
        yield "difficulty names none"
    if max_turns is not None and not (type(max_turns) is int and max_turns > 0):
        yield f"max_turns is a whole number above 0, not {max_turns!r}"
    if players is not None:
        sound = isinstance(players, Mapping) and all(
            key in PLAYERS and isinstance(weight, int | float) and weight >= 0 for key, weight in players.items()
        )
        if not sound or not sum(players.values()):
            yield f"players are weights of {' and '.join(PLAYERS)}, not {players!r}"


def _conversations(rows: Iterator[Query], players: Mapping[str, float], draw: random.Random) -> Iterator[Query]:
    for row in rows:
        player = draw.choices(list(players), list(players.values()))[0]
        messages, outcome = transcript(row, player, draw)
        yield {
            **{key: row[key] for key in ("id", "domain", "difficulty", "key", "entry")},
            "messages": messages,
            "tools": None,
            "answer": f"{outcome.score:g}",
            "task": "",  # nothing scores a finished game
        }


def transcript(row: Mapping[str, Any], player: str, draw: random.Random) -> tuple[list[dict[str, str]], Outcome]:
    """One game played by a reference or random player, as messages that end with the player's last."""
    monitor = monitor_of(row)
    game: Game = monitor.game
    choose = type(game).reference() if player == "reference" else lambda told: game.random_move(draw)
    told = monitor.opening()
    messages = [{"role": "user", "content": told}]
    while True:
        messages.append({"role": "assistant", "content": f"\\boxed{{{choose(told)}}}"})
        reply = monitor.step(messages[-1]["content"])
        if reply.done:
            return messages, monitor.outcome
        told = reply.text
        messages.append({"role": "user", "content": told})
