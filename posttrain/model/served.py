"""Answers of a served model, as `generation.Generator` gives those of a model here.

The server renders the conversation and decodes; the mode goes to its template as `enable_thinking`, a thinking budget
as `thinking_budget`, which `posttrain serve` obeys. A server with a reasoning parser hands the thinking out apart from
the answer: both are put together again and read by our own parser, so what is malformed is noticed either way.

No seed is sent: a server batches requests as they come, so a seed would not make it repeat itself, and vLLM leaves its
fast sampling kernels for requests that bring one.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.endpoint import Endpoint, ask_together
from posttrain.model.generation import Completion, Prompt, seed_of
from posttrain.model.http import Reply
from posttrain.model.served_messages import read_call, sent_messages
from posttrain.templates.families import Family, Mode, Sampling
from posttrain.templates.parse import parse
from posttrain.templates.render import last_flag

log = logging.getLogger("posttrain")

TOO_LONG = ("context length", "max_tokens", "max_model_len", "too long")
"""What servers say of a request that is refused because prompt and answer do not fit in the model's positions."""


@dataclass(frozen=True)
class ServedCompletion(Completion):
    """A completion of a served model. Token ids are there where the server gives them (vLLM), else empty.

    Attributes:
        counted: the server's own count of the completion's tokens.
    """

    counted: int = 0

    @property
    def tokens(self) -> int:
        return self.counted


class ServedGenerator:
    """Completes prompts with a served model.

    Args:
        endpoint: the model.
        family: its dialect; parses what it says.
        max_new_tokens: per completion.
        sampling: replaces the family's sampling of the modes it names.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        family: Family,
        *,
        max_new_tokens: int,
        sampling: Mapping[Mode, Sampling] | None = None,
    ) -> None:
        self.endpoint, self._family, self._max_new_tokens = endpoint, family, max_new_tokens
        self._sampled = {mode: _fields(one) for mode, one in {**family.sampling, **(sampling or {})}.items()}
        self._too_long = 0

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order. `seed` is not sent.

        Raises:
            PosttrainError: the server failed for good, refuses, or ignores what is asked.
        """
        done: dict[int, Completion] = {}
        for place, completion in self.stream((prompt, seed_of(seed, at)) for at, prompt in enumerate(prompts)):
            done[place] = completion
            if progress:
                progress(1)
        return [done[place] for place in range(len(prompts))]

    def stream(self, asked: Iterable[tuple[Prompt, int]]) -> Iterator[tuple[int, Completion]]:
        """Completions as they come, each with the number of its prompt."""
        for _, number, completion in stream_together([((self, prompt) for prompt, _ in asked)]):
            yield number, completion

    def tell_refused(self) -> None:
        """Log how many prompts were too long, if any were."""
        if self._too_long:
            what = "%d prompts were refused: with max_new_tokens (%d) they do not fit in the positions of %s"
            log.warning(what, self._too_long, self._max_new_tokens, self.endpoint.who)

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The request for a prompt."""
        mode = prompt.mode or last_flag(prompt.messages, self._family) or self._family.default_mode
        body: dict[str, Any] = {
            "messages": sent_messages(prompt.messages, self._family),
            "max_tokens": self._max_new_tokens,
            "return_token_ids": True,
            **self._sampled[mode],
        }
        if prompt.mode is not None and len(self._family.modes) > 1:
            body["chat_template_kwargs"] = {"enable_thinking": prompt.mode == "thinking"}
        if _limited(prompt):
            body["thinking_budget"] = prompt.thinking_budget
        if prompt.tools:
            body["tools"] = prompt.tools
        return body

    def completion(self, prompt: Prompt, reply: Reply) -> Completion:
        """What a prompt was answered.

        Raises:
            PosttrainError: it was refused for another reason than its length, or its thinking budget was ignored.
        """
        if reply.refused:
            return self._refused(prompt, reply.refused)
        choice = reply.body["choices"][0]
        said = choice["message"]
        text, prefilled = self._text(prompt, said)
        message = parse(text, self._family, prefilled=prefilled)
        if said.get("tool_calls"):
            message = dataclasses.replace(message, tool_calls=tuple(map(read_call, said["tool_calls"])))
        thinking = _object(choice.get("thinking"))  # what `posttrain serve` says of it
        if _limited(prompt) and not thinking:
            raise PosttrainError(
                Problem(
                    f"{self.endpoint.who} at {self.endpoint.spec.endpoint} ignores thinking budgets",
                    why="answers would be longer than asked for, and nobody would know",
                    remedy="serve the model with `posttrain serve`, or ask for no `thinking_budget`",
                )
            )
        usage = _object(reply.body.get("usage"))
        details = _object(usage.get("completion_tokens_details"))
        ids = _ids(choice.get("token_ids"))
        return ServedCompletion(
            prompt_ids=_ids(reply.body.get("prompt_token_ids")),
            completion_ids=ids,
            forced=[False] * len(ids),  # which ones were is not told; who trains on ids of a server asks for no budget
            text=text,
            message=message,
            prefilled=prefilled,
            mode=prompt.mode,
            thinking_budget=prompt.thinking_budget,
            thinking_tokens=_count(thinking.get("tokens")) or _count(details.get("reasoning_tokens")),
            closed_by=thinking.get("closed_by") or ("natural" if message.closed and message.reasoning else None),
            truncated=choice.get("finish_reason") not in ("stop", "tool_calls"),
            counted=_count(usage.get("completion_tokens")) or len(ids),
        )

    def _text(self, prompt: Prompt, said: Mapping[str, Any]) -> tuple[str, str]:
        """The completion's text, and what the generation prompt before it wrote of the think block."""
        family = self._family
        content = str(said.get("content") or "")
        reasoning = said.get("reasoning") or said.get("reasoning_content")
        if reasoning:
            close = f"\n{family.think_close}\n\n" if content or said.get("tool_calls") else ""
            return f"{family.think_open}\n{reasoning.strip()}{close}{content.lstrip()}", ""
        if content.lstrip().startswith(family.think_open):
            return content, ""
        thought, closed, _ = content.partition(family.think_close)
        if closed and family.think_open not in thought:
            return content, f"{family.think_open}\n"  # the server's template opened the block, ours may not
        return content, family.prefill[prompt.mode or family.default_mode]

    def _refused(self, prompt: Prompt, reason: str) -> Completion:
        """A prompt that the server refuses because of its length is one that could not be finished; else an error."""
        if not any(mark in reason for mark in TOO_LONG):
            what = f"{self.endpoint.who} at {self.endpoint.spec.endpoint} refuses what it is asked: {reason}"
            raise PosttrainError(Problem(what, remedy="see what it was started with, and what the stage asks for"))
        self._too_long += 1
        return ServedCompletion(
            prompt_ids=[],
            completion_ids=[],
            forced=[],
            text="",
            message=parse("", self._family),
            prefilled="",
            mode=prompt.mode,
            thinking_budget=prompt.thinking_budget,
            thinking_tokens=0,
            closed_by=None,
            truncated=True,
        )


