"""Thinking-mode fusion (Qwen3 report, section 4.3): flags, and dialogues in which the last flag wins at every turn.

A sample of the thinking mode asks for it with `/think`, or says nothing, since thinking is the default; a non-thinking
sample always says `/no_think`. The flag ends the user turn or stands in the system message. Single-turn samples are
joined to dialogues with flags at random turns; the answer of each turn is a sample of the mode in force there.

The plan of all this is drawn from the seed first, in places of samples, not in text: it can be checked, and a million
samples cost it a few bytes each.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from posttrain.recipe.schema import Share, Spec
from posttrain.sft.samples import Message, Sample
from posttrain.templates.families import Family, Mode
from posttrain.templates.flags import with_flag
from posttrain.templates.render import last_flag

CORRECTED_OVER = 20  # turns over which a surplus of one mode in the dialogues is made up for

MODES: tuple[Mode, Mode] = ("thinking", "non_thinking")


class Flags(Spec):
    """How samples say their mode."""

    unflagged: Share = Field(default=0.3, description="share of single-turn thinking samples that carry no flag")
    in_system: Share = Field(
        default=0.1, description="share of flagged conversations whose first flag stands in the system message"
    )


class MultiTurn(Spec):
    """Dialogues joined from single-turn samples."""

    share: Share = Field(default=0.2, description="share of the conversations that are joined dialogues")
    turns: tuple[int, int] = Field(default=(2, 4), description="fewest and most turns of a dialogue")

    @model_validator(mode="after")
    def _ordered(self) -> MultiTurn:
        if not 2 <= self.turns[0] <= self.turns[1]:
            raise ValueError(f"turns {list(self.turns)}: give the fewest and the most, 2 or more")
        return self


class Fusion(Spec):
    """`fusion:` of a stage."""

    flags: Flags = Field(default=Flags(), description="how samples say their mode")
    multi_turn: MultiTurn | None = Field(
        default=MultiTurn(), description="dialogues joined from single samples; `null`: none"
    )


@dataclass(frozen=True)
class Turn:
    """A planned turn: the sample's place, the flag written before it (None: none), and the mode it must be in."""

    place: int
    flag: Mode | None
    mode: Mode


@dataclass(frozen=True)
class Dialogue:
    """A planned conversation. `in_system`: its first turn's flag stands in the system message."""

    turns: tuple[Turn, ...]
    in_system: bool


class _Quota:
    """Says yes to a share of the questions, spread evenly: after n of them, to `round(share * n)` within one."""

    def __init__(self, share: float, rng: random.Random) -> None:
        self._share, self._debt = share, rng.random()

    def take(self) -> bool:
        self._debt += self._share
        if self._debt < 1.0:
            return False
        self._debt -= 1.0
        return True


class Planner:
    """Draws the plan: every place once, single or in a dialogue, in an order drawn from the seed.

    Args:
        modes: the mode of each sample; joinable: whether it is one user turn and one answer, and nothing else.
        default: the mode in force where no flag was seen.
    """

    def __init__(self, modes: Sequence[Mode], joinable: Sequence[bool], spec: Fusion, default: Mode, seed: int) -> None:
        self._rng = rng = random.Random(seed)
        self._spec, self._default, self._modes = spec, default, modes
        # Drawn from the end; two pools of joinable samples, and the rest.
        self._pools: dict[Mode, array[int]] = {mode: array("q") for mode in MODES}
        self._whole = array("q")
        order = array("q", range(len(modes)))
        rng.shuffle(order)
        for place in order:
            (self._pools[modes[place]] if joinable[place] else self._whole).append(place)
        self._share = len(self._pools["thinking"]) / max(1, self._left())  # of thinking among the joinable
        self._surplus = 0.0  # thinking turns that dialogues took beyond that share
        self._unflagged = _Quota(spec.flags.unflagged, rng)
        self._in_system = _Quota(spec.flags.in_system, rng)
        self._joined = _Quota(spec.multi_turn.share if spec.multi_turn else 0.0, rng)

    def __iter__(self) -> Iterator[Dialogue]:
        while self._left() or self._whole:
            if self._joined.take() and self._left() >= 2:
                yield self._dialogue()
            else:
                yield self._single()

    def _left(self) -> int:
        return sum(len(pool) for pool in self._pools.values())

    def _single(self) -> Dialogue:
        # In proportion to what is left, so that all three run out together.
        pools = [*self._pools.values(), self._whole]
        place = self._rng.choices(pools, weights=[len(pool) for pool in pools])[0].pop()
        mode = self._modes[place]
        flag = None if mode == self._default and self._unflagged.take() else mode
        return Dialogue((Turn(place, flag, mode),), flag is not None and self._in_system.take())

    def _dialogue(self) -> Dialogue:
        assert self._spec.multi_turn is not None
        fewest, most = self._spec.multi_turn.turns
        length = min(self._rng.randint(fewest, most), self._left())
        flagged = set(self._rng.sample(range(length), self._rng.randint(1, length - 1)))
        turns: list[Turn] = []
        mode = self._default
        for number in range(length):
            flag = self._drawn_mode() if number in flagged else None
            if flag is None and not self._pools[mode]:
                flag = self._drawn_mode()  # no sample of the mode in force is left: the user asks for the other
            mode = flag or mode
            turns.append(Turn(self._pools[mode].pop(), flag, mode))
            self._surplus += (mode == "thinking") - self._share
        return Dialogue(tuple(turns), turns[0].flag is not None and self._in_system.take())

    def _drawn_mode(self) -> Mode:
        """A flag's mode. Turns without one favour the default mode; flags make up for it, so both last to the end."""
        left = [mode for mode in MODES if self._pools[mode]]
        if len(left) == 1:
            return left[0]
        chance = self._share - self._surplus / CORRECTED_OVER
        return "thinking" if self._rng.random() < chance else "non_thinking"


