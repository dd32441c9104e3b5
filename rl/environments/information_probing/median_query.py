"""MedianQuery: where the two middle values of a hidden permutation lie, by those of parts of it (Codeforces)."""

from __future__ import annotations

import random
from functools import cache
from itertools import combinations, permutations
from typing import ClassVar, NamedTuple

from posttrain.rl.environments.candidates import pin_down
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


class MedianQuery(Rounds[int]):
    """`sizes`: how long the permutation is; even."""

    name = "MedianQuery"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 6, "medium": 8, "hard": 10}

    def set_up(self) -> None:
        self.hidden = self.chance.sample(range(1, self.size + 1), self.size)

    def rules(self) -> str:
        return (
            "MedianQuery. The numbers 1 to n lie hidden at the places 1 to n, in some order. Find the places of the"
            " two middle ones, n / 2 and n / 2 + 1.\n"
            "? a b c d ... gives the two middle values at these places, an even number of them, at least 4.\n"
            "! a b ends the game: they lie there, in either order.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        places = different(numbers(rest, None if asks else 2, low=1, high=self.size))
        values = sorted(self.hidden[place - 1] for place in places)
        half = self.size // 2
        if not asks:
            return won("Right.") if values == [half, half + 1] else lost("Wrong.")
        if len(values) < 4 or len(values) % 2:
            raise Forbidden("an even number of places is expected, at least 4")
        return Reply("{} {}".format(*values[len(values) // 2 - 1 :]))

    def random_move(self, rng: random.Random) -> str:
        count = 2 if (answers := rng.random() < 0.3) else 2 * rng.randint(2, self.size // 2)
        places = rng.sample(range(1, self.size + 1), count)
        return f"{'!' if answers else '?'} {' '.join(map(str, places))}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


class Sides(NamedTuple):
    """Where the lower and the upper middle value lie, and which places have values below both."""

    lower: int
    upper: int
    below: frozenset[int]

    def middle(self, left_out: tuple[int, int]) -> tuple[bool, bool, int]:
        """What the middle values tell when two places are left out.

        Whether the lower middle value was left out, whether the upper, and how many of the lower half. Where these are
        none or two, the middle moves by one, and nothing more is told.
        """
        low_half = sum(place in self.below or place == self.lower for place in left_out)
        return (self.lower in left_out, self.upper in left_out, 1) if low_half == 1 else (False, False, low_half)


@cache
def _all_sides(n: int) -> list[Sides]:
    found = []
    for lower, upper in permutations(range(1, n + 1), 2):
        others = [place for place in range(1, n + 1) if place not in (lower, upper)]
        found += [Sides(lower, upper, frozenset(below)) for below in combinations(others, n // 2 - 1)]
    return found


def _play(rules: str) -> Play:
    """All places but two are asked for: the middle then tells which halves the two come from."""
    n = int(setting(rules)["n"])

    def read(said: str) -> tuple[bool, bool, int]:
        low, high = (int(value) - n // 2 for value in said.split())
        return (False, False, 2 if low > 0 else 0) if high - low == 1 and low != 0 else (low < 0, high > 1, 1)

    found = yield from pin_down(
        _all_sides(n),
        list(combinations(range(1, n + 1), 2)),
        Sides.middle,
        written=lambda out: "? " + " ".join(str(place) for place in range(1, n + 1) if place not in out),
        read=read,
        answer=lambda sides: frozenset((sides.lower, sides.upper)),
    )
    yield f"! {found.lower} {found.upper}"
