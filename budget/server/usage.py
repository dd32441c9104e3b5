"""What the thinking of an answer came to, counted as the engine's tokens go by, and written into the answer. Pure.

Every token that the engine delivers is shown to the same state machine that the processor runs
(`posttrain.budget.state`). So the counts are the rule's own, in every API and whether streamed or not, and an engine
that did not obey the rule is noticed. One thing cannot be seen: an end of turn inside thinking, whose
probability the processor gives to the close marker before anything is sampled, counts as `natural`.

In an answer stand, beside what the API itself defines:

| where | what |
|---|---|
| `usage.completion_tokens_details` (chat, completions), `usage.output_tokens_details` (responses, messages) | `reasoning_tokens` (messages: `thinking_tokens`), `thinking_closed_by`, `thinking_forced_tokens`, `thinking_budget`, `thinking_notes` |
| `choices[i].thinking` (chat, completions; streamed: in the chunk with the `finish_reason`) | `tokens`, `closed_by`, `forced_tokens` |

`closed_by` is the rule's word (`natural`, `budget`, ...), "unclosed" where the answer ended inside thinking, "unknown"
where the engine disobeyed, null where nothing was thought. For several choices that differ the usage says "mixed".
"""  # noqa: E501  a table

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from posttrain.budget.request import BudgetRequest
from posttrain.budget.state import BudgetState

logger = logging.getLogger("posttrain.budget.server")

Opened = tuple[BudgetState, BudgetRequest]
Open = Callable[[Any, Sequence[int]], Opened]  # vLLM's sampling parameters and the prompt's ids -> a fresh state


class Choice:
    """One completion as it grows.

    Attributes:
        request: what was asked of its budget, the server's part included.
        finished: the engine delivered its last token.
        obeyed: False where the engine delivered another id than the budget forced; what followed was not looked at.
    """

    def __init__(self, state: BudgetState, request: BudgetRequest) -> None:
        self.request = request
        self.finished = False
        self.obeyed = True
        self._state = state
        self._seen = 0

    def take(self, ids: Sequence[int], *, whole: bool) -> None:
        """The next ids; with `whole`, all since the first one."""
        fresh = ids[self._seen :] if whole else ids
        self._seen += len(fresh)
        if not self.obeyed:
            return
        try:
            self._state.replay(fresh)
        except RuntimeError as error:
            self.obeyed = False
            logger.error("a thinking budget was not enforced: %s", error)

    @property
    def tokens(self) -> int:
        """The model's own thinking tokens."""
        return self._state.thinking_tokens

    @property
    def forced_tokens(self) -> int:
        return len(self._state.outcome().forced_positions)

    @property
    def closed_by(self) -> str | None:
        if not self.obeyed:
            return "unknown"
        return "unclosed" if self._state.thinking else self._state.closed_by


class Ledger:
    """The completions of one HTTP request.

    Args:
        done: called with each completion once, when it is finished or given up.

    Attributes:
        answer_id: what /v1/responses calls its answer, once it said so.
    """

    def __init__(self, done: Callable[[Choice], None] = lambda choice: None) -> None:
        self.choices: dict[int, Choice] = {}
        self.idle = False  # what is generated is not one completion after another (beams): say nothing about it
        self.answer_id: str | None = None
        self._calls = 0
        self._done = done

    def watch(self, outputs: AsyncGenerator[Any, None], params: Any, open_state: Open) -> AsyncGenerator[Any, None]:
        """The same outputs, each noted before it is passed on. `params`: of vLLM's sampling, for this prompt."""
        if self.idle:
            return outputs
        first = self._calls * (params.n or 1)  # choices of a request with several prompts follow each other
        self._calls += 1
        return self._watch(outputs, params, open_state, first)

    async def _watch(
        self, outputs: AsyncGenerator[Any, None], params: Any, open_state: Open, first: int
    ) -> AsyncGenerator[Any, None]:
        whole = params.output_kind.name != "DELTA"
        own: dict[int, Choice] = {}
        prompt_ids: Sequence[int] = ()
        try:
            async with contextlib.aclosing(outputs):
                async for result in outputs:
                    prompt_ids = result.prompt_token_ids or prompt_ids
                    for output in result.outputs:
                        place = first + output.index
                        if place not in own:
                            own[place] = self.choices[place] = Choice(*open_state(params, prompt_ids))
                        own[place].take(output.token_ids, whole=whole)
                        own[place].finished |= output.finish_reason is not None
                    yield result
        finally:
            for choice in own.values():
                self._done(choice)

    def details(self, tokens_name: str = "reasoning_tokens") -> dict[str, Any]:
        """What goes into the details of the usage."""
        choices = list(self.choices.values())
        ends = {choice.closed_by for choice in choices}
        found: dict[str, Any] = {
            tokens_name: sum(choice.tokens for choice in choices),
            "thinking_closed_by": ends.pop() if len(ends) == 1 else "mixed",
            "thinking_forced_tokens": sum(choice.forced_tokens for choice in choices),
            "thinking_budget": choices[0].request.thinking_budget,
        }
        if choices[0].request.notes:
            found["thinking_notes"] = list(choices[0].request.notes)
        return found

    def of_choice(self, place: int) -> dict[str, Any] | None:
        """What goes into a choice; None where the engine said nothing about it."""
        choice = self.choices.get(place)
        if choice is None:
            return None
        return {"tokens": choice.tokens, "closed_by": choice.closed_by, "forced_tokens": choice.forced_tokens}

    # --- answers

    def complete(self, answer: bytes) -> bytes:
        """A whole answer (JSON) with the figures in it."""
        content = _parsed(answer)
        return _text(content) if content is not None and self._write(content) else answer

    def complete_event(self, event: bytes) -> bytes:
        """One event of a stream (without its empty line) with the figures in it, if it is one to have them."""
        if b'"usage"' not in event and b'"finish_reason":"' not in event:
            return event
        head, mark, data = event.rpartition(b"data: ")
        content = _parsed(data) if mark else None
        return head + mark + _text(content) if content is not None and self._write(content) else event

    def _write(self, content: dict[str, Any]) -> bool:
        answer = content.get("response") if "response" in content else content
        if isinstance(answer, dict) and answer.get("object") == "response":
            self.answer_id = answer.get("id")
        if not self.choices:
            return False
        changed = False
        if isinstance(content.get("choices"), list):  # chat and completions, whole or a chunk
            for choice in content["choices"]:
                if choice.get("finish_reason") and (found := self.of_choice(choice.get("index", 0))):
                    choice["thinking"] = found
                    changed = True
            return self._write_usage(content, "completion_tokens_details") or changed
        if content.get("type") in ("message", "message_delta"):
            return self._write_usage(content, "output_tokens_details", "thinking_tokens")
        return isinstance(answer, dict) and self._write_usage(answer, "output_tokens_details")

    def _write_usage(self, answer: dict[str, Any], key: str, tokens_name: str = "reasoning_tokens") -> bool:
        usage = answer.get("usage")
        if not isinstance(usage, dict):
            return False
        usage[key] = {**(usage.get(key) or {}), **self.details(tokens_name)}
        return True


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
