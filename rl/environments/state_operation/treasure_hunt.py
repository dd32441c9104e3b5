"""TreasureHunt: every junction of a forest has to be visited, though junctions look alike.

At a junction, only each neighbour's number of paths and whether it was visited are seen, in a new order every time, as
in the Codeforces game of an enchanted forest whose wizard hides the junctions' numbers.
"""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import Play, Rounds, as_player, lost, numbers, setting, won


class TreasureHunt(Rounds[tuple[int, int, int]]):
    """`sizes`: junctions, paths beyond a tree's, moves beyond the fewest. Drawn until the reference player manages."""

    name = "TreasureHunt"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (5, 3, 1),
        "medium": (7, 4, 2),
        "hard": (10, 6, 3),
    }

    def set_up(self) -> None:
        while True:
            self.paths = self._draw_forest()
            self.here, self.visited, self.moves_left = 0, {0}, self.size[0] - 1 + self.size[2]
            self._look()
            if self.turns_of_reference() is not None:
                break

    def _draw_forest(self) -> list[list[int]]:
        junctions, further, _ = self.size
        edges = {(self.chance.randrange(junction), junction) for junction in range(1, junctions)}
        missing = [(a, b) for b in range(junctions) for a in range(b) if (a, b) not in edges]
        edges |= set(self.chance.sample(missing, further))
        return [sorted({a + b - at for a, b in edges if at in (a, b)}) for at in range(junctions)]

    def _look(self) -> None:
        self.seen = list(self.paths[self.here])
        self.chance.shuffle(self.seen)

    def _view(self) -> str:
        return " ".join(f"{len(self.paths[at])}{'*' if at in self.visited else ''}" for at in self.seen)

    def rules(self) -> str:
        return (
            "TreasureHunt. Visit every junction of a forest. You see the junctions next to yours, in an order that"
            " changes every time: how many paths each has, with a * if you have visited it.\n"
            "k goes to the k-th that you see.\n"
            f"junctions = {self.size[0]}; moves = {self.moves_left}\nview = {self._view()}"
        )

    def play(self, text: str) -> Reply:
        (choice,) = numbers(text, 1, low=1, high=len(self.seen))
        self.here = self.seen[choice - 1]
        self.visited.add(self.here)
        self.moves_left -= 1
        if len(self.visited) == self.size[0]:
            return won("All visited.")
        if not self.moves_left:
            return lost("No moves are left.")
        self._look()
        return Reply(self._view())

    def random_move(self, rng: random.Random) -> str:
        return str(rng.randint(1, len(self.seen)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """To an unvisited junction if one is seen, the one with fewest paths (it is the hardest to come back to)."""
    view = setting(rules)["view"].split()
    while True:
        best = min(range(len(view)), key=lambda k: ("*" in view[k], _paths(view[k]) * (-1 if "*" in view[k] else 1)))
        view = (yield str(best + 1)).split()


def _paths(junction: str) -> int:
    return int(junction.rstrip("*"))
