"""BitCompare: two places of a hidden permutation whose XOR is greatest, by comparing ORs (after a Codeforces game)."""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
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


class BitCompare(Rounds[int]):
    """`sizes`: how long the permutation is."""

    name = "BitCompare"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 5, "medium": 6, "hard": 7}

    def set_up(self) -> None:
        self.hidden = self.chance.sample(range(self.size), self.size)

    def rules(self) -> str:
        return (
            "BitCompare. The numbers 0 to n - 1 lie hidden at the places 1 to n, in some order.\n"
            "? a b c d compares (A or B) with (C or D), bit by bit, where A is the number at place a and so on: <, ="
            " or >. Places may be equal.\n"
            "! a b ends the game: A xor B is the greatest there is.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        places = numbers(rest, 4 if asks else 2, low=1, high=self.size)
        if asks:
            a, b, c, d = (self.hidden[place - 1] for place in places)
            return Reply("<" if a | b < c | d else ">" if a | b > c | d else "=")
        i, j = different(places)
        found = self.hidden[i - 1] ^ self.hidden[j - 1]
        return won("Right.") if found == max(a ^ b for a in self.hidden for b in self.hidden) else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return "! {} {}".format(*rng.sample(range(1, self.size + 1), 2))
        return "? " + " ".join(str(rng.randint(1, self.size)) for _ in range(4))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """The greatest number has the top bit; its best partner has the bits that it lacks, and no other.

    So the partner is the least of those whose OR with the greatest is greatest.
    """
    n = int(setting(rules)["n"])
    top = 1
    for i in range(2, n + 1):
        if (yield f"? {i} {i} {top} {top}") == ">":
            top = i
    first, *others = [i for i in range(1, n + 1) if i != top]
    partners = [first]
    for i in others:
        said = yield f"? {top} {i} {top} {partners[0]}"
        if said != "<":
            partners = [i] if said == ">" else [*partners, i]
    least = partners[0]
    for i in partners[1:]:
        if (yield f"? {i} {i} {least} {least}") == "<":
            least = i
    yield f"! {top} {least}"
