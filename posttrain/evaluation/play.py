"""Plays environments: all live episodes take their next turn together, whoever speaks for the model.

`complete` is what rollouts of RL, pass rates and evaluations call: rows of ordinary tasks get one completion, rows of
interactive tasks (`posttrain.tasks.environment`) are played out, and come back as one completion too, with the
environment's tokens marked as not the model's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from posttrain.model.dialogue import Dialogue
from posttrain.model.generation import Completion, Prompt
from posttrain.tasks.environment import Environment, Outcome, environment_for
from posttrain.tasks.task import derive_seed
from posttrain.templates.families import Family, Mode
from posttrain.templates.parse import ParsedMessage


@dataclass(frozen=True)
class Limits:
    """What an episode may take.

    Attributes:
        tokens: behind the opening prompt, the environment's included; None: up to the model's positions.
        turn_tokens: the model's own in one turn; None: what the generator allows.
    """

    tokens: int | None = None
    turn_tokens: int | None = None


@dataclass(frozen=True)
class Played(Completion):
    """A whole episode as one completion.

    `completion_ids` hold every turn and what the environment said between them (`forced`), `message` is the last turn,
    or the first that was malformed or in another mode than asked. `truncated`: the last turn was cut off, or there was
    no room for another.

    Attributes:
        outcome: what the environment made of it.
        environment_seconds: spent inside the environment.
        messages: the conversation, the opening's included.
    """

    outcome: Outcome = field(kw_only=True)
    environment_seconds: float = field(kw_only=True)
    messages: list[dict[str, Any]] = field(kw_only=True)


@dataclass
class Episode:
    """One environment being played.

    Attributes:
        environment: reset for the row.
        opening: what the model is asked first: the row's prompt, perhaps with a flag.
        messages: said so far, the opening's included.
        cut: the player was cut off, or had no room left.
        seconds: spent inside the environment.
    """

    environment: Environment
    opening: Prompt
    messages: list[dict[str, Any]]
    done: bool = False
    cut: bool = False
    seconds: float = 0.0

    @classmethod
    def begin(cls, environment: Environment, row: Mapping[str, Any], opening: Prompt) -> Episode:
        start = time.perf_counter()
        environment.reset(row)
        return cls(environment, opening, list(opening.messages), seconds=time.perf_counter() - start)

    @property
    def live(self) -> bool:
        return not self.done and not self.cut

    def take(self, message: ParsedMessage | None) -> str | None:
        """The player's message (None: it could not finish one). Returns what the environment says, while it goes on."""
        if message is None:
            self.cut = True
            return None
        self.messages.append(message.to_message())
        start = time.perf_counter()
        reply = self.environment.step(message)
        self.seconds += time.perf_counter() - start
        self.done = reply.done
        self.messages.append({"role": "user", "content": reply.text})
        return None if reply.done else reply.text

    @property
    def outcome(self) -> Outcome:
        return self.environment.outcome


class Speaker(Protocol):
    """Speaks for the model."""

    def __call__(self, episodes: Sequence[Episode], seed: int) -> None:
        """Give every episode its next message (`Episode.take`)."""
        ...


def play(
    episodes: Sequence[Episode],
    speak: Speaker,
    *,
    seed: int,
    ended: Callable[[int], None] = lambda count: None,
    agree: Callable[[bool], bool] = lambda live: live,
) -> None:
    """Play all episodes to their ends, a turn of all live ones at a time.

    Args:
        ended: called with the number of episodes that have just ended.
        agree: whether anyone still plays, where several processes have to speak at the same time.
    """
    live, turn = [episode for episode in episodes if episode.live], 0
    while agree(bool(live)):
        speak(live, derive_seed("turn", seed, turn))
        staying = [episode for episode in live if episode.live]
        if len(staying) < len(live):
            ended(len(live) - len(staying))
        live, turn = staying, turn + 1


class Answers(Protocol):
    """Whatever answers prompts as `Generator` does: in order."""

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]: ...


@runtime_checkable
class Continues(Answers, Protocol):
    """What `Generator` has besides: it continues `Prompt.ids` as they stand."""

    family: Family
    tokenizer: Any
    positions: int | None


