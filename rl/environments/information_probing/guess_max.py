"""GuessMax: a password of maxima over all places but some, by asking for the maximum of places (Codeforces 1363D)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Play,
    Rounds,
    as_player,
    different,
    lost,
    numbers,
    numbers_in,
    question_or_answer,
    setting,
    won,
)


class GuessMax(Rounds[tuple[int, int, int]]):
    """`sizes`: places, sets, greatest number. The sets share no place, and some places may be in none."""

    name = "GuessMax"
    category: ClassVar[Category] = "information_probing"
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (4, 2, 9),
        "medium": (8, 4, 20),
        "hard": (16, 8, 50),
    }

    def set_up(self) -> None:
        self.places, count, self.greatest = self.size
        self.hidden = [self.chance.randint(1, self.greatest) for _ in range(self.places)]
        order = self.chance.sample(range(1, self.places + 1), self.places)
        self.sets = [sorted(order[2 * k : 2 * k + self.chance.randint(1, 2)]) for k in range(count)]

    def _maximum(self, places: Iterable[int]) -> int:
        return max(self.hidden[place - 1] for place in places)

    def rules(self) -> str:
        sets = "; ".join(f"S{k + 1} = {' '.join(map(str, places))}" for k, places in enumerate(self.sets))
        return (
            "GuessMax. Numbers lie hidden at the places 1 to n. Number k of the password is the greatest one"
            " outside the set Sk.\n"
            "? a b ... gives the greatest number at these places.\n"
            "! p q ... ends the game: this is the password.\n"
            f"n = {self.places}; numbers are 1 to m, m = {self.greatest}\n{sets}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if asks:
            return Reply(str(self._maximum(different(numbers(rest, low=1, high=self.places)))))
        answer = numbers(rest, len(self.sets), low=1, high=self.greatest)
        password = [self._maximum(outside(places, self.places)) for places in self.sets]
        return won("Right.") if answer == password else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return "! " + " ".join(str(rng.randint(1, self.greatest)) for _ in self.sets)
        return "? " + " ".join(map(str, rng.sample(range(1, self.places + 1), rng.randint(1, self.places))))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def outside(places: Iterable[int], n: int) -> list[int]:
    return sorted(set(range(1, n + 1)) - set(places))


def _play(rules: str) -> Play:
    """The greatest number of all is the password's, but for the one set that may hold it: that set is halved out."""
    told = setting(rules)
    n = int(told["n"])
    sets = [
        numbers_in(told[name]) for name in sorted((key for key in told if key[0] == "S"), key=lambda key: int(key[1:]))
    ]
    greatest = yield "? " + " ".join(map(str, range(1, n + 1)))
    holding = list(range(len(sets)))
    while len(holding) > 1:
        half = holding[: len(holding) // 2]
        said = yield "? " + " ".join(str(place) for k in half for place in sets[k])
        holding = half if said == greatest else holding[len(half) :]
    password = [greatest] * len(sets)
    password[holding[0]] = yield "? " + " ".join(map(str, outside(sets[holding[0]], n)))
    yield "! " + " ".join(password)
