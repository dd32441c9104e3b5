"""A game for tests of what plays games: small, and not one of the registry."""

from __future__ import annotations

import random

from posttrain.rl.environments.game import Game, Player, Reply


class Nearest(Game):
    """Find a number from 1 to 9; the move `crash` breaks the game itself."""

    name = "Nearest"
    category = "information_probing"
    max_turns = 6

    def rules(self) -> str:
        return "Find my number from 1 to 9."

    def move(self, text: str) -> Reply:
        if text == "crash":
            raise ZeroDivisionError
        guess = int(text)
        secret = random.Random(self.seed).randint(1, 9)
        if guess == secret:
            return Reply("Right.", done=True, score=1.0)
        return Reply("Higher." if guess < secret else "Lower.")

    def random_move(self, rng: random.Random) -> str:
        return str(rng.randint(1, 9))

    @classmethod
    def reference(cls) -> Player:
        low, high, last = 1, 9, 0

        def play(reply: str) -> str:
            nonlocal low, high, last
            low, high = (last + 1, high) if reply == "Higher." else (low, last - 1) if reply == "Lower." else (1, 9)
            last = (low + high) // 2
            return str(last)

        return play
