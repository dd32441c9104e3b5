"""`textarena:ID`: single-player games of the textarena library (`pip install posttrain[textarena]`).

The library draws from Python's global random state, which would make games depend on what else is played. Here every
environment has a state of its own, swapped in for as long as the library runs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.environments.counted import Counted
from posttrain.tasks.environment import Reply
from posttrain.tasks.task import Query, derive_seed, make_query
from posttrain.templates.parsed import ParsedMessage

TURNS = 30
Made = TypeVar("Made")


class TextArenaEnvironment(Counted):
    """One game for one player."""

    def __init__(self, member: str) -> None:
        self.name = f"textarena:{member}"
        self._member = member
        self._random: Any = None

    def begin(self, row: Mapping[str, Any]) -> tuple[str, int]:
        entry = json.loads(row["entry"])
        self._random = random.Random(entry["seed"]).getstate()
        return self._own(lambda: self._start(entry["seed"])), int(entry["turns"])

    def _start(self, seed: int) -> str:
        self._game = _library().make(f"{self._member}-raw")  # without the wrappers that repeat the conversation
        self._game.reset(num_players=1, seed=seed)
        return self._said()

    def answer(self, message: ParsedMessage) -> Reply:
        return self._own(lambda: self._move(message.content))

    def _move(self, content: str) -> Reply:
        done, _ = self._game.step(action=content)
        said = self._said()
        valid = not self._invalid_move()
        if not done:
            return Reply(said, valid=valid)
        rewards, _ = self._game.close()
        return Reply(said or "It is over.", valid=valid, done=True, score=float((rewards or {}).get(0, 0.0)))

    def _invalid_move(self) -> bool:
        state = self._game.state
        return bool(state.game_info[0].get("invalid_move") or getattr(state, "made_invalid_move", False))

    def _said(self) -> str:
        """What the game has to say, without what the player said itself."""
        _, observations = self._game.get_observation()
        actions = _library().ObservationType.PLAYER_ACTION
        return "\n".join(text for _, text, kind in observations if kind != actions)

    def _own(self, call: Callable[[], Made]) -> Made:
        """Run a call with this environment's random state."""
        outside = random.getstate()
        random.setstate(self._random)
        try:
            return call()
        finally:
            self._random = random.getstate()
            random.setstate(outside)


class TextArena:
    """A single-player game of textarena, by its id.

    Options of `queries`: `turns`, messages allowed; default 30.
    """

    rewards: Mapping[str, float] = {"environment": 1.0}

    def __init__(self, member: str) -> None:
        self.name = f"textarena:{member}"
        self._member = member
        registry = _library().envs.registration.ENV_REGISTRY
        if f"{member}-raw" not in registry:
            import difflib

            near = difflib.get_close_matches(member, registry, n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "write an id without wrappers, as Wordle-v0"
            raise PosttrainError(Problem(f"textarena has no game {member!r}", remedy=remedy))

    def environment(self) -> TextArenaEnvironment:
        return TextArenaEnvironment(self._member)

    def queries(self, size: int, seed: int, *, turns: int = TURNS) -> Iterator[Query]:
        if type(turns) is not int or turns < 1:
            raise PosttrainError(Problem(f"turns is a whole number above 0, not {turns!r}", f"{self.name}: options"))
        rows = (self._query(number, seed, turns) for number in range(size))
        first = next(rows, None)  # a game for two players, or without its word lists, is refused now
        return iter(()) if first is None else _chain(first, rows)

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        """The score of a game that one message decides."""
        environment = self.environment()
        environment.reset(query)
        environment.step(ParsedMessage(None, content, (), closed=True, well_formed=True, problems=()))
        return environment.outcome.score

    def gold(self, query: Mapping[str, Any]) -> str:
        raise PosttrainError(Problem(f"{self.name}: the library says no solution of its games"))

    def problem(self, answer: str) -> str | None:
        """Why a row of a file without an `entry` cannot be scored."""
        return "a game needs an `entry`, which only queries made by the task have"

    def _query(self, number: int, seed: int, turns: int) -> Query:
        instance = derive_seed(self.name, seed, number)
        entry = json.dumps({"seed": instance, "turns": turns})
        try:
            opening = self.environment().reset({"entry": entry})
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            remedy = "take a single-player game that needs no data from elsewhere"
            raise PosttrainError(Problem(f"{self.name} cannot be played here", why=why, remedy=remedy)) from error
        return make_query(
            id=f"{self._member}-{seed}-{number}",
            prompt=opening,
            answer="",
            task=self.name,
            domain="textarena",
            key=f"{self.name}/{instance}",
            entry=entry,
        )


def _chain(first: Query, rest: Iterator[Query]) -> Iterator[Query]:
    yield first
    yield from rest


def _library() -> Any:
    try:
        import textarena
    except ImportError as error:
        why = f"the package cannot be imported: {error}"
        raise PosttrainError(
            Problem("textarena is not here", why=why, remedy="pip install posttrain[textarena]")
        ) from error
    return textarena
