"""What the budget has to know of the model that vLLM serves, and what it refuses to start with.

Ids come from the model's own tokenizer. The family is the one that a checkpoint of ours names (`posttrain.json`), else
the one whose chat template the model has, else Qwen3's: its markers, `<think>` and `</think>`, are what other reasoning
models have as well. What writes the assistant's header is the model's own chat template.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.budget.request import BudgetRequest
from posttrain.budget.state import BudgetRule, BudgetState
from posttrain.budget.tokens import budget_rule
from posttrain.budget.vllm_request import request_of
from posttrain.budget.vllm_rows import PLACEHOLDER, Row
from posttrain.errors import PosttrainError, Problem
from posttrain.templates.families import FAMILIES, Family

log = logging.getLogger(__name__)

RULES = 256  # stop texts whose ids are kept


class ServedModel:
    """The ids of a served model.

    Args:
        tokenizer: a transformers tokenizer.
        family: of the model.
        ends: further ids that end a turn, from the model's generation configuration.
        longest: tokens that prompt and completion may have together.
        grammar_first: structured output leaves no room for thinking; vLLM knows of none without a reasoning parser.

    Attributes:
        ends: the ids that can end thinking or the turn.
        marks: the ids that a watcher must not overlook, PLACEHOLDER among them.

    Raises:
        PosttrainError: the tokenizer does not know the family's markers.
    """

    def __init__(
        self, tokenizer: Any, family: Family, ends: Sequence[int] = (), *, longest: int, grammar_first: bool = True
    ) -> None:
        self._longest = longest
        self._grammar_first = grammar_first
        self._tokenizer = tokenizer
        self._family = family
        self._more_ends = frozenset(ends)
        self._header = tokenizer.encode(_header(tokenizer, family), add_special_tokens=False)
        self.rule = functools.lru_cache(RULES)(self._rule)
        shortest = self.rule("", answer_follows=False)
        self.ends, self.marks = shortest.end_ids, shortest.marks | {PLACEHOLDER}

    def _rule(self, stop_text: str | None, answer_follows: bool = True) -> BudgetRule:
        """The rule with a stop text (None: the family's). `answer_follows=False`: nothing is forced after the close
        marker, where a grammar takes over."""
        try:
            rule = budget_rule(self._tokenizer, self._family, stop_text=stop_text)
        except PosttrainError:
            if stop_text is None:
                raise
            rule = self._spelled(stop_text)
        stop_ids = rule.stop_ids if answer_follows else rule.lead_ids + rule.close_ids
        return dataclasses.replace(rule, stop_ids=stop_ids, eos_ids=rule.eos_ids | self._more_ends)

    def _spelled(self, stop_text: str) -> BudgetRule:
        """The rule with a stop text that the tokenizer blends with the close marker: what stands before and after it is
        encoded by itself. A request must not bring an engine down."""
        before, _, after = stop_text.partition(self._family.think_close)
        rule = budget_rule(self._tokenizer, self._family, stop_text="")
        lead, tail = (tuple(self._tokenizer.encode(part, add_special_tokens=False)) for part in (before, after))
        return dataclasses.replace(rule, stop_ids=lead + rule.close_ids + tail)

    def limits(self, sampling_params: Any) -> bool:
        """Whether anything can be forced on a request."""
        if self._grammar_first and _is_structured(sampling_params):
            return False  # the grammar holds from the first token on: all of it is answer
        return request_of(sampling_params).limited

    def row(
        self, sampling_params: Any, prompt_ids: Sequence[int], read: Callable[[int, int], Sequence[int]]
    ) -> Row | None:
        """The row of a request, before its first token; None where nothing can be forced.

        Args:
            read: the completion's tokens from one place to another, as far as they are known.
        """
        if not self.limits(sampling_params):
            return None
        fresh, _ = self.fresh(sampling_params, prompt_ids)
        return Row(fresh, read, self.marks, sampling_params.temperature)

    def fresh(self, sampling_params: Any, prompt_ids: Sequence[int]) -> tuple[Callable[[], BudgetState], BudgetRequest]:
        """What makes a request's state before its first token, and what the request asks for. The frontend, which tells
        what happened, and the processor, which makes it happen, begin with the same."""
        request = request_of(sampling_params) if self.limits(sampling_params) else BudgetRequest()
        rule = self.rule(request.stop_text, answer_follows=not _is_structured(sampling_params))
        if request.minimum and not rule.continue_ids:
            log.warning("thinking_minimum is left out: the tokenizer cannot write the continuation")
            request = dataclasses.replace(request, minimum=0)
        left = max(0, self._longest - len(prompt_ids))
        state = functools.partial(
            BudgetState,
            rule,
            request,
            thinking_open=self.opens_thinking(prompt_ids),
            max_tokens=left if sampling_params.max_tokens is None else min(sampling_params.max_tokens, left),
        )
        return state, request

    def opens_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside an open block, written after its last assistant's header.

        What stands before that header was said in earlier turns or typed by a user, and opens nothing. A prompt without
        a header (a raw completion) is read whole.
        """
        rule = self.rule("", answer_follows=False)
        prompt = list(prompt_ids)
        start = _last(prompt, self._header, len(prompt))
        written = prompt[start + len(self._header) :] if start >= 0 else prompt
        opened = _last(written, rule.open_ids, len(written))
        return opened > _last(written, rule.close_ids, len(written))


def served_model(vllm_config: Any) -> ServedModel:
    """The model of a vLLM configuration. Raises PosttrainError for what cannot be budgeted."""
    from transformers import AutoTokenizer

    config = vllm_config.model_config
    tokenizer = AutoTokenizer.from_pretrained(
        config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
    )
    return ServedModel(
        tokenizer,
        model_family(Path(config.model), tokenizer),
        _generation_ends(config),
        longest=config.max_model_len,
        grammar_first=grammar_holds_from_start(vllm_config),
    )


def model_family(directory: Path, tokenizer: Any) -> Family:
    """The family of a model: its own word, else its chat template's, else Qwen3's if it has think markers.

    Raises:
        PosttrainError: it does not think.
    """
    family = None
    record = directory / "posttrain.json"
    if record.is_file():
        said = json.loads(record.read_text(encoding="utf-8"))
        if said.get("family") in FAMILIES:
            known = FAMILIES[said["family"]]
            family = dataclasses.replace(known, stop_thinking=said.get("stop_thinking", known.stop_thinking))
    if family is None and tokenizer.chat_template:
        from posttrain.templates.render import template_text

        family = next((each for each in FAMILIES.values() if template_text(each) == tokenizer.chat_template), None)
    family = family or FAMILIES["qwen3"]
    vocabulary = tokenizer.get_vocab()
    if not family.thinks or not {family.think_open, family.think_close} <= vocabulary.keys():
        raise PosttrainError(
            Problem(
                what=f"the model at {directory} has no thinking to budget",
                why=f"family {family.name}, think markers "
                + ("in the vocabulary" if family.think_open in vocabulary else "not in the vocabulary"),
                remedy="serve it without posttrain's logits processor",
            )
        )
    return family


def refusals(vllm_config: Any) -> Iterator[Problem]:
    """What this processor cannot enforce: vLLM must not start with it. Both runners."""
    model = vllm_config.model_config
    if model.skip_tokenizer_init:
        yield Problem(
            "--skip-tokenizer-init", why="the budget's ids come from the tokenizer", remedy="leave the option out"
        )
    if getattr(model, "enable_prompt_embeds", False):
        why = "a prompt of embeddings has no ids, so nobody knows whether it ends inside thinking"
        yield Problem("--enable-prompt-embeds", why=why, remedy="leave the option out")
    if getattr(vllm_config.structured_outputs_config, "enable_in_reasoning", False):
        why = "a grammar over the thinking forbids the text that the budget forces"
        yield Problem("structured outputs inside the reasoning", why=why, remedy="leave enable_in_reasoning out")
    if getattr(model, "is_diffusion", False):
        yield Problem("a diffusion model", why="it does not write token by token", remedy="serve it without a budget")


def grammar_holds_from_start(vllm_config: Any) -> bool:
    """Whether structured output leaves no room for thinking: vLLM knows of none without a reasoning parser."""
    return not getattr(vllm_config.structured_outputs_config, "reasoning_parser", "")


def _is_structured(sampling_params: Any) -> bool:
    return getattr(sampling_params, "structured_outputs", None) is not None


def _header(tokenizer: Any, family: Family) -> str:
    """What begins an assistant's turn in this model's own template; the family's where there is none."""
    messages = [{"role": "user", "content": "."}]
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        turn = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except Exception:  # a template may raise whatever it likes
        whole = turn = ""
    header = str(whole[len(turn) :]).split(family.think_open)[0].rstrip() if whole.startswith(turn) else ""
    return header or f"{family.message_start}assistant"


def _generation_ends(model_config: Any) -> list[int]:
    ends = (model_config.try_get_generation_config() or {}).get("eos_token_id")
    return [ends] if isinstance(ends, int) else list(ends or ())


def _last(ids: Sequence[int], part: Sequence[int], end: int) -> int:
    """Where `part` begins for the last time in ids[:end]; -1: nowhere."""
    part = list(part)
    size = len(part)
    for start in range(end - size, -1, -1):
        if ids[start] == part[0] and list(ids[start : start + size]) == part:
            return start
    return -1
