"""RotaryLock: where the metal arcs of a lock's rings are, by how many lasers pass after turning a ring (Codeforces)."""

from __future__ import annotations

import random
from itertools import product
from typing import ClassVar

from posttrain.rl.environments.candidates import most_telling
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import (
    Forbidden,
    Play,
    Rounds,
    as_player,
    lost,
    numbers,
    question_or_answer,
    setting,
    won,
)

Places = tuple[int, ...]


class RotaryLock(Rounds[tuple[int, int, int]]):
    """`sizes`: rings, sections of a ring, sections of an arc. Places are those of rings 1 and up, against ring 0."""

    name = "RotaryLock"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 6}
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (2, 6, 2),
        "medium": (3, 8, 3),
        "hard": (4, 9, 3),
    }

    def set_up(self) -> None:
        rings, self.sections, self.arc = self.size
        self.hidden = tuple(self.chance.randrange(self.sections) for _ in range(rings - 1))

    def rules(self) -> str:
        return (
            "RotaryLock. Rings 0 to n - 1 of a lock have m sections each. One arc of metal on every ring covers some"
            " sections in a row. One laser shines through each section of all rings, unless metal is in the way.\n"
            "? r d turns ring r by d sections (negative: backwards) and tells how many lasers pass then.\n"
            "! a b ... ends the game: rings 1, 2, ... are so many sections ahead of ring 0 by now, each 0 to m - 1.\n"
            f"n = {self.size[0]}; m = {self.sections}; sections of an arc: a = {self.arc}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if not asks:
            answer = numbers(rest, len(self.hidden), low=0, high=self.sections - 1)
            return won("Right.") if tuple(answer) == self.hidden else lost("Wrong.")
        ring, by = numbers(rest, 2, low=-self.sections + 1, high=self.sections - 1)
        if not 1 <= ring <= len(self.hidden):
            raise Forbidden(f"rings 1 to {len(self.hidden)} can be turned")
        self.hidden = turned(self.hidden, ring, by, self.sections)
        return Reply(str(passing(self.hidden, self.sections, self.arc)))

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return "! " + " ".join(str(rng.randrange(self.sections)) for _ in self.hidden)
        return f"? {rng.randint(1, len(self.hidden))} {rng.choice((-1, 1))}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def turned(places: Places, ring: int, by: int, sections: int) -> Places:
    return (*places[: ring - 1], (places[ring - 1] + by) % sections, *places[ring:])


def passing(places: Places, sections: int, arc: int) -> int:
    """How many lasers pass: sections that no ring's arc covers, ring 0 included."""
    covered = {(place + along) % sections for place in (0, *places) for along in range(arc)}
    return sections - len(covered)


def _play(rules: str) -> Play:
    told = setting(rules)
    rings, sections, arc = (int(told[name]) for name in ("n", "m", "a"))
    left = list(product(range(sections), repeat=rings - 1))
    turns = [(ring, by) for by in range(1, sections) for ring in range(1, rings)]
    while len(left) > 1:
        ring, by = most_telling(
            left, turns, lambda places, turn: passing(turned(places, *turn, sections), sections, arc)
        )
        said = int((yield f"? {ring} {by}"))
        after = [turned(places, ring, by, sections) for places in left]
        left = [places for places in after if passing(places, sections, arc) == said]
    yield "! " + " ".join(map(str, left[0]))
