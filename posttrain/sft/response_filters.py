"""The six response filters of the long-CoT cold start (Qwen3 report, section 4.1), each a rule with thresholds.

The report names what is dropped and discloses no thresholds; ours are defaults of the recipe, chosen to drop what is
plainly wrong and to keep what is doubtful. Every filter is off with `false`, on with its defaults with `true`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from posttrain.data.funnel import Drop
from posttrain.recipe.schema import Spec
from posttrain.sft import answers
from posttrain.sft.languages import latin_languages, prose, script_shares
from posttrain.sft.repetition import duplicate_line_share, looped_tail, repeated_share, units
from posttrain.sft.reserved import Reserved
from posttrain.tasks.registry import get_task
from posttrain.templates.families import Mode

Query = Mapping[str, Any]


@dataclass(frozen=True)
class Response:
    """One answer to one query: what the filters look at.

    Attributes:
        query: the query's row; {} where a conversation has no query behind it.
        question: the text of the last user turn.
        reasoning: the thinking, "" without any.
        content: the final message.
    """

    query: Query
    question: str
    reasoning: str
    content: str
    mode: Mode

    def shown(self) -> dict[str, str]:
        """The response as an example to read."""
        return {"query": self.question, "reasoning": self.reasoning, "content": self.content}


@dataclass(frozen=True)
class Surroundings:
    """What a filter may know beyond the response.

    Attributes:
        score: score of a final message by the query's own task (0..1); None where the query cannot be scored.
        typical_thinking: median words of thinking by difficulty, over the responses that are being filtered.
        reserved: knows the reserved queries; None where a stage has none, or leaves them aside.
    """

    score: Callable[[str, Query], float | None] = lambda content, query: None
    typical_thinking: Mapping[int, float] = field(default_factory=dict)
    reserved: Reserved | None = None


class ResponseFilter(Spec):
    """One filter. Its fields are its thresholds."""

    name: ClassVar[str]

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        """Why the response goes, or None where it stays."""
        raise NotImplementedError


class WrongAnswer(ResponseFilter):
    """The final message scores too low with the query's own verifier. What cannot be scored stays."""

    name: ClassVar[str] = "wrong_answer"
    at_least: float = Field(default=1.0, ge=0.0, le=1.0, description="score below which an answer is wrong")

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        score = around.score(response.content, response.query)
        if score is None or score >= self.at_least:
            return None
        return Drop("wrong_answer", f"scores {score:.3g}; reference: {response.query.get('answer', '')}")


class Repetition(ResponseFilter):
    """A substantial part of the text was said before, or the text ends in a loop."""

    name: ClassVar[str] = "repetition"
    ngram: int = Field(default=12, ge=2, description="words in a row that count as a repetition when seen again")
    ngram_share: float = Field(default=0.3, ge=0.0, le=1.0, description="largest share of words in repeated n-grams")
    line_share: float = Field(default=0.3, ge=0.0, le=1.0, description="largest share of characters in repeated lines")
    shortest_line: int = Field(default=20, ge=1, description="characters of a line that counts")
    loops: int = Field(default=4, ge=2, description="times in a row that the end may not repeat one unit")
    loop_length: int = Field(default=60, ge=1, description="characters that such a loop must span")

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        for where, text in (("thinking", response.reasoning), ("answer", response.content)):
            unit = looped_tail(text, repeats=self.loops, characters=self.loop_length)
            if unit is not None:
                return Drop("looped_tail", f"the {where} ends repeating {unit[:80]!r}")
            lines = duplicate_line_share(text, shortest=self.shortest_line)
            if lines > self.line_share:
                return Drop("repeated_lines", f"{lines:.0%} of the {where} stands in repeated lines")
            grams = repeated_share(text, self.ngram)
            if grams > self.ngram_share:
                return Drop("repeated_ngrams", f"{grams:.0%} of the {where} stands in repeated {self.ngram}-grams")
        return None


