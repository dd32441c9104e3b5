"""FindTheImpostors: which players are impostors, by asking of three players whether most of them are (Codeforces)."""

from __future__ import annotations

import random
from itertools import combinations
from typing import ClassVar

from posttrain.rl.environments.candidates import pin_down
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


class FindTheImpostors(Rounds[int]):
    """`sizes`: how many players. The impostors are more than a third and less than two thirds of them."""

    name = "FindTheImpostors"
    category: ClassVar[Category] = "information_probing"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 20}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 6, "medium": 7, "hard": 9}

    def set_up(self) -> None:
        self.hidden = self._draw(self.chance)

    def _draw(self, rng: random.Random) -> list[int]:
        return sorted(rng.sample(range(1, self.size + 1), rng.choice(impostor_counts(self.size))))

    def rules(self) -> str:
        return (
            "FindTheImpostors. Some of the players 1 to n are impostors, more than a third and less than two thirds.\n"
            "? a b c tells which there are more of among these three: impostors or crew.\n"
            "! a b ... ends the game: these are all the impostors.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        players = different(numbers(rest, 3 if asks else None, low=1, high=self.size))
        if asks:
            return Reply("impostors" if len(set(players) & set(self.hidden)) >= 2 else "crew")
        return won("Right.") if sorted(players) == self.hidden else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return "! " + " ".join(map(str, self._draw(rng)))
        return "? {} {} {}".format(*rng.sample(range(1, self.size + 1), 3))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def impostor_counts(players: int) -> list[int]:
    return [count for count in range(players) if players < 3 * count < 2 * players]


def _play(rules: str) -> Play:
    n = int(setting(rules)["n"])
    players = range(1, n + 1)
    found = yield from pin_down(
        [frozenset(group) for count in impostor_counts(n) for group in combinations(players, count)],
        list(combinations(players, 3)),
        reply=lambda impostors, three: sum(player in impostors for player in three) >= 2,
        written=lambda three: "? {} {} {}".format(*three),
        read=lambda said: said == "impostors",
        answer=lambda impostors: impostors,
    )
    yield "! " + " ".join(map(str, sorted(found)))
