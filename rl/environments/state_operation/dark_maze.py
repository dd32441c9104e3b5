"""DarkMaze: the way out of a maze whose walls are felt only by walking into them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import COMPASS, Cell, beside, cells, inside, moved, shortest
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, setting, won

Wall = frozenset[Cell]
"""Two cells beside each other that a wall parts."""


class DarkMaze(Rounds[int]):
    """`sizes`: cells of a side. Drawn until the reference player gets out in time, having met a wall."""

    name = "DarkMaze"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 3, "medium": 4, "hard": 5}

    def set_up(self) -> None:
        sides = [
            frozenset((cell, other)) for cell in cells(self.size) for other in beside(cell, self.size) if cell < other
        ]
        fewest = 2 * (self.size - 1)
        while True:
            self.hidden = {side for side in sides if self.chance.random() < 0.35}
            self.here: Cell = (1, 1)
            if (self.turns_of_reference() or fewest) > fewest:
                break

    def rules(self) -> str:
        return (
            "DarkMaze. You stand at row 1, column 1 of a maze of n rows and n columns, and have to get to row n, column"
            " n. Walls between cells are not seen.\n"
            "N, E, S or W takes a step north, east, south or west. You are told whether you moved or met a wall.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        step = COMPASS.get(text.strip().upper())
        if step is None:
            raise Forbidden("N, E, S or W is expected")
        there = moved(self.here, step)
        if not inside(there, self.size):
            raise Forbidden("that is outside the maze")
        if frozenset((self.here, there)) in self.hidden:
            return Reply("wall")
        self.here = there
        return won("out") if there == (self.size, self.size) else Reply("moved")

    def random_move(self, rng: random.Random) -> str:
        return rng.choice([name for name, step in COMPASS.items() if inside(moved(self.here, step), self.size)])

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """The shortest way as if there were no walls but those met."""
    n = int(setting(rules)["n"])
    here: Cell = (1, 1)
    walls: set[Wall] = set()

    def onward(cell: Cell) -> Iterator[tuple[str, Cell]]:
        for name, step in COMPASS.items():
            there = moved(cell, step)
            if inside(there, n) and frozenset((cell, there)) not in walls:
                yield name, there

    while True:
        way = shortest(here, lambda cell: cell == (n, n), onward) or ["N"]
        there = moved(here, COMPASS[way[0]])
        if (yield way[0]) == "wall":
            walls.add(frozenset((here, there)))
        else:
            here = there
