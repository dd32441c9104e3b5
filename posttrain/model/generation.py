"""Prompts to completions, each in its own mode and under its own thinking budget, whoever asks.

Rejection sampling, evaluation, teacher and rollouts go through `Generator`; what it returns is what a server would.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from posttrain.budget.state import BudgetRule, BudgetState
from posttrain.budget.tokens import budget_rule, opens_thinking
from posttrain.templates.families import Family, Mode, Sampling
from posttrain.templates.parse import ParsedMessage, parse
from posttrain.templates.render import Message, last_flag, render

if TYPE_CHECKING:
    from posttrain.model.decoding import Row


log = logging.getLogger("posttrain")


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        messages: the conversation up to the turn to be written.
        mode: the mode asked of the template; None leaves it to the flags in the conversation.
        thinking_budget: the model's own thinking tokens allowed; None or -1: no limit. 0 does not think.
        tools: JSON schemas of functions the model may call.
        ids: the conversation as tokens, the assistant's header included, where it is to be continued as it stands
            (`model/dialogue.py`); None: `messages` are rendered.
        prefilled: with `ids`: what they hold after that header.
        max_new_tokens: the model's own tokens at most, where that is less than the generator allows.
    """

    messages: list[Message]
    mode: Mode | None = None
    thinking_budget: int | None = None
    tools: list[dict[str, Any]] | None = None
    ids: list[int] | None = None
    prefilled: str = ""
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Completion:
    """What was answered.

    Attributes:
        prompt_ids: the rendered prompt, generation prompt included.
        completion_ids: what followed, the end-of-turn id included where one came.
        forced: one flag per completion id: put there by the budget, not by the model. Trainers mask these.
        text: the completion decoded, without the end-of-turn token.
        message: the text parsed, what the generation prompt opened included.
        prefilled: what the generation prompt wrote after the assistant's header.
        mode, thinking_budget: as asked.
        thinking_tokens: own tokens inside think blocks.
        closed_by: how the latest think block was closed (`posttrain.budget.state.ClosedBy`); None where none was.
        truncated: no end of turn came within the allowed tokens.
        log_probs: the sampler's own of every completion id, where it gives them (vLLM does).
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    forced: list[bool]
    text: str
    message: ParsedMessage
    prefilled: str
    mode: Mode | None
    thinking_budget: int | None
    thinking_tokens: int
    closed_by: str | None
    truncated: bool
    log_probs: list[float] | None = None

    @property
    def tokens(self) -> int:
        """Length of the completion, the end of turn and what a budget forced included."""
        return len(self.completion_ids)


class Generator:
    """Completes prompts with one model.

    The model may be wrapped by peft, and may be training: its mode, its configuration and the global random state are
    left as they were.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        family: renders the prompts and parses the completions.
        max_new_tokens: the model's own tokens per completion. What a budget forces comes on top, up to the length of
            the stop text, so that a budget never eats the answer's room.
        batch_size: rows decoded together. On a CPU a small model is fastest with all its rows in one batch.
        sampling: replaces the family's sampling of the modes it names.
        sharded: the parameters lie on several processes (ZeRO-3, FSDP) and are gathered forward by forward. Then all
            processes have to call at the same time, each with prompts of its own.

    Attributes:
        positions: that the model was made for; None where its configuration does not say.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        *,
        max_new_tokens: int,
        batch_size: int = 64,
        sampling: Mapping[Mode, Sampling] | None = None,
        sharded: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        self._sharded = sharded
        self._sampling = {**family.sampling, **(sampling or {})}
        self.positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._told_of_positions = False
        self._vocabulary = max(tokenizer.get_vocab().values()) + 1
        # Rows without a limit are watched under the shortest rule, which every tokenizer and family has.
        self._watching = budget_rule(tokenizer, family, stop_text=family.think_close)

    def __call__(
        self, prompts: Sequence[Prompt], *, seed: int, progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order.

        A prompt's completion follows from the weights, the prompt, the seed and its place in `prompts`, not from its
        companions or the batch size (but for float rounding, which differs between batches of different shape).

        Args:
            seed: of all sampling.
            progress: called with the number of completions that have just ended.

        Raises:
            PosttrainError: a prompt cannot be rendered; a budget that the tokenizer or the family cannot keep; scores
                that are not finite.
        """
        read = self._read(prompts)
        prefills = [prefilled for _, prefilled in read]
        rows = [
            self._row(prompt, ids, opens_thinking(prefilled, self.family), seed_of(seed, place))
            for place, (prompt, (ids, prefilled)) in enumerate(zip(prompts, read, strict=True))
        ]
        self._decode(rows, progress or (lambda count: None))
        self._tell_of_positions(rows)
        return [self._completion(*given) for given in zip(prompts, rows, prefills, strict=True)]

    def _decode(self, rows: Sequence[Row], ended: Callable[[int], None]) -> None:
        """Complete the rows; their `ids` and `state` hold the result."""
        from posttrain.model.decoding import decode
        from posttrain.model.inference import decoding_mode, lockstep

        # Long prompts first: little padding, equal prompts side by side, and memory runs out at the start if it does.
        ordered = sorted(rows, key=lambda row: (-len(row.prompt_ids), row.prompt_ids))
        with decoding_mode(self._model), lockstep(self._model) if self._sharded else nullcontext():
            for start in range(0, len(rows), self._batch_size):
                decode(
                    self._model,
                    ordered[start : start + self._batch_size],
                    eos_ids=self._watching.eos_ids,
                    vocabulary=self._vocabulary,
                    ended=ended,
                )

    def _read(self, prompts: Sequence[Prompt]) -> list[tuple[list[int], str]]:
        """The tokens of every prompt, and what they hold after the assistant's header."""
        texts = [self._render(prompt) if prompt.ids is None else "" for prompt in prompts]
        distinct = list(dict.fromkeys(filter(None, texts)))
        encoded = self.tokenizer(distinct, add_special_tokens=False)["input_ids"] if distinct else []
        ids_of = dict(zip(distinct, encoded, strict=True))
        header = f"{self.family.message_start}assistant\n"
        return [
            (ids_of[text], text.rpartition(header)[2]) if prompt.ids is None else (prompt.ids, prompt.prefilled)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _tell_of_positions(self, rows: Sequence[Row]) -> None:
        """Warn, once, of completions that went on past the positions that the model was made for."""
        room = self.positions
        past = sum(len(row.prompt_ids) + len(row.ids) > room for row in rows) if room else 0
        if past and not self._told_of_positions:
            self._told_of_positions = True
            log.warning(
                "%d of %d completions went on past the model's %d positions (prompt and answer together)",
                *(past, len(rows), room),
            )

    @cached_property
    def _limiting(self) -> BudgetRule:
        return budget_rule(self.tokenizer, self.family)

    def _render(self, prompt: Prompt) -> str:
        return render(prompt.messages, self.family, tools=prompt.tools, mode=prompt.mode, add_generation_prompt=True)

    def _row(self, prompt: Prompt, prompt_ids: list[int], thinking_open: bool, seed: int) -> Row:
        from posttrain.model.decoding import Row

        budget = prompt.thinking_budget
        limited = budget is not None and budget >= 0
        rule = self._limiting if limited else self._watching
        own_limit = min(self._max_new_tokens, prompt.max_new_tokens or self._max_new_tokens)
        return Row(
            prompt_ids=prompt_ids,
            state=BudgetState(rule, budget, thinking_open=thinking_open),
            sampling=self._sampling_of(prompt),
            seed=seed,
            limit=own_limit + (len(rule.stop_ids) if limited else 0),
            own_limit=own_limit,
            budget=budget if limited else None,
        )

    def _sampling_of(self, prompt: Prompt) -> Sampling:
        mode = prompt.mode or last_flag(prompt.messages, self.family) or self.family.default_mode
        return self._sampling[mode]

    def _completion(self, prompt: Prompt, row: Row, prefilled: str) -> Completion:
        ended = row.ids[-1] in self._watching.eos_ids
        text = self.tokenizer.decode(
            row.ids[:-1] if ended else row.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return Completion(
            prompt_ids=row.prompt_ids,
            completion_ids=row.ids,
            forced=row.state.forced,
            text=text,
            message=parse(text, self.family, prefilled=prefilled),
            prefilled=prefilled,
            mode=prompt.mode,
            thinking_budget=prompt.thinking_budget,
            thinking_tokens=row.state.thinking_tokens,
            closed_by=row.state.closed_by,
            truncated=not ended,
            log_probs=row.log_probs,
        )


def seed_of(seed: int, place: int) -> int:
    """The seed of one completion, from that of the call and its place in it."""
    digest = hashlib.blake2b(f"{seed}/{place}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
