"""MimicHunt: which object changes its type, by taking others away and looking again (after a Codeforces game)."""

from __future__ import annotations

import random
from collections import Counter
from typing import ClassVar

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


class MimicHunt(Rounds[tuple[int, int, int]]):
    """`sizes`: objects, types, looks in a row at which the mimic may be of one type. The last object is the mimic."""

    name = "MimicHunt"
    category: ClassVar[Category] = "dynamic_adaptation"
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (5, 4, 1),
        "medium": (9, 6, 3),
        "hard": (16, 9, 5),
    }

    def set_up(self) -> None:
        count, self.types, self.longest = self.size
        self.objects = [self.chance.randint(1, self.types) for _ in range(count)]
        self.alike = 1
        self._mix()

    def _mix(self) -> None:
        """`order` says which object stands at each place."""
        self.order = self.chance.sample(range(len(self.objects)), len(self.objects))

    def _view(self) -> str:
        return " ".join(str(self.objects[at]) for at in self.order)

    def rules(self) -> str:
        return (
            "MimicHunt. You see the types of some objects. One object is a mimic: between two looks it may change its"
            f" type, and it never has one type at more than {self.longest} looks in a row.\n"
            "? i j ... takes the objects at these places away, mixes the others and shows them. 0 takes none away.\n"
            "! i ends the game: the mimic is at place i.\n"
            f"types are 1 to m, m = {self.types}\nobjects = {self._view()}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        mimic = self.order.index(len(self.objects) - 1) + 1
        if not asks:
            return won("Right.") if numbers(rest, 1, low=1, high=len(self.order)) == [mimic] else lost("Wrong.")
        places = [] if rest.strip() == "0" else different(numbers(rest, low=1, high=len(self.order)))
        if mimic in places:
            return lost("The mimic was taken away.")
        gone = {self.order[place - 1] for place in places}
        self.objects = [kind for at, kind in enumerate(self.objects) if at not in gone]
        self._change()
        self._mix()
        return Reply(self._view())

    def _change(self) -> None:
        others = [kind for kind in range(1, self.types + 1) if kind != self.objects[-1]]
        if self.alike == self.longest or self.chance.random() < 1 / self.longest:
            self.objects[-1] = self.chance.choice(others)
            self.alike = 1
        else:
            self.alike += 1

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.4:
            return f"! {rng.randint(1, len(self.order))}"
        taken = rng.sample(range(1, len(self.order) + 1), rng.randint(0, min(2, len(self.order) - 1)))
        return "? " + (" ".join(map(str, taken)) or "0")

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def _play(rules: str) -> Play:
    """Wait until there is one more of some type: the mimic is of that type now. Take the others away, and wait again.

    Then all that is left looks alike but for the mimic as soon as it changes.
    """
    seen = setting(rules)["objects"].split()
    gone: list[int] = []
    kind = None
    while True:
        before = Counter(one for place, one in enumerate(seen, 1) if place not in gone)
        seen = (yield "? " + (" ".join(map(str, gone)) or "0")).split()
        if kind is not None and set(seen) != {kind}:
            odd = next(place for place, one in enumerate(seen, 1) if one != kind)
            yield f"! {odd}"
        grown = Counter(seen) - before
        kind = next(iter(grown), None) if kind is None else kind
        gone = [] if kind is None else [place for place, one in enumerate(seen, 1) if one != kind]
