"""VladikMaze: to the finish of a known maze with buttons that may be swapped in pairs (Codeforces 811D)."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import ClassVar

from posttrain.rl.environments.contingent import Plan, Result
from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.grids import STEPS, Cell, cells, grid_of, inside, moved
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, lost, numbers_in, won

Swaps = tuple[bool, bool]
"""Whether L and R are swapped, and whether U and D are."""
SWAPS: list[Swaps] = [(False, False), (False, True), (True, False), (True, True)]


class VladikMaze(Rounds[int]):
    """`sizes`: cells of a side. Drawn until it can be won in time whatever is swapped."""

    name = "VladikMaze"
    category: ClassVar[Category] = "state_operation"
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 5, "hard": 6}

    def set_up(self) -> None:
        while True:
            finish = self.chance.choice([cell for cell in cells(self.size) if sum(cell) > self.size + 1])
            self.grid = [
                "".join(
                    "F" if (row, column) == finish else "*" if self.chance.random() < 0.3 and row + column > 2 else "."
                    for column in range(1, self.size + 1)
                )
                for row in range(1, self.size + 1)
            ]
            turns = plan_of(tuple(self.grid)).turns.get(((1, 1), frozenset(SWAPS)), 99)
            if self.size + 1 < turns <= self.max_turns:
                break
        self.here: Cell = (1, 1)
        self.hidden = self.chance.choice(SWAPS)

    def rules(self) -> str:
        grid = "\n".join(self.grid)
        return (
            "VladikMaze. Get from row 1, column 1 to the finish F. A cell * is deadly.\n"
            "U, D, L or R presses the button for up, down, left or right and gives your row and column then; a step out"
            " of the grid stays. But U and D may be swapped for the whole game, and so may L and R.\n"
            f"grid =\n{grid}"
        )

    def play(self, text: str) -> Reply:
        button = text.strip().upper()
        if button not in STEPS:
            raise Forbidden("U, D, L or R is expected")
        self.here, outcome = pressed(tuple(self.grid), self.hidden, self.here, button)
        if outcome == "lost":
            return lost("You stepped on a deadly cell.")
        return won("You are there.") if outcome == "won" else Reply("{} {}".format(*self.here))

    def random_move(self, rng: random.Random) -> str:
        return rng.choice(list(STEPS))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def pressed(grid: tuple[str, ...], swaps: Swaps, here: Cell, button: str) -> Result[Cell]:
    """Where a button takes one, and whether that ends the game."""
    down, right = STEPS[button]
    there = moved(here, (-down if swaps[1] else down, -right if swaps[0] else right))
    if not inside(there, len(grid)):
        return here, "goes on"
    found = grid[there[0] - 1][there[1] - 1]
    return there, "won" if found == "F" else "lost" if found == "*" else "goes on"


@lru_cache(maxsize=64)
def plan_of(grid: tuple[str, ...]) -> Plan[Cell, Swaps, str]:
    return Plan((1, 1), SWAPS, list(STEPS), lambda swaps, here, button: pressed(grid, swaps, here, button))


def _play(rules: str) -> Play:
    plan = plan_of(tuple(grid_of(rules)))
    belief: tuple[Cell, frozenset[Swaps]] = ((1, 1), frozenset(SWAPS))
    while True:
        move = plan.move[belief]
        row, column = numbers_in((yield move))
        belief = ((row, column), frozenset(plan.after(belief, move)[((row, column), "goes on")]))
