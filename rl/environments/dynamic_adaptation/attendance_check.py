"""AttendanceCheck: who is absent, by how many raise hands, honestly or not (after a Codeforces game)."""

from __future__ import annotations

import random
from typing import ClassVar, NamedTuple

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


class AttendanceCheck(Rounds[int]):
    """`sizes`: how many students. Whether they are honest is drawn, but for what three in a row forbid."""

    name = "AttendanceCheck"
    category: ClassVar[Category] = "dynamic_adaptation"
    max_turns = 20
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 5, "medium": 7, "hard": 10}
    sizes: ClassVar[dict[Difficulty, int]] = {"easy": 5, "medium": 7, "hard": 10}

    def set_up(self) -> None:
        self.hidden = self.chance.randint(1, self.size)
        self.honesty: list[bool] = []
        self.guesses = 2

    def rules(self) -> str:
        return (
            "AttendanceCheck. One of the students 1 to n is absent. Find out who.\n"
            "? l r counts the hands that the students l to r raise: all of them, or one less. They count honestly or"
            " not, but never honestly three times in a row, and never dishonestly three times in a row.\n"
            "! a says that student a is absent. You have two guesses, and they are judged truly.\n"
            f"n = {self.size}"
        )

    def play(self, text: str) -> Reply:
        asks, rest = question_or_answer(text)
        if not asks:
            return self._guess(*numbers(rest, 1, low=1, high=self.size))
        left, right = numbers(rest, 2, low=1, high=self.size)
        if left > right:
            raise Forbidden("l may not be greater than r")
        last = self.honesty[-2:]
        honest = not last[0] if len(last) == 2 and last[0] == last[1] else self.chance.random() < 0.5
        self.honesty.append(honest)
        return Reply(str(right - left + 1 - ((left <= self.hidden <= right) == honest)))

    def _guess(self, student: int) -> Reply:
        self.guesses -= 1
        if student == self.hidden:
            return won("Right.")
        return Reply("Wrong, one guess left.") if self.guesses else lost("Wrong.")

    def random_move(self, rng: random.Random) -> str:
        if rng.random() < 0.3:
            return f"! {rng.randint(1, self.size)}"
        return "? {} {}".format(*sorted(rng.choices(range(1, self.size + 1), k=2)))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


class Suspect(NamedTuple):
    """A student who may be absent, and how honest the last two answers then were."""

    student: int
    honesty: tuple[bool, ...]

    def after(self, left: int, right: int, says_absent: bool) -> Suspect | None:
        """The same suspect after an answer; None where it would make three in a row."""
        honest = (left <= self.student <= right) == says_absent
        if len(self.honesty) == 2 and self.honesty[0] == self.honesty[1] == honest:
            return None
        return Suspect(self.student, (*self.honesty, honest)[-2:])

    @property
    def worth(self) -> float:
        """How many ways go on from here: after two alike only one honesty is left."""
        return 1.0 if len(self.honesty) == 2 and self.honesty[0] == self.honesty[1] else 1.618


def _play(rules: str) -> Play:
    """For every suspect the honesty of every answer is known, so three in a row clears him.

    Asked is what leaves least in the worse case, looking two answers ahead once few are left.
    """
    n = int(setting(rules)["n"])
    suspects = [Suspect(student, ()) for student in range(1, n + 1)]
    ranges = [(left, right) for left in range(1, n + 1) for right in range(left, n + 1)]
    while len(suspects) > 2:
        left, right = min(ranges, key=lambda asked: _worse_case(suspects, asked, ranges, ahead=int(len(suspects) < 5)))
        said = yield f"? {left} {right}"
        suspects = _after(suspects, left, right, says_absent=int(said) == right - left)
    for suspect in suspects:
        yield f"! {suspect.student}"


def _after(suspects: list[Suspect], left: int, right: int, says_absent: bool) -> list[Suspect]:
    return [then for suspect in suspects if (then := suspect.after(left, right, says_absent)) is not None]


def _worse_case(suspects: list[Suspect], asked: tuple[int, int], ranges: list[tuple[int, int]], ahead: int) -> float:
    worst = 0.0
    for says_absent in (True, False):
        left = _after(suspects, *asked, says_absent)
        worth = sum(suspect.worth for suspect in left)
        if ahead and worth > worst and len(left) > 2:
            worth = min(_worse_case(left, following, ranges, ahead - 1) for following in ranges)
        worst = max(worst, worth)
    return worst