class TokenSpeaker:
    """A model of this process: every episode's dialogue is continued token by token, never rendered anew."""

    def __init__(self, generate: Continues, limits: Limits) -> None:
        self._generate, self._limits = generate, limits
        self.dialogues: dict[int, Dialogue] = {}

    def dialogue(self, episode: Episode) -> Dialogue:
        return self.dialogues.setdefault(id(episode), Dialogue(episode.opening))

    def __call__(self, episodes: Sequence[Episode], seed: int) -> None:
        rooms = [self._room(self.dialogue(episode)) for episode in episodes]
        speaking = [(episode, room) for episode, room in zip(episodes, rooms, strict=True) if room is None or room > 0]
        prompts = [self.dialogue(episode).prompt(room) for episode, room in speaking]
        completions = self._generate(prompts, seed=seed)
        for (episode, _), completion in zip(speaking, completions, strict=True):
            self.dialogue(episode).take(completion)
        # Environments one after another: between other work each would find the processor's caches cold.
        replies = [
            episode.take(None if completion.truncated else completion.message)
            for (episode, _), completion in zip(speaking, completions, strict=True)
        ]
        for (episode, _), told in zip(speaking, replies, strict=True):
            if told is not None:
                self._tell(episode, self.dialogue(episode), told)
        for episode, room in zip(episodes, rooms, strict=True):
            if room is not None and room <= 0:
                episode.take(None)

    def _tell(self, episode: Episode, dialogue: Dialogue, told: str) -> None:
        before = len(dialogue.ids), len(dialogue.text)
        dialogue.tell(told, self._generate.family, self._generate.tokenizer)
        room = self._room(dialogue)
        if room is not None and room <= 0:  # nobody will answer it: a completion ends with the model's own words
            dialogue.ids, dialogue.forced = dialogue.ids[: before[0]], dialogue.forced[: before[0]]
            dialogue.text = dialogue.text[: before[1]]
            episode.cut = True

    def _room(self, dialogue: Dialogue) -> int | None:
        """The model's own tokens in the next turn at most; None: as the generator has it."""
        rooms = [self._limits.turn_tokens] if self._limits.turn_tokens is not None else []
        if self._limits.tokens is not None:
            rooms.append(self._limits.tokens - len(dialogue.ids))
        positions = self._generate.positions
        if positions is not None and dialogue.completions:
            rooms.append(positions - len(dialogue.completions[0].prompt_ids) - len(dialogue.ids))
        return min(rooms) if rooms else None

    def played(self, episode: Episode, mode: Mode | None) -> Played:
        """The whole episode as one completion."""
        dialogue = self.dialogue(episode)
        return _as_one(episode, dialogue.completions, mode, dialogue.ids, dialogue.forced, dialogue.text)


class RenderingSpeaker:
    """Whatever answers conversations: each turn is asked for anew, and rendered as a server renders it.

    Its tokens are not to be trained on: a template may drop earlier thinking, and text may be tokenized otherwise.
    """

    def __init__(self, generate: Answers) -> None:
        self._generate = generate
        self.completions: dict[int, list[Completion]] = {}

    def __call__(self, episodes: Sequence[Episode], seed: int) -> None:
        prompts = [replace(episode.opening, messages=episode.messages) for episode in episodes]
        for episode, completion in zip(episodes, self._generate(prompts, seed=seed), strict=True):
            self.completions.setdefault(id(episode), []).append(completion)
            episode.take(None if completion.truncated else completion.message)

    def played(self, episode: Episode, mode: Mode | None) -> Played:
        """The whole episode as one completion, with the model's own tokens alone."""
        turns = self.completions[id(episode)]
        ids = [token for turn in turns for token in turn.completion_ids]
        forced = [flag for turn in turns for flag in turn.forced]
        text = "\n\n".join(f"{message['role']}: {message['content']}" for message in episode.messages[1:])
        return _as_one(episode, turns, mode, ids, forced, text)


def _as_one(
    episode: Episode, turns: Sequence[Completion], mode: Mode | None, ids: list[int], forced: list[bool], text: str
) -> Played:
    """An episode, asked for in a mode (by template or by flag), as one completion."""
    shown = next((turn for turn in turns if _off_form(turn.message, mode)), turns[-1])
    return Played(
        prompt_ids=turns[0].prompt_ids,
        completion_ids=ids,
        forced=forced,
        text=text,
        message=shown.message,
        prefilled=shown.prefilled,
        mode=episode.opening.mode,
        thinking_budget=episode.opening.thinking_budget,
        thinking_tokens=sum(turn.thinking_tokens for turn in turns),
        closed_by="budget" if any(turn.closed_by == "budget" for turn in turns) else turns[-1].closed_by,
        truncated=episode.cut,
        outcome=episode.outcome,
        environment_seconds=episode.seconds,
        messages=episode.messages,
    )


def _off_form(message: ParsedMessage, mode: Mode | None) -> bool:
    return not message.well_formed or (mode is not None and message.mode != mode)


def complete(
    generate: Answers,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    *,
    seed: int,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
    agree: Callable[[bool], bool] | None = None,
) -> list[Completion]:
    """One completion a row, in order: rows of interactive tasks are played, the others are answered.

    What continues tokens (`Continues`) keeps every turn as it was sampled; whatever else answers, as a served model, is
    asked turn by turn with the messages so far.

    Args:
        generate: a `Generator`, or what answers as it does.
        prompts: how each row is asked.
        seed: of all sampling.
        progress: called with the number of rows that are done.
        agree: as in `play`, where several processes have to generate at the same time; all of them then call this.
    """
    environments = {at: made for at, row in enumerate(rows) if (made := environment_for(row)) is not None}
    single = [at for at in range(len(rows)) if at not in environments]
    done: dict[int, Completion] = {}
    if single or agree is not None:
        answers = generate([prompts[at] for at in single], seed=seed, progress=progress)
        done = dict(zip(single, answers, strict=True))
    if environments or agree is not None:
        speaker: TokenSpeaker | RenderingSpeaker = RenderingSpeaker(generate)
        if isinstance(generate, Continues):
            speaker = TokenSpeaker(generate, limits or Limits())
        episodes = {at: Episode.begin(made, rows[at], prompts[at]) for at, made in environments.items()}
        ended, agreed = progress or (lambda count: None), agree or (lambda live: live)
        play(list(episodes.values()), speaker, seed=seed, ended=ended, agree=agreed)
        done |= {at: speaker.played(episode, rows[at].get("mode")) for at, episode in episodes.items()}
    return [done[at] for at in range(len(rows))]