_GUESS = re.compile(
    r"\b(?:(?:i(?:'ll|'ll| will| would| am going to|'m going to)?|let me|let's|just|have to|must|might as well)"
    r"\s+(?:just\s+|simply\s+)?(?:guess|pick one)|(?:random|wild|pure|lucky)\s+guess|my (?:best )?guess|guessing)\b"
    r"|我猜|随便猜|蒙一个|瞎猜",
    re.IGNORECASE,
)


class Guessing(ResponseFilter):
    """Thinking that does not lead to its answer: guessed in so many words, far too short, or never arriving there."""

    name: ClassVar[str] = "guessing"
    shortest: int = Field(default=3, ge=0, description="words of thinking below which nothing was reasoned")
    of_typical: float = Field(
        default=0.2, ge=0.0, le=1.0, description="smallest share of the median thinking at the same difficulty"
    )
    phrases: bool = Field(default=True, description="drop thinking whose last third says that it guesses")
    answer_in_thinking: bool = Field(default=True, description="a number answered must occur in the thinking")

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        if response.mode != "thinking":
            return None
        thinking = response.reasoning.strip()
        length = len(units(thinking))
        typical = around.typical_thinking.get(int(response.query.get("difficulty") or 0), 0.0)
        if length < self.shortest or length < self.of_typical * typical:
            return Drop("too_short", f"{length} words of thinking; typical here: {typical:.0f}")
        phrase = _GUESS.search(thinking, len(thinking) * 2 // 3) if self.phrases else None
        if phrase is not None:
            return Drop("says_so", f"the thinking says {phrase[0]!r}")
        if self.answer_in_thinking:
            answer = answers.final_answer(response.content)
            if answer is not None and answers.number(answer) is not None and not answers.mentions(thinking, answer):
                return Drop("no_derivation", f"{answer} occurs nowhere in the thinking")
        return None


class Disagreement(ResponseFilter):
    """The answer at which the thinking arrives is not the one the final message gives."""

    name: ClassVar[str] = "disagreement"
    tail: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="part of the thinking, from its end, where its conclusion must stand",
    )

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        final = answers.final_answer(response.content)
        concluded = answers.concluded_answer(response.reasoning)
        tail = int((1 - self.tail) * len(response.reasoning))
        if final is None or concluded is None or concluded.end < tail:
            return None
        # What names the final answer after its last statement went on to it; and an equation at the end may be a check.
        if answers.mentions(response.reasoning[concluded.end if concluded.explicit else tail :], final):
            return None
        if answers.same_answer(concluded.answer, final) is False:
            return Drop("disagreement", f"the thinking arrives at {concluded.answer!r}, the answer is {final!r}")
        return None


_ASKS_FOR_LANGUAGE = re.compile(
    r"\b(?:translat\w*|in (?:english|french|german|spanish|korean|arabic|hindi|dutch|polish|turkish))\b"
    r"|\bin [a-z]+(?:ian|ese)\b"
    r"|翻译|译成|用[英中法德日韩俄][文语]|[英中法德日韩俄]译[英中法德日韩俄]",
    re.IGNORECASE,
)
_NEW_DIALOGUE = re.compile(r"<\|[a-z_]+\|>|^\s*(?:###\s*)?(?:User|Human|Assistant|System)\s*:", re.MULTILINE)


