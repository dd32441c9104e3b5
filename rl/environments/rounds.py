"""What every game here shares: a move is read before it changes anything, and a finished game stays finished.

A game of questions is asked with `? ...` and answered with `! ...`, as in the interactive problems that most of these
games come from; a game of moves takes the bare move.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from copy import deepcopy
from typing import ClassVar, Generic, TypeVar

from posttrain.rl.environments.game import Difficulty, Game, Player, Reply

Size = TypeVar("Size")
Play = Generator[str, str, None]
"""A reference player as a coroutine: it yields moves and is sent the replies."""

_NUMBER = r"-?[0-9]{1,9}"
_NUMBERS = re.compile(rf"\s*{_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER})*\s*")


class Forbidden(Exception):
    """A move that cannot be read or is not allowed; the text says why."""


class Chance(random.Random):
    """Draws that are cheap to copy: `deepcopy` would take each of the 625 numbers of the state by itself."""

    def __deepcopy__(self, memo: dict[int, object]) -> Chance:
        twin = Chance(0)
        twin.setstate(self.getstate())
        return twin


class Rounds(Game, Generic[Size]):
    """A game whose instance is drawn in `set_up` and whose moves are made in `play`.

    Attributes:
        sizes: what a difficulty means for this game.
        chance: every draw of this instance, those of the environment's moves included.
        size: this instance's entry of `sizes`.
    """

    sizes: ClassVar[dict[Difficulty, Size]]

    def __init__(self, seed: int, difficulty: Difficulty) -> None:
        super().__init__(seed, difficulty)
        self.chance = Chance(f"{self.name}/{difficulty}/{seed}")
        self.size = self.sizes[difficulty]
        self._end: Reply | None = None
        self.set_up()

    def beginning(self) -> str:
        """All that was drawn when the instance was set up."""
        return _written({name: value for name, value in vars(self).items() if name not in ("seed", "chance", "_end")})

    @abstractmethod
    def set_up(self) -> None:
        """Draw the instance."""

    @abstractmethod
    def play(self, text: str) -> Reply:
        """One move of a game under way.

        Raises:
            Forbidden: it cannot be read or is not allowed; nothing may have changed by then.
        """

    def move(self, text: str) -> Reply:
        if self._end is not None:
            return Reply("The game is over.", valid=False, done=True, score=self._end.score)
        try:
            reply = self.play(text)
        except Forbidden as why:
            return Reply(f"Not allowed: {why}.", valid=False)
        if reply.done:
            self._end = reply
        return reply

    def turns_of_reference(self) -> int | None:
        """Moves that the reference player needs to win a copy of this game; None if it does not win in `max_turns`."""
        copy, player = deepcopy(self), self.reference()
        said = copy.rules()
        for turn in range(1, self.max_turns + 1):
            reply = copy.move(player(said))
            if reply.done:
                return turn if reply.score == 1.0 else None
            said = reply.text
        return None


def won(text: str) -> Reply:
    return Reply(text, done=True, score=1.0)


def lost(text: str) -> Reply:
    return Reply(text, done=True)


# --- reading a move


def numbers(text: str, count: int | None = None, *, low: int, high: int) -> list[int]:
    """The whole numbers of a move, `count` of them, each from `low` to `high`.

    Raises:
        Forbidden: the text is anything else.
    """
    if not _NUMBERS.fullmatch(text):
        raise Forbidden("whole numbers are expected")
    found = [int(number) for number in text.replace(",", " ").split()]
    if count is not None and len(found) != count:
        raise Forbidden(f"{count} number{'s are' if count > 1 else ' is'} expected")
    if not all(low <= number <= high for number in found):
        raise Forbidden(f"numbers go from {low} to {high}")
    return found


def different(found: list[int]) -> list[int]:
    """The same numbers, no two of them equal, or `Forbidden`."""
    if len(set(found)) != len(found):
        raise Forbidden("the numbers have to differ")
    return found


def question_or_answer(text: str) -> tuple[bool, str]:
    """Whether a move asks (`? ...`) and not answers (`! ...`), and what follows the mark."""
    text = text.strip()
    if text[:1] not in ("?", "!"):
        raise Forbidden("a move begins with ? or !")
    return text[0] == "?", text[1:]


# --- players


def as_player(play: Callable[[str], Play]) -> Player:
    """A player from a coroutine that is started on the rules and sent every reply after that."""
    running: list[Play] = []

    def player(said: str) -> str:
        if running:
            return running[0].send(said)
        running.append(play(said))
        return next(running[0])

    return player


def setting(rules: str) -> dict[str, str]:
    """What a game's rules say of this instance: every `name = value` up to the next comma, semicolon or line's end."""
    return {name: value.strip() for name, value in re.findall(r"(\w+) = ([^,;\n]+)", rules)}


def numbers_in(text: str) -> list[int]:
    """Every whole number of a text, for players that read a reply."""
    return [int(number) for number in re.findall(_NUMBER, text)]


def _written(value: object) -> str:
    """A value as text, the same for equal ones: sets and mappings in an order of their own."""
    if isinstance(value, Mapping):
        return f"{{{','.join(sorted(f'{_written(key)}:{_written(held)}' for key, held in value.items()))}}}"
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(map(_written, value)))}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if callable(value):
        return ""  # a method that remembers what it gave
    return _written(vars(value)) if hasattr(value, "__dict__") else repr(value)
