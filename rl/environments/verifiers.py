"""`verifiers:NAME`: environments written for the verifiers library (`pip install posttrain[verifiers]`).

The library plays a rollout itself, as a coroutine that asks an endpoint for every message of the model. Here that
coroutine runs as it is, in an event loop with a thread of its own, and its client is a stand-in: what is asked of it
waits until the player has spoken. So whatever an environment overrides (its state, its stops, its clean-up) counts, and
what it awaits (a judge, a sandbox) is awaited.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.environments.counted import Counted
from posttrain.rl.environments.verifiers_library import full_marks, library_here, load, loop, part_for
from posttrain.tasks.environment import Reply
from posttrain.tasks.task import Query, derive_seed, make_query, plain_message, text_key
from posttrain.templates.parsed import ParsedMessage

SECONDS = 300.0
"""What one turn of an environment may take."""


class Player:
    """Stands where the library expects an endpoint's client: a request waits for the player's next message."""

    def __init__(self) -> None:
        self.chat = self.completions = self
        self.asked: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue()
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    async def create(self, *, messages: list[dict[str, Any]], **options: Any) -> Any:
        await self.asked.put(messages)
        return await self.said.get()


class VerifiersEnvironment(Counted):
    """One rollout of one of the library's environments."""

    def __init__(self, member: str) -> None:
        self.name = f"verifiers:{member}"
        self._member = member

    def begin(self, row: Mapping[str, Any]) -> tuple[str, int]:
        kept = json.loads(row["entry"])
        self._part = part_for(self._member, kept["arguments"], kept["row"].get("task", ""))
        self._player, self._over_there = Player(), False
        self._asked = self._wait(self._start(kept["row"])) or []
        return text_of(row["prompt"][-1:]), self._part.max_turns

    def opening(self) -> list[dict[str, Any]]:
        """The messages that the environment began with.

        Raises:
            Exception: whatever kept it from beginning.
        """
        if not self._asked:
            self._rollout.result()
        return self._asked

    async def _start(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        self._rollout = asyncio.ensure_future(_play(self._part, row, self._player))
        # An episode that nobody ends is left by the player: the environment is told, and may clean up.
        weakref.finalize(self, _cancel, self._rollout).atexit = False
        return await self._until_asked()

    async def _until_asked(self, said: Any = None) -> list[dict[str, Any]] | None:
        """What is asked of the player next, the conversation so far; None where the rollout is over."""
        if said is not None:
            self._player.said.put_nowait(said)
        asked = asyncio.ensure_future(self._player.asked.get())
        done, _ = await asyncio.wait({asked, self._rollout}, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if asked in done:
            return asked.result()
        asked.cancel()
        if not done:
            self._rollout.cancel()
            raise TimeoutError(f"no reply within {SECONDS:g} seconds")
        return None

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop()).result()

    def answer(self, message: ParsedMessage) -> Reply:
        valid = bool(message.content.strip())
        if self._over_there:
            return Reply("It is over.", valid=False, done=True)
        self._over_there = True  # so too where the lines below raise
        asked = self._wait(self._until_asked(_completion(_answer_of(message, self._part))))
        if asked is None:
            return self._end(self._rollout.result(), valid)
        said, before = asked[len(self._asked) + 1 :], asked[: len(self._asked)]
        if before != self._asked:
            raise ValueError("it rewrites what was said before, which cannot be trained on as one conversation")
        self._asked, self._over_there = asked, False
        return Reply(text_of(said), valid=valid)

    def _end(self, state: Any, valid: bool) -> Reply:
        if state["error"] is not None:
            raise state["error"]
        score = float(state["reward"]) / full_marks(self._part)
        if not math.isfinite(score):
            raise ValueError(f"its rubric gave {state['reward']}")
        return Reply(text_of(state["final_env_response"] or []) or "It is over.", valid=valid, done=True, score=score)


def _cancel(rollout: asyncio.Future[Any]) -> None:
    loop().call_soon_threadsafe(rollout.cancel)


async def _play(part: Any, row: Mapping[str, Any], player: Player) -> Any:
    """A rollout by the library, and its score by the environment's rubric."""
    state = await part.rollout(row, client=player, model="policy", sampling_args={})
    await part.rubric.score_group([state])  # as the library scores by default; here each rollout is by itself
    return state


def _answer_of(message: ParsedMessage, part: Any) -> str:
    """The content alone: what stands in the thinking moves nothing. A parser that looks for a think block gets one."""
    content = message.content if message.content.strip() else " "  # an empty answer is an endpoint's fault, over there
    if isinstance(part.parser, library_here().ThinkParser):
        return f"<think>\n{message.reasoning or ''}\n</think>\n\n{content}"
    return content


def _completion(content: str) -> Any:
    """A message as an endpoint would have sent it."""
    from openai.types.chat import ChatCompletion

    message = {"role": "assistant", "content": content}
    choice = {"finish_reason": "stop", "index": 0, "logprobs": None, "message": message}
    fields = {"id": "turn", "choices": [choice], "created": 0, "model": "policy", "object": "chat.completion"}
    return ChatCompletion.model_validate(fields)


class Verifiers:
    """An environment of the verifiers library, by the name of its package.

    Options of `queries`: `arguments`, what its `load_environment` is given; `split`, its `train` or `eval` rows.
    """

    rewards: Mapping[str, float] = {"environment": 1.0}

    def __init__(self, member: str) -> None:
        self.name = f"verifiers:{member}"
        self._member = member
        library_here()

    def environment(self) -> VerifiersEnvironment:
        return VerifiersEnvironment(self._member)

    def queries(
        self, size: int, seed: int, *, arguments: Mapping[str, Any] | None = None, split: str = "train"
    ) -> Iterator[Query]:
        if split not in ("train", "eval"):
            raise PosttrainError(Problem(f"split is train or eval, not {split!r}", f"{self.name}: options"))
        if not isinstance(arguments or {}, Mapping):
            raise PosttrainError(
                Problem(f"arguments are names with values, not {arguments!r}", f"{self.name}: options")
            )
        loaded = load(self._member, arguments or {})
        rows = loaded.get_dataset() if split == "train" and loaded.build_dataset() else loaded.get_eval_dataset()
        if size > len(rows):
            remedy = f"ask for size: {len(rows)} at most"
            raise PosttrainError(Problem(f"{self.name} has {len(rows)} {split} rows, not {size}", remedy=remedy))
        places = random.Random(derive_seed(self.name, split, seed)).sample(range(len(rows)), size)
        if places:
            self._try(self._query(rows[places[0]], places[0], split, arguments or {}))
        return (self._query(rows[place], place, split, arguments or {}) for place in places)

    def score(self, content: str, query: Mapping[str, Any]) -> float:
        """The score of an episode that one message decides."""
        environment = self.environment()
        environment.reset(query)
        environment.step(plain_message(content))
        return environment.outcome.score

    def gold(self, query: Mapping[str, Any]) -> str:
        raise PosttrainError(Problem(f"{self.name}: the library says no solution that its rubric is sure to reward"))

    def problem(self, answer: str) -> str | None:
        """Why a row of a file without an `entry` cannot be scored."""
        return "an environment needs an `entry`, which only queries made by the task have"

    def _query(self, row: Mapping[str, Any], place: int, split: str, arguments: Mapping[str, Any]) -> Query:
        # Arrow gives every message the keys of all: what is null was not there.
        prompt = [{key: value for key, value in said.items() if value is not None} for said in row["prompt"]]
        try:
            entry = json.dumps({"row": {**row, "prompt": prompt}, "arguments": arguments})
            messages = [{"role": said["role"], "content": text_of([said])} for said in prompt]
        except (TypeError, ValueError) as error:
            raise PosttrainError(Problem(f"{self.name}: row {place} cannot be asked", why=str(error))) from error
        return make_query(
            id=f"{self._member}-{split}-{place}",
            prompt=messages,
            answer=str(row.get("answer") or ""),
            task=self.name,
            domain="verifiers",
            key=text_key(json.dumps([messages, row.get("answer"), row.get("info")])),
            entry=entry,
        )

    def _try(self, query: Query) -> None:
        """Begin the first query, so that what cannot be played is refused before a run."""
        environment = self.environment()
        try:
            environment.reset(query)
            opening = environment.opening()
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            raise PosttrainError(Problem(f"{self.name} cannot be played here", why=why)) from error
        if [text_of([said]) for said in opening] != [said["content"] for said in query["prompt"]]:
            why = "it does not begin with its rows' prompts, so these are no queries"
            raise PosttrainError(Problem(f"{self.name} cannot be played here", why=why))


def text_of(messages: Any) -> str:
    """What messages say, without their roles.

    Raises:
        ValueError: one holds something else than text.
    """
    if isinstance(messages, str):
        return messages
    return "\n".join(_text(message.get("content") or "") for message in messages)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if all(part.get("type") == "text" for part in content):
        return "\n".join(part["text"] for part in content)
    raise ValueError("a message holds something else than text")
