"""RPD: a password that changes after every wrong guess, in a way that is known (Codeforces 1543D)."""

from __future__ import annotations

import random
from typing import ClassVar

from posttrain.rl.environments.game import Category, Difficulty, Player, Reply
from posttrain.rl.environments.rounds import Play, Rounds, as_player, lost, numbers, setting, won


class RPD(Rounds[tuple[int, int, int]]):
    """`sizes`: passwords at first, base, digits. There is one guess for each password at first."""

    name = "RPD"
    category: ClassVar[Category] = "dynamic_adaptation"
    starts: ClassVar[dict[Difficulty, int]] = {"easy": 4, "medium": 8, "hard": 14}
    sizes: ClassVar[dict[Difficulty, tuple[int, int, int]]] = {
        "easy": (4, 2, 4),
        "medium": (8, 2, 6),
        "hard": (14, 3, 5),
    }

    def set_up(self) -> None:
        count, self.base, self.digits = self.size
        self.hidden = self.chance.randrange(count)
        self.guesses_left = count

    def rules(self) -> str:
        return (
            "RPD. Guess a hidden password x, a number. After a wrong guess y it becomes the number z for which x and z,"
            " added digit by digit in base k without carrying, make y.\n"
            "y is a guess.\n"
            f"At first x is less than n, n = {self.size[0]}; k = {self.base}; digits = {self.digits}, so guesses go"
            f" from 0 to {self.base**self.digits - 1}; guesses = {self.guesses_left}"
        )

    def play(self, text: str) -> Reply:
        (guess,) = numbers(text, 1, low=0, high=self.base**self.digits - 1)
        if guess == self.hidden:
            return won("Right.")
        self.guesses_left -= 1
        self.hidden = taken(guess, self.hidden, self.base)
        return Reply("Wrong.") if self.guesses_left else lost("Wrong, no guess is left.")

    def random_move(self, rng: random.Random) -> str:
        return str(rng.randrange(self.base**self.digits))

    @classmethod
    def reference(cls) -> Player:
        return as_player(_play)


def taken(a: int, b: int, base: int) -> int:
    """a - b digit by digit in a base, without borrowing. In base 2 it is their XOR."""
    digit, found = 1, 0
    while a or b:
        found += digit * ((a - b) % base)
        a, b, digit = a // base, b // base, digit * base
    return found


def _play(rules: str) -> Play:
    """What each password would have become is known: the passwords are tried in turn, each as it is by then."""
    told = setting(rules)
    count, base = int(told["n"]), int(told["k"])
    guesses: list[int] = []
    for password in range(count):
        now = password
        for guess in guesses:
            now = taken(guess, now, base)
        guesses.append(now)
        yield str(now)
