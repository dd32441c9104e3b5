"""XORBreaking: a number is broken in two whose XOR it is, one of these in two, and so on (Codeforces 1934D2)."""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    different,
    lost,
    numbers,
    numbers_in,
    setting,
    won,
)


class XORBreaking(Rounds[tuple[int, int]]):
    """`sizes`: bits of the number, and how many of them are set; with an even number of these the first player wins."""

    name = "XORBreaking"
    category: ClassVar[Category] = "strategic_gaming"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 10}
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (6, 4), "medium": (9, 6), "hard": (13, 10)}

    def set_up(self) -> None:
        bits, ones = self.size
        self.start = 2 ** (bits - 1) + sum(2**bit for bit in self.chance.sample(range(bits - 1), ones - 1))
        self.offered = [self.start]

    def rules(self) -> str:
        return (
            "XORBreaking. A number is broken into two that are positive and less than it, and whose XOR it is."
            " You break"
            " x. I break one of the two that you make, you one of the two that I make, and so on. Who cannot loses.\n"
            "a b breaks a xor b into a and b. You are told my two numbers.\n"
            f"x = {self.start}"
        )

    def play(self, text: str) -> Reply:
        a, b = different(numbers(text, 2, low=1, high=self.start))
        if a ^ b not in self.offered:
            raise Forbidden(f"a xor b has to be {' or '.join(map(str, self.offered))}")
        if max(a, b) >= a ^ b:
            raise Forbidden("both have to be less than their xor")
        answer = best_break([a, b], self.chance)
        if answer is None:
            return won("I cannot break either.")
        self.offered = list(answer)
        said = "{} {}".format(*answer)
        return Reply(said) if any(can_break(number) for number in answer) else lost(said)

    def random_move(self, rng: random.Random) -> str:
        number = rng.choice([number for number in self.offered if can_break(number)])
        while True:
            a = rng.randrange(1, number)
            if a ^ number < number:
                return f"{a} {a ^ number}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def can_break(number: int) -> bool:
    """All but powers of two: the part with the top bit must lack another one, and the rest is below it."""
    return number.bit_count() > 1


def best_break(offered: list[int], chance: random.Random) -> tuple[int, int] | None:
    """A break into two numbers with an odd count of ones, where that can be had; else one at random.

    A number with an odd count of ones breaks into one such and one with an even count, and that into two odd ones:
    who has an even count to break wins.
    """
    breakable = [number for number in offered if can_break(number)]
    if not breakable:
        return None
    number = min(breakable, key=lambda number: (number.bit_count() % 2, -number.bit_count()))
    top = 1 << number.bit_length() - 1
    if number.bit_count() % 2 == 0:
        return top, number ^ top
    second = 1 << (number ^ top).bit_length() - 1
    low = chance.randrange(second)
    return top | low, number ^ (top | low)


def _play(rules: str) -> Play:
    """Of two numbers that the other makes, one has an even count of ones: its top bit is broken off."""
    offered = [int(setting(rules)["x"])]
    while True:
        number = next(number for number in offered if number.bit_count() % 2 == 0)
        top = 1 << number.bit_length() - 1
        offered = numbers_in((yield f"{top} {number ^ top}"))