def assemble(dialogue: Dialogue, samples: Sequence[Sample], family: Family) -> list[Message]:
    """The conversation of a plan, its samples given turn by turn.

    A sample of several turns of its own keeps them; a flag is added wherever its mode is not the one in force.
    """
    out: list[Message] = []
    for number, (turn, sample) in enumerate(zip(dialogue.turns, samples, strict=True)):
        groups = list(_exchanges(sample.messages))
        for position, (asked, answered) in enumerate(groups):
            out += [dict(message) for message in asked]
            mode = _mode_of(answered)
            if mode is None:
                out += answered
                continue
            flag = turn.flag if position == 0 and turn.mode == mode else None
            nobody_asked = all(message["role"] != "user" for message in out)
            if flag is not None:
                out = with_flag(out, family, flag, in_system=nobody_asked or (dialogue.in_system and number == 0))
            if (last_flag(out, family) or family.default_mode) != mode:
                # The sample's own text holds another flag, or its mode changes between its turns: the last one wins.
                out = with_flag(out, family, mode, in_system=nobody_asked)
            out += answered
    return out


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[list[Message], list[Message]]]:
    """A conversation in exchanges: what is asked (up to a user turn), and all that follows until the next user turn."""
    asked: list[Message] = []
    answered: list[Message] = []
    for message in messages:
        if message["role"] in ("user", "system") and answered:
            yield asked, answered
            asked, answered = [], []
        (answered if message["role"] not in ("user", "system") else asked).append(message)
    if asked or answered:
        yield asked, answered


def _mode_of(answered: Iterable[Message]) -> Mode | None:
    """The mode of an exchange: thinking if any of its assistant turns thinks; None without an assistant turn."""
    turns = [message for message in answered if message["role"] == "assistant"]
    if not turns:
        return None
    return "thinking" if any(turn.get("reasoning_content") for turn in turns) else "non_thinking"


def turn_modes(messages: Sequence[Message], family: Family) -> list[tuple[Mode, Mode]]:
    """For every exchange the mode its answer is in, and the mode in force there (the last flag, or the default)."""
    out: list[tuple[Mode, Mode]] = []
    so_far: list[Message] = []
    for asked, answered in _exchanges(messages):
        so_far += asked
        mode = _mode_of(answered)
        if mode is not None:
            out.append((mode, last_flag(so_far, family) or family.default_mode))
        so_far += answered
    return out


def fuse(
    modes: Sequence[Mode],
    joinable: Sequence[bool],
    sample_at: Callable[[int], Sample],
    spec: Fusion,
    family: Family,
    seed: int,
) -> Iterator[tuple[list[Message], list[Sample]]]:
    """Every conversation of the mix, with the samples it is made of."""
    for dialogue in Planner(modes, joinable, spec, family.default_mode, seed):
        samples = [sample_at(turn.place) for turn in dialogue.turns]
        yield assemble(dialogue, samples, family), samples


def describe(conversations: dict[str, Any], messages: Sequence[Message], family: Family) -> None:
    """Add one conversation to the counts of a funnel: turns by mode, flags, where they stand."""
    users = [message for message in messages if message["role"] == "user"]
    modes = [mode for mode, _ in turn_modes(messages, family)]
    for name, amount in (
        ("conversations", 1),
        ("multi_turn", len(users) > 1),
        ("thinking_turns", modes.count("thinking")),
        ("non_thinking_turns", modes.count("non_thinking")),
        ("flagged_turns", sum(last_flag([message], family) is not None for message in users)),
        ("flags_in_system", any(m["role"] == "system" and last_flag([m], family) for m in messages)),
        ("unflagged_conversations", last_flag(messages, family) is None),
    ):
        conversations[name] = conversations.get(name, 0) + int(amount)
