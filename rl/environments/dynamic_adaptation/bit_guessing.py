"""BitGuessing: a hidden number, by how many bits are set after each subtraction (after a Codeforces game)."""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)


class BitGuessing(Rounds[int]):
    """`sizes`: the greatest number."""

    name = "BitGuessing"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 15}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 15, "medium": 127, "hard": 1023}

    def set_up(self) -> None:
        self.hidden = self.chance.randint(1, self.size)

    def rules(self) -> str:
        return (
            "BitGuessing. There is a hidden number x. You are told how many bits of it are set in binary.\n"
            "? a subtracts a from x and tells how many bits are set then. If a is greater than x, you have lost.\n"
            "! a ends the game: x is a now.\n"
            f"x is 1 to m, m = {self.size}; bits = {self.hidden.bit_count()}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        (number,) = numbers(rest, 1, low=1 if asks else 0, high=self.size)
        if not asks:
            return won("Right.") if number == self.hidden else lost("Wrong.")
        if number > self.hidden:
            return lost("Too much.")
        self.hidden -= number
        return Reply(str(self.hidden.bit_count()))

    def random_move(self, rng: random.Random) -> str:
        return f"{'!' if rng.random() < 0.3 else '?'} {rng.randint(1, self.size)}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """Taking 1 from a number turns its lowest set bit, 2^k, into k ones: the count tells k.

    Those k ones go with the next subtraction. After all bits but one are taken, what is left is 2^k - 1.
    """
    bits = int(setting(rules)["bits"])
    ones = 0  # left over by the last subtraction, to be taken with the next
    while True:
        said = int((yield f"? {ones + 1}"))
        bits -= 1  # of the original number, still there
        k = said - bits
        ones = 2**k - 1
        if not bits:
            yield f"! {ones}"