class LanguageMixing(ResponseFilter):
    """Languages mixed in the thinking or the answer, another one than that of the query, or a shift of style."""

    name: ClassVar[str] = "language_mixing"
    foreign_share: float = Field(
        default=0.1, ge=0.0, le=1.0, description="largest share of letters in scripts that the query does not use"
    )
    window_share: float = Field(
        default=0.15, ge=0.0, le=1.0, description="largest share of passages in a second language of one script"
    )
    style: bool = Field(default=True, description="drop chat markers and new dialogue turns inside a response")

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        asked = script_shares(response.question)
        freely = bool(_ASKS_FOR_LANGUAGE.search(response.question))
        for where, text in (("thinking", response.reasoning), ("answer", response.content)):
            marker = _NEW_DIALOGUE.search(text) if self.style else None
            if marker is not None:
                return Drop("style_shift", f"the {where} contains {marker[0].strip()!r}")
            if not freely:
                drop = self._mixed(prose(text), asked, where)
                if drop is not None:
                    return drop
        return None

    def _mixed(self, text: str, asked: Mapping[str, float], where: str) -> Drop | None:
        shares = script_shares(text)
        # Japanese is written with Chinese characters too, and a passage of it may hold nothing else.
        known = set(asked) | ({"CJK"} if "JAPANESE" in asked else set())
        foreign = {script: share for script, share in shares.items() if script not in known}
        if known and sum(foreign.values()) > self.foreign_share:
            return Drop(
                "mixed_scripts",
                f"{sum(foreign.values()):.0%} of the {where}'s letters are {', '.join(foreign).lower()}",
            )
        main = next(iter(asked), "")
        if len(shares) > 1 and asked.get(main, 0.0) > 0.5 and main != "LATIN" and shares.get(main, 0.0) < 0.2:
            return Drop(
                "other_language", f"asked in {main.lower()}, the {where} is mostly {next(iter(shares)).lower()}"
            )
        windows = latin_languages(text).most_common()
        second = sum(count for _, count in windows[1:])
        if second > self.window_share * sum(count for _, count in windows):
            return Drop("mixed_languages", f"the {where} mixes {', '.join(language for language, _ in windows)}")
        return None


class TooSimilar(ResponseFilter):
    """The query is too close to a reserved (validation) query, or the response quotes one."""

    name: ClassVar[str] = "too_similar"
    method: Literal["key", "text", "lcs"] | None = Field(
        default=None, description="how queries are compared; default: the `decontaminate` of the data they are from"
    )
    quoted: int = Field(default=13, ge=1, description="words in a row of a reserved query that a response may not have")

    def why_drop(self, response: Response, around: Surroundings) -> Drop | None:
        if around.reserved is None:
            return None
        near = around.reserved.like(response.question, str(response.query.get("key") or ""))
        if near is not None:
            return Drop("query", f"the query resembles the reserved one {near[:200]!r}")
        for where, text in (("thinking", response.reasoning), ("answer", response.content)):
            near = around.reserved.quoted_in(text, response.question)
            if near is not None:
                return Drop("quotation", f"the {where} quotes the reserved query {near[:200]!r}")
        return None


def score_with_task(content: str, query: Query) -> float | None:
    """The score of a final message by the query's own task; None where the query names none or has no reference."""
    if not query.get("task") or not (query.get("answer") or query.get("entry")):
        return None
    return float(get_task(str(query["task"])).score(content, query))


def _switch(value: Any) -> Any:
    """`true`: the defaults; `false`: off."""
    return {} if value is True else None if value is False else value


class ResponseFilters(Spec):
    """`filters.responses` of a recipe, in the order in which they are applied."""

    wrong_answer: Annotated[WrongAnswer | None, BeforeValidator(_switch)] = Field(
        default=WrongAnswer(), description="the verifier scores the answer too low"
    )
    repetition: Annotated[Repetition | None, BeforeValidator(_switch)] = Field(
        default=Repetition(), description="a substantial part was said before, or the end loops"
    )
    guessing: Annotated[Guessing | None, BeforeValidator(_switch)] = Field(
        default=Guessing(), description="the thinking does not lead to the answer"
    )
    disagreement: Annotated[Disagreement | None, BeforeValidator(_switch)] = Field(
        default=Disagreement(), description="thinking and answer differ"
    )
    language_mixing: Annotated[LanguageMixing | None, BeforeValidator(_switch)] = Field(
        default=LanguageMixing(), description="languages are mixed, or the style shifts"
    )
    too_similar: Annotated[TooSimilar | None, BeforeValidator(_switch)] = Field(
        default=TooSimilar(), description="too close to a reserved row"
    )

    def active(self) -> list[ResponseFilter]:
        """The filters that are on."""
        chosen = (getattr(self, name) for name in type(self).model_fields)
        return [one for one in chosen if one is not None]
