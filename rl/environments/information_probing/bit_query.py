"""BitQuery: hidden numbers, by the AND, OR and XOR of two at a time (Codeforces 1451E)."""

from __future__ import annotations

import operator
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
    question_or_answer,
    setting,
    won,
)

OPERATIONS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


class BitQuery(Rounds[tuple[int, int]]):
    """`sizes`: how many numbers, and their bits."""

    name = "BitQuery"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (3, 2), "medium": (5, 3), "hard": (8, 4)}

    def set_up(self) -> None:
        self.count, bits = self.size
        self.greatest = 2**bits - 1
        self.hidden = [self.chance.randint(0, self.greatest) for _ in range(self.count)]

    def rules(self) -> str:
        return (
            "BitQuery. Find the hidden numbers at places 1 to n.\n"
            "? and i j gives the bitwise AND of the numbers at two places; or and xor likewise.\n"
            "! a b c ... ends the game: these are all the numbers.\n"
            f"n = {self.count}; the numbers are 0 to m, m = {self.greatest}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if not asks:
            answer = numbers(rest, self.count, low=0, high=self.greatest)
            return won("Right.") if answer == self.hidden else lost("Wrong.")
        word, _, places = rest.strip().partition(" ")
        if word.lower() not in OPERATIONS:
            raise Forbidden("? is followed by and, or, xor")
        i, j = different(numbers(places, 2, low=1, high=self.count))
        return Reply(str(OPERATIONS[word.lower()](self.hidden[i - 1], self.hidden[j - 1])))

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return "! " + " ".join(str(rng.randint(0, self.greatest)) for _ in range(self.count))
        i, j = rng.sample(range(1, self.count + 1), 2)
        return f"? {rng.choice(list(OPERATIONS))} {i} {j}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """a + b = (a xor b) + 2 (a and b): three sums give the first number, its XOR with each gives the others."""
    n = int(setting(rules)["n"])
    xors = [0]
    for i in range(2, n + 1):
        xors.append(int((yield f"? xor 1 {i}")))
    sums = []
    for i, j in ((1, 2), (1, 3), (2, 3)):
        both = int((yield f"? and {i} {j}"))
        sums.append((xors[i - 1] ^ xors[j - 1]) + 2 * both)
    first = (sums[0] + sums[1] - sums[2]) // 2
    yield "! " + " ".join(str(first ^ xor) for xor in xors)