Asked = Iterable[tuple[ServedGenerator, Prompt]]
"""Prompts for one server, whose requests in flight they share; each with the generator that says how it is sampled."""


def stream_together(asked: Sequence[Asked]) -> Iterator[tuple[int, int, Completion]]:
    """Completions of several servers as they come, each with the place of its list and the number of its prompt there.

    Args:
        asked: a list of prompts for each server.
    """
    asking = [_Asking(place, one) for place, one in enumerate(asked)]
    asking = [one for one in asking if one.first is not None]
    for at, reply in ask_together([(one.endpoint, "chat/completions", one.bodies()) for one in asking]):
        yield asking[at].place, reply.place, asking[at].completion(reply)
    for generator in dict.fromkeys(generator for one in asking for generator in one.generators):
        generator.tell_refused()


class _Asking:
    """What one server is asked."""

    def __init__(self, place: int, asked: Asked) -> None:
        self.place, self._iterator = place, iter(asked)
        self.first = next(self._iterator, None)
        self.generators: dict[ServedGenerator, None] = {}
        self._waiting: dict[int, tuple[ServedGenerator, Prompt]] = {}

    @property
    def endpoint(self) -> Endpoint:
        assert self.first is not None
        return self.first[0].endpoint

    def bodies(self) -> Iterator[dict[str, Any]]:
        assert self.first is not None
        for number, (generator, prompt) in enumerate(itertools.chain([self.first], self._iterator)):
            self._waiting[number] = generator, prompt
            self.generators[generator] = None
            yield generator.body(prompt)

    def completion(self, reply: Reply) -> Completion:
        generator, prompt = self._waiting.pop(reply.place)
        return generator.completion(prompt, reply)


def _fields(sampling: Sampling) -> dict[str, Any]:
    """Of a request; what is off is left out."""
    return {key: value for key, value in dataclasses.asdict(sampling).items() if value or key == "temperature"}


def _limited(prompt: Prompt) -> bool:
    return prompt.thinking_budget is not None and prompt.thinking_budget >= 0


def _object(given: Any) -> Mapping[str, Any]:
    """What a server says beside its answer, where it is an object. Some leave it out, some write what they like."""
    return given if isinstance(given, dict) else {}


def _count(given: Any) -> int:
    return given if type(given) is int and given > 0 else 0


def _ids(given: Any) -> list[int]:
    return given if isinstance(given, list) and all(type(id) is int for id in given) else []
