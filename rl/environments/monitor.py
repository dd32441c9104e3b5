r"""Stands between a game and whatever a model writes: finds the move, counts, ends the game, and never raises.

A move is the last `\boxed{...}` of a message's content. A message without one is an invalid move, as is a move that the
game cannot read or does not allow; all of them use up a turn, so a game always ends.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from posttrain.rl.environments.game import Game
from posttrain.tasks.answers import boxes
from posttrain.tasks.environment import Outcome, Reply

log = logging.getLogger("posttrain")

LONGEST_MOVE = 2000  # characters; a longer one is invalid, so that no game has to parse a book
LONGEST_TEXT = 1_000_000  # characters of a message that are searched for a move, from its end
HOW_TO_MOVE = "Write your move inside \\boxed{...}; the last box of a message counts."
NO_MOVE = "No move was found. " + HOW_TO_MOVE
OVER = "The game is over."

_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|texttt|mathrm|mathtt|mathbf)\s*\{([^{}]*)\}")
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "associate": re.compile(
        r"\b(?:similar to|reminds? me|like (?:in )?the (?:classic|game|problem)|this is (?:a|the) (?:classic|known)"
        r"|binary search|mastermind|nim\b|analog(?:y|ous))",
        re.IGNORECASE,
    ),
    "verify": re.compile(
        r"\b(?:let me (?:check|verify|double[- ]check|confirm)|to (?:verify|confirm|check)|double[- ]check|make sure"
        r"|is consistent|wait\b)",
        re.IGNORECASE,
    ),
    "plan": re.compile(
        r"\b(?:my (?:plan|strategy)|first,? (?:i|we)|next,? (?:i|we)|then (?:i|we) (?:will|can|should)|step by step"
        r"|(?:i|we) (?:should|will) (?:start|begin|try)|strategy)\b",
        re.IGNORECASE,
    ),
    "feedback": re.compile(
        r"\b(?:the (?:reply|response|feedback|result|answer) (?:is|was|says|said|means|tells)|based on the"
        r"|since the (?:reply|response|feedback|result)|(?:this|that) (?:means|tells (?:me|us))|so far)\b",
        re.IGNORECASE,
    ),
}
"""Words by which a turn shows one of MTR-Bench's four patterns. The paper names the patterns; the words are ours."""
_ANY_PATTERN = re.compile("|".join(pattern.pattern for pattern in PATTERNS.values()), re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """One message of the player and what came of it. `move` is None where none was found."""

    move: str | None
    reply: str
    valid: bool


@dataclass
class Monitor:
    """One game under way.

    Attributes:
        game: played by this monitor alone.
        max_turns: moves allowed; None: the game's own.
        turns: what was played so far.
    """

    game: Game
    max_turns: int | None = None
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._limit = self.game.max_turns if self.max_turns is None else self.max_turns
        self._patterns: Counter[str] = Counter()
        self._faults = 0
        self._ran_out = False
        self._last: Reply | None = None

    def opening(self) -> str:
        """The first message: the rules, how a move is written, and how many there may be."""
        return f"{self.game.rules()}\n\n{HOW_TO_MOVE} You have {self._limit} turns."

    def step(self, content: str, reasoning: str = "") -> Reply:
        """Take one message of the player.

        Args:
            content: what the player says, where the move is looked for.
            reasoning: its thinking, which moves nothing and is read for patterns only.

        Returns:
            The game's reply; `done` where it ended the game or the turns are used up. After the end nothing is played.
        """
        if self.done:
            return Reply(OVER, valid=False, done=True, score=self._score)
        self._note_patterns(f"{reasoning}\n{content}")
        move = find_move(content)
        reply = Reply(NO_MOVE, valid=False) if move is None else self._move(move)
        if not reply.done and len(self.turns) + 1 >= self._limit:
            reply = Reply(f"{reply.text}\nNo turns are left. {OVER}", valid=reply.valid, done=True)
            self._ran_out = True
        self.turns.append(Turn(move, reply.text, reply.valid))
        self._last = reply
        return reply

    @property
    def done(self) -> bool:
        return self._last is not None and self._last.done

    @property
    def _score(self) -> float:
        return min(max(self._last.score, 0.0), 1.0) if self._last is not None and self._last.done else 0.0

    @property
    def outcome(self) -> Outcome:
        """What the game came to, or has come to so far."""
        return Outcome(
            score=self._score,
            won=self._score >= 1.0,
            turns=len(self.turns),
            max_turns=self._limit,
            invalid=sum(not turn.valid for turn in self.turns),
            faults=self._faults,
            ended=self.done and not self._ran_out,
            patterns={name: self._patterns[name] for name in PATTERNS},
        )

    def _move(self, move: str) -> Reply:
        if len(move) > LONGEST_MOVE:
            return Reply(f"The move is longer than {LONGEST_MOVE} characters.", valid=False)
        try:
            return self.game.move(move)
        except Exception as error:  # a bad move is data, whatever it breaks
            self._faults += 1
            log.warning("%s: the move %.80r raised %r; counted as invalid", self.game.name, move, error)
            return Reply("The move could not be read.", valid=False)

    def _note_patterns(self, text: str) -> None:
        text = text[-LONGEST_TEXT:]
        if _ANY_PATTERN.search(text):  # most turns of a trained player are a bare move
            self._patterns.update(name for name, pattern in PATTERNS.items() if pattern.search(text))


def find_move(content: str) -> str | None:
    r"""The text inside the last `\boxed{...}`, without `\text{...}` and dollars around it; None where there is none."""
    found = boxes(content[-LONGEST_TEXT:])
    return _TEXT_COMMAND.sub(r"\1", found[-1]).strip().strip("$").strip() if found else None
