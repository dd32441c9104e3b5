"""What adapters share: turns and invalid moves counted, faults survived, an end for every episode."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from posttrain.tasks.environment import Outcome, Reply
from posttrain.templates.parsed import ParsedMessage

log = logging.getLogger("posttrain")


class Counted(ABC):
    """An environment whose steps are counted. What raises is an invalid move and a counted fault."""

    name: str

    @abstractmethod
    def begin(self, row: Mapping[str, Any]) -> tuple[str, int]:
        """Begin the row's instance; the opening message, and the turns there may be."""

    @abstractmethod
    def answer(self, message: ParsedMessage) -> Reply:
        """What the environment says to a message."""

    def reset(self, row: Mapping[str, Any]) -> str:
        opening, self._limit = self.begin(row)
        self._turns = self._invalid = self._faults = 0
        self._score, self._ended, self._over = 0.0, False, False
        return opening

    def step(self, message: ParsedMessage) -> Reply:
        if self._over:
            return Reply("It is over.", valid=False, done=True, score=self._score)
        try:
            reply = self.answer(message)
        except Exception as error:  # a bad move is data, whatever it breaks
            self._faults += 1
            log.warning("%s raised %r on %.80r; counted as invalid", self.name, error, message.content)
            reply = Reply("This could not be read.", valid=False)
        self._turns += 1
        self._invalid += not reply.valid
        self._ended = reply.done
        if not reply.done and self._turns >= self._limit:
            reply = Reply(f"{reply.text}\nNo turns are left.", valid=reply.valid, done=True)
        self._over = reply.done
        self._score = min(max(reply.score, 0.0), 1.0) if self._ended else 0.0
        return reply

    @property
    def outcome(self) -> Outcome:
        return Outcome(
            score=self._score,
            won=self._score >= 1.0,
            turns=self._turns,
            max_turns=self._limit,
            invalid=self._invalid,
            faults=self._faults,
            ended=self._ended,
        )
