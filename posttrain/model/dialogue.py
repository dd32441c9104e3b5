"""A conversation of several turns as tokens. Earlier turns stay as they were sampled; what comes is appended.

Rendering the whole conversation anew for each turn would change what the model said: text does not always come back as
the tokens that it was sampled as, and the served templates drop the thinking of earlier turns. The log-probabilities of
RL belong to the tokens that were sampled, so here a prompt is only ever continued. What is appended between two turns
(the end of the old turn, the user's message, the header of the next one) is what the family's template puts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from posttrain.model.generation import Completion, Prompt
from posttrain.templates.families import Family, Mode
from posttrain.templates.render import Message, render

_ANSWER = "ANSWER"


@lru_cache(maxsize=4096)
def between(text: str, family: Family, mode: Mode | None) -> tuple[str, str]:
    """What follows an assistant's end marker when the user says `text`, and what of it is after the next header.

    Markers of the family inside `text` are broken up: an environment may quote a model, and must not be made to end its
    turn by it.
    """
    for marker in _markers(family):
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    messages: list[Message] = [
        {"role": "user", "content": "QUESTION"},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": text},
    ]
    whole = render(messages, family, mode=mode, add_generation_prompt=True)
    after = whole.partition(f"{_ANSWER}{family.message_end}")[2]
    return after, after.rpartition(f"{family.message_start}assistant\n")[2]


def _markers(family: Family) -> Sequence[str]:
    return (
        family.message_start,
        family.message_end,
        family.end_of_text,
        family.think_open,
        family.think_close,
        family.tool_call_open,
        family.tool_call_close,
    )


@dataclass
class Dialogue:
    """One conversation under way.

    Attributes:
        opening: what was asked first.
        ids: tokens behind the opening prompt, the environment's among them.
        forced: one flag an id: not the model's own choice (the environment's, or a budget's). Trainers mask these.
        completions: the model's turns.
        text: what `ids` stand for.
    """

    opening: Prompt
    ids: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    text: str = ""
    _messages: list[Message] = field(default_factory=list)
    _prefilled: str = ""

    def prompt(self, own_limit: int | None = None) -> Prompt:
        """What the model is to complete next: the opening, or all that was said so far, as tokens.

        Args:
            own_limit: the model's own tokens in this turn at most; None: as many as the generator allows.
        """
        if not self.completions:
            return replace(self.opening, max_new_tokens=own_limit)
        return replace(
            self.opening,
            messages=[*self.opening.messages, *self._messages],
            ids=[*self.completions[0].prompt_ids, *self.ids],
            prefilled=self._prefilled,
            max_new_tokens=own_limit,
        )

    def take(self, completion: Completion) -> None:
        """Append the model's turn, as it was sampled."""
        self.completions.append(completion)
        self.ids += completion.completion_ids
        self.forced += completion.forced
        self.text += completion.text
        self._messages.append(completion.message.to_message())

    def tell(self, text: str, family: Family, tokenizer: Any) -> None:
        """Append what the user says, and the header of the model's next turn."""
        after, self._prefilled = between(text, family, self.opening.mode)
        end: int = tokenizer.convert_tokens_to_ids(family.message_end)
        ids = [] if self.ids[-1] == end else [end]  # the turn ended with another end of sequence
        ids += tokenizer(after, add_special_tokens=False)["input_ids"]
        self.ids += ids
        self.forced += [True] * len(ids)
        self.text += family.message_end + after
        self._messages.append({"role": "user", "content": text})
