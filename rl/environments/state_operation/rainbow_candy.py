"""RainbowCandy: a candy led over unknown dye machines to the goal, and to the right colour."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import COMPASS, Cell, grid_of, inside, moved, shortest
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, setting, won

DYES = "RGB"
MIXED = {frozenset("RG"): "Y", frozenset("GB"): "C", frozenset("RB"): "P"}

Candy = tuple[Cell, str]
"""Where it is, and its colour."""
TELLING: Candy = ((0, 0), "")


class RainbowCandy(Rounds[tuple[int, int, int, str]]):
    """`sizes`: cells of a side, dye machines, bleaches, target colours. Drawn until the reference player manages."""

    name = "RainbowCandy"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int, str]]] = {
        "easy": (3, 3, 0, "RGB"),
        "medium": (4, 5, 1, "YCP"),
        "hard": (5, 7, 3, "YCP"),
    }

    def set_up(self) -> None:
        n, dyes, bleaches, targets = self.size
        while True:
            there = ["X"] * dyes + ["W"] * bleaches + ["."] * (n * n - 2 - dyes - bleaches)
            row = "".join([".", *self.chance.sample(there, len(there)), "."])
            self.grid = [row[n * k : n * k + n] for k in range(n)]
            self.hidden = "".join(self.chance.choice(DYES) if kind == "X" else kind for kind in row)
            self.target = self.chance.choice(targets)
            self.candy: Candy = ((1, 1), "W")
            if (self.turns_of_reference() or 0) >= 2 * n - 1:
                break

    def rules(self) -> str:
        grid = "\n".join(self.grid)
        return (
            "RainbowCandy. Lead a candy from row 1, column 1 to the last row and column, where it has to have the"
            " target colour. It is white, W. At X it is dyed R, G or B; which, is seen only there. A dye on white"
            " gives its colour; dyes mix, R and G to Y, G and B to C, R and B to P; these take none. W makes it W.\n"
            "N, E, S or W takes a step. You are told the colour then.\n"
            f"target = {self.target}\ngrid =\n{grid}"
        )

    def play(self, text: str) -> Reply:
        step = COMPASS.get(text.strip().upper())
        if step is None:
            raise Forbidden("N, E, S or W is expected")
        n = len(self.grid)
        there = moved(self.candy[0], step)
        if not inside(there, n):
            raise Forbidden("that is outside the grid")
        colour = dyed(self.candy[1], self.hidden[(there[0] - 1) * n + there[1] - 1])
        self.candy = (there, colour)
        return won(colour) if self.candy == ((n, n), self.target) else Reply(colour)

    def random_move(self, rng: random.Random) -> str:
        return rng.choice(
            [name for name, step in COMPASS.items() if inside(moved(self.candy[0], step), len(self.grid))]
        )

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def dyed(colour: str, machine: str) -> str:
    """The colour of a candy after a machine: a dye, a bleach W, or none (a dot)."""
    if machine == "W" or machine == "." or colour not in "W" + DYES:
        return "W" if machine == "W" else colour
    return machine if colour in ("W", machine) else MIXED[frozenset((colour, machine))]


def _play(rules: str) -> Play:
    """The shortest way over machines that are known; if there is none, to one that is not, with a colour that tells."""
    grid, target = grid_of(rules), setting(rules)["target"]
    n = len(grid)
    known = {(r + 1, c + 1): kind for r, row in enumerate(grid) for c, kind in enumerate(row) if kind != "X"}
    candy: Candy = ((1, 1), "W")

    def onward(at: Candy, unknown: bool = False) -> Iterator[tuple[str, Candy]]:
        for name, step in COMPASS.items() if at != TELLING else ():
            there = moved(at[0], step)
            if there in known:
                yield name, (there, dyed(at[1], known[there]))
            elif unknown and inside(there, n) and at[1] in "W" + DYES:
                yield name, TELLING

    while True:
        way = shortest(candy, lambda at: at == ((n, n), target), onward)
        way = way or shortest(candy, lambda at: at == TELLING, lambda at: onward(at, unknown=True))
        way = way or ["S" if candy[0][0] < n else "N"]  # it cannot be done for certain
        there, before = moved(candy[0], COMPASS[way[0]]), candy[1]
        colour = yield way[0]
        if there not in known and before in "W" + DYES:
            known[there] = next(dye for dye in DYES if dyed(before, dye) == colour)
        candy = (there, colour)
