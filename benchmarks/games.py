"""Every game, played by its reference player and by one without thought.

    python benchmarks/games.py [--games 100] [--results docs/results/games.md]

Writes a table of win rates and turns, and the milliseconds of CPU that an environment takes a turn. The last line is
JSON: `ours` is the mean win rate of the reference players, `theirs` that of the players without thought.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from posttrain.rl.environments import ENVIRONMENTS, game_class
from posttrain.rl.environments.game import CATEGORIES, DIFFICULTIES, Difficulty, Game, Player
from posttrain.rl.environments.monitor import Monitor

TARGET = 0.99
HEAD = """# The games, measured

By `python benchmarks/games.py`: {games} games a difficulty. "Reference" is the player that comes with a game and goes
by rules and replies alone; "random" draws well-formed moves without thought. Turns are the reference player's, of games
won. CPU milliseconds a turn are the environment's, the making of an instance included, in games of the random player.
Figures are easy / medium / hard.
"""
COLUMNS = "| game | what is played | reference wins | random wins | turns | CPU ms a turn |\n" + "|---" * 6 + "|\n"


@dataclass
class Played:
    """Games of one kind and difficulty: win rates, mean turns of the reference, CPU seconds a turn."""

    reference: float
    random: float
    turns: float
    seconds: float


def finish(game: Game, player: Player) -> Monitor:
    monitor = Monitor(game)
    said = monitor.opening()
    while not monitor.done:
        said = monitor.step(f"\\boxed{{{player(said)}}}").text
    return monitor


def measure(kind: type[Game], difficulty: Difficulty, games: int) -> Played:
    won, turns, moving = 0, 0, 0.0
    start = time.process_time()
    for seed in range(games):
        rng, monitor = random.Random(seed), Monitor(kind(seed, difficulty))
        while not monitor.done:
            before = time.process_time()
            move = monitor.game.random_move(rng)
            moving += time.process_time() - before
            monitor.step(f"\\boxed{{{move}}}")
        won, turns = won + monitor.outcome.won, turns + monitor.outcome.turns
    spent = time.process_time() - start - moving
    references = [finish(kind(seed, difficulty), kind.reference()).outcome for seed in range(games)]
    return Played(
        reference=fmean(outcome.won for outcome in references),
        random=won / games,
        turns=fmean([outcome.turns for outcome in references if outcome.won] or [0.0]),
        seconds=spent / turns,
    )


def in_a_line(kind: type[Game]) -> str:
    """What is played: the first line of a game's file."""
    return (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0].partition(": ")[2].rstrip(".")


def row(kind: type[Game], played: list[Played]) -> str:
    def three(values: list[float], form: str) -> str:
        return " / ".join(format(value, form) for value in values)

    cells = [
        three([each.reference for each in played], ".2f"),
        three([each.random for each in played], ".2f"),
        three([each.turns for each in played], ".1f"),
        three([each.seconds * 1e3 for each in played], ".2f"),
    ]
    return f"| {kind.name} | {in_a_line(kind)} | {' | '.join(cells)} |\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--games", type=int, default=100, help="games a difficulty")
    options.add_argument("--results", type=Path, default=Path("docs/results/games.md"))
    arguments = options.parse_args()
    kinds = [game_class(name) for name in sorted(ENVIRONMENTS)]
    text, everything = HEAD.format(games=arguments.games), list[Played]()
    for category in CATEGORIES:
        text += f"\n## {category.replace('_', ' ').capitalize()}\n\n{COLUMNS}"
        for kind in (kind for kind in kinds if kind.category == category):
            played = [measure(kind, difficulty, arguments.games) for difficulty in DIFFICULTIES]
            text += row(kind, played)
            everything += played
            print(row(kind, played), end="", flush=True)
    arguments.results.write_text(text, encoding="utf-8")
    ours, theirs = (fmean(getattr(each, player) for each in everything) for player in ("reference", "random"))
    result = {
        "name": "games",
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "unit": f"win rate over {len(kinds)} games, {len(DIFFICULTIES)} difficulties, {arguments.games} instances each",
        "ratio": round(ours / max(theirs, 1e-9), 1),
        "target": TARGET,
        "met": ours >= TARGET,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
