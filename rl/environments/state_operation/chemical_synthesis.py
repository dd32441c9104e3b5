"""ChemicalSynthesis: a compound made from others by four operations, of which it is not known which number is which.

MTR-Bench's game, in which operations may also go wrong. Here one that goes wrong does nothing, and never two in a row.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise, permutations
from typing import ClassVar, NamedTuple

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import Forbidden, Play, Rounds, as_player, setting, won

OPERATIONS = ("split", "merge", "reverse", "extract")
LONGEST = 8
FIZZLED = "fizzled"

Step = tuple[str, tuple[str, ...]]
"""An operation and what it is done to."""


class Size(NamedTuple):
    """Elements of each compound at first, steps that the target needs at least and at most, chance to go wrong."""

    compounds: tuple[int, ...]
    steps: tuple[int, int]
    fizzles: float


class ChemicalSynthesis(Rounds[Size]):
    """Drawn until the reference player makes the target in time."""

    name = "ChemicalSynthesis"
    category: ClassVar[Category] = "state_operation"
    costly = True
    sizes: ClassVar[dict[Difficulty, Size]] = {
        "easy": Size((3, 2), (2, 3), 0.0),
        "medium": Size((3, 2, 2), (4, 5), 0.1),
        "hard": Size((3, 3, 2), (6, 7), 0.2),
    }

    def set_up(self) -> None:
        least, most = self.size.steps
        while True:
            elements = self.chance.sample("ABCDEFGH", sum(self.size.compounds))
            ends = [sum(self.size.compounds[:k]) for k in range(len(self.size.compounds) + 1)]
            self.made = ["".join(elements[a:b]) for a, b in pairwise(ends)]
            self.target = self._draw_target()
            self.hidden = self.chance.sample(OPERATIONS, len(OPERATIONS))
            self.fizzled = False
            if least <= len(plan(self.made, self.target)) <= most and self.turns_of_reference() is not None:
                break

    def _draw_target(self) -> str:
        """What some steps make, each from what there is by then."""
        there, made = list(self.made), self.made[0]
        for _ in range(self.size.steps[1]):
            operation = self.chance.choice(OPERATIONS)
            parts = applied(operation, self.chance.sample(there, 2 if operation == "merge" else 1))
            made = self.chance.choice(parts or there)
            there.append(made)
        return made

    def rules(self) -> str:
        return (
            "ChemicalSynthesis. Make the target from compounds, which are rows of elements and never used up. The"
            " numbers 1 to 4 stand for these operations, in an unknown order: split (ABC gives A and BC), merge"
            f" (AB and CD give ABCD, at most {LONGEST} elements), reverse (ABC gives CBA), extract (ABC gives C).\n"
            "n X does operation n to compound X, n X Y to two. A merge of one doubles it; the others take each by"
            f" itself. An operation may have {FIZZLED} and done nothing, but never two in a row.\n"
            f"compounds = {' '.join(self.made)}; target = {self.target}"
        )

    def play(self, text: str) -> Reply:
        number, *given = text.upper().split() or [""]
        if number not in ("1", "2", "3", "4") or len(given) not in (1, 2):
            raise Forbidden("n X or n X Y is expected, n from 1 to 4")
        if missing := [compound for compound in given if compound not in self.made]:
            raise Forbidden(f"there is no {missing[0][:LONGEST]}")
        self.fizzled = not self.fizzled and self.chance.random() < self.size.fizzles
        if self.fizzled:
            return Reply(FIZZLED)
        new = fresh(self.hidden[int(number) - 1], given, self.made)
        self.made += new
        return won("The target is made.") if self.target in new else Reply(f"new {' '.join(new) or '-'}")

    def random_move(self, rng: random.Random) -> str:
        return f"{rng.randint(1, 4)} {' '.join(rng.sample(self.made, rng.randint(1, 2)))}"

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def applied(operation: str, given: Iterable[str]) -> list[str]:
    """What an operation makes of one compound or two."""
    given = list(given)
    if operation == "merge":
        merged = "".join(given * (3 - len(given)))
        return [merged] if len(merged) <= LONGEST else []
    if operation == "split":
        return [part for compound in given for part in (compound[0], compound[1:]) if part]
    return [compound[::-1] if operation == "reverse" else compound[-1] for compound in given]


def fresh(operation: str, given: Iterable[str], made: Iterable[str]) -> list[str]:
    """What of it is not there yet, each once."""
    there = set(made)
    return [part for part in dict.fromkeys(applied(operation, given)) if part not in there]


def plan(made: Iterable[str], target: str) -> list[Step]:
    """Few steps that make the target: pieces of it by operations on one compound, put together by merging."""
    ways: dict[str, list[Step]] = {compound: [] for compound in made}
    todo = list(ways)
    for compound in todo:
        for operation in ("split", "reverse", "extract") if len(ways[compound]) < 3 else ():
            for part in applied(operation, [compound]):
                if part not in ways:
                    ways[part] = [*ways[compound], (operation, (compound,))]
                    todo.append(part)
    for length in range(2, len(target) + 1):
        for start in range(len(target) - length + 1):
            piece = target[start : start + length]
            for whole, last in ((piece, []), (piece[::-1], [("reverse", (piece[::-1],))])):
                for cut in range(1, length):
                    left, right = ways.get(whole[:cut]), ways.get(whole[cut:])
                    if left is not None and right is not None:
                        way = [*left, *right, ("merge", (whole[:cut], whole[cut:])), *last]
                        ways[piece] = min(ways.get(piece, way), way, key=len)
    return ways.get(target, [("reverse", (target,))] * 99)


def _play(rules: str) -> Play:
    """The first step of a plan, with the numbers as they may be; what it makes tells which numbers cannot be."""
    told = setting(rules)
    made, target = told["compounds"].split(), told["target"]
    orders = list(permutations(OPERATIONS))
    while True:
        operation, given = plan(made, target)[0]
        number = orders[0].index(operation)
        said = yield f"{number + 1} {' '.join(given)}"
        if said != FIZZLED:
            new = [part for part in said.split()[1:] if part != "-"]
            orders = [order for order in orders if fresh(order[number], given, made) == new]
            made += new
