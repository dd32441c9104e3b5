r"""What a game is: rules, moves and replies, and two players for comparison. Pure: no engine is imported.

A game knows nothing of models. It is given the text inside a player's `\boxed{...}` and replies. Finding the move in
what a model wrote, counting turns and ending the game is the monitor's part (`monitor.py`).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, get_args

from posttrain.tasks.environment import Reply

__all__ = ["CATEGORIES", "DIFFICULTIES", "FEW_STARTS", "Category", "Difficulty", "Game", "Player", "Reply"]

Category = Literal["information_probing", "dynamic_adaptation", "state_operation", "strategic_gaming"]
"""The four classes of MTR-Bench."""
Difficulty = Literal["easy", "medium", "hard"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)

FEW_STARTS = 50
"""With fewer ways to begin, a game's instances are told apart by their seeds: by what is drawn later."""

Player = Callable[[str], str]
"""One game's player: given the rules first and every reply after that, the text of the next move (without the box)."""


class Game(ABC):
    """One instance of a game.

    Attributes:
        name: as in the registry.
        category: its class in MTR-Bench.
        max_turns: moves allowed, invalid ones included.
        costly: to draw an instance takes longer than to copy one.
        starts: how many different starts there are, where they are too few (`FEW_STARTS`) for some to be held out.
    """

    name: ClassVar[str]
    category: ClassVar[Category]
    max_turns: ClassVar[int] = 15
    costly: ClassVar[bool] = False
    starts: ClassVar[Mapping[Difficulty, int]] = {}

    def __init__(self, seed: int, difficulty: Difficulty) -> None:
        """The same arguments give the same instance on every machine: draw from `random.Random` of a derived seed."""
        self.seed, self.difficulty = seed, difficulty

    def beginning(self) -> str:
        """Of a fresh instance: a text that is the same for those that begin alike, in what is hidden too."""
        return str(self.seed)

    @abstractmethod
    def rules(self) -> str:
        """The opening message: the rules, this instance's parameters, and how a move is written."""

    @abstractmethod
    def move(self, text: str) -> Reply:
        """Make one move. Unreadable text, or a move that is not allowed: `valid=False`, and the state is unchanged."""

    @abstractmethod
    def random_move(self, rng: random.Random) -> str:
        """A well-formed move, drawn without thought."""

    @classmethod
    @abstractmethod
    def reference(cls) -> Player:
        """A fresh player that goes by rules and replies alone (it never sees the state) and wins what is winnable."""
