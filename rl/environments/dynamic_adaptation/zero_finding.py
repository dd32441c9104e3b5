"""ZeroFinding: the k-th zero of a hidden row of bits, by sums; what is found becomes a one (Codeforces 1520F)."""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    numbers_in,
    question_or_answer,
    setting,
    won,
)


class ZeroFinding(Rounds[tuple[int, int]]):
    """`sizes`: bits, zeros to find."""

    name = "ZeroFinding"
    category: ClassVar[Category] = "dynamic_adaptation"
    sizes: ClassVar[dict[Difficulty, tuple[int, int]]] = {"easy": (6, 1), "medium": (10, 2), "hard": (16, 3)}

    def set_up(self) -> None:
        count, self.to_find = self.size
        zeros = self.chance.randint(self.to_find, max(self.to_find, count // 2))
        self.hidden = self.chance.sample([0] * zeros + [1] * (count - zeros), count)
        self.rank = self.chance.randint(1, zeros)

    def rules(self) -> str:
        return (
            "ZeroFinding. There is a hidden row of zeros and ones. Find its k-th zero from the left.\n"
            "? l r gives the sum of the bits l to r.\n"
            "! i says that the k-th zero is bit i. If it is, that bit becomes a one, and the next k is given, until"
            " enough zeros are found. If not, you have lost.\n"
            f"bits are 1 to n, n = {len(self.hidden)}; zeros to find = {self.to_find}\nk = {self.rank}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        places = numbers(rest, 2 if asks else 1, low=1, high=len(self.hidden))
        if not asks:
            return self._answer(places[0])
        left, right = places
        if left > right:
            raise Forbidden("l may not be greater than r")
        return Reply(str(sum(self.hidden[left - 1 : right])))

    def _answer(self, place: int) -> Reply:
        zeros = [at for at, bit in enumerate(self.hidden, 1) if not bit]
        if zeros[self.rank - 1] != place:
            return lost("Wrong.")
        self.to_find -= 1
        if not self.to_find:
            return won("Right, all found.")
        self.hidden[place - 1] = 1
        self.rank = self.chance.randint(1, len(zeros) - 1)
        return Reply(f"Right. k = {self.rank}")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return f"! {rng.randint(1, len(self.hidden))}"
        return "? {} {}".format(*sorted(rng.choices(range(1, len(self.hidden) + 1), k=2)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """The k-th zero is at the first place up to which there are k zeros: halving, with what was asked kept in mind."""
    told = setting(rules)
    n, rank = int(told["n"]), int(told["k"])
    up_to = {0: 0}  # zeros up to a place
    while True:
        low = max(place for place, zeros in up_to.items() if zeros < rank)
        high = min((place for place, zeros in up_to.items() if zeros >= rank), default=n)
        if high - low > 1:
            middle = (low + high) // 2
            up_to[middle] = middle - int((yield f"? 1 {middle}"))
            continue
        said = yield f"! {high}"
        up_to = {place: zeros - (place >= high) for place, zeros in up_to.items()}
        rank = numbers_in(said)[0]
