"""A judge with a reference: a model behind any OpenAI-compatible endpoint grades the answer against the row's own.

What the policy writes is graded by a model that reads it, so it is an attack if that pays. Therefore:

- the texts stand between lines with a word that follows from the hash of all of them: no answer can contain it, so none
  ends its own quotation. Markers of chat templates are broken up, so that none opens a turn.
- the verdict is read from the reply alone, which is one JSON value (the endpoint is asked to constrain it). Its key
  carries such a word too: a reply that only repeats what an answer dictated is no verdict.
- a reply without a verdict is asked for once more, and is then a fault: it is no score, in neither direction.

Replies are cached on disk by the hash of all that was asked, so a resumed run pays for nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.rl.rewards import Rollout, Score
from posttrain.rl.rewards.harmless import harmless
from posttrain.rl.rewards.judge_cache import JudgeCache, default_path
from posttrain.rl.rewards.outcome import no_answer
from posttrain.tasks.structured import NotJson, read_json_answer
from posttrain.tasks.task import normalise
from posttrain.templates.families import get_family
from posttrain.templates.parse import parse

if TYPE_CHECKING:
    from posttrain.recipe.endpoint import EndpointSpec

PROMPT = Path(__file__).with_name("judge.jinja")


class Judge:
    """Another model's grade of the answer against the row's reference. None where the row has no reference."""

    def __init__(
        self,
        *,
        endpoint: str = "",
        model: str = "",
        api_key_env: str | None = None,
        prompt: str = "",
        verdicts: Mapping[str, float] | None = None,
        scale: int = 10,
        constrained: bool = True,
        max_tokens: int = 512,
        longest: int = 20_000,
        concurrency: int = 64,
        timeout: float = 120.0,
        patience: float = 60.0,
        request: Mapping[str, Any] | None = None,
        cache: str = "",
    ) -> None:
        """Options:

        endpoint, model, api_key_env, concurrency, timeout, patience: the server, as a served teacher's.
        prompt: a Jinja file instead of ours; it is given question, reference, answer, fence, key, scale and verdicts.
        verdicts: words and their scores; the reply is then one of the words, and not a JSON object with a number.
        scale: the best grade, where there are no verdicts.
        constrained: ask the server to keep the reply to the schema (`response_format`).
        longest: characters of an answer; longer ones score 0.
        request: further fields of each request, as {chat_template_kwargs: {enable_thinking: false}}.
        cache: the SQLite file of replies; default: below the user's cache directory. "off": none.

        Raises:
            PosttrainError: no endpoint, a prompt that is not there, or other options that will not do.
        """
        address = {"endpoint": endpoint, "model": model, "api_key_env": api_key_env}
        waits = {"concurrency": concurrency, "timeout": timeout, "patience": patience}
        spec, problems = _spec_of({**address, **waits})
        path = Path(prompt).expanduser() if prompt else PROMPT
        if not path.is_file():
            problems.append(Problem(f"judge: there is no prompt {path}", remedy="the path of a Jinja file"))
        if not all(0.0 <= float(score) <= 1.0 for score in (verdicts or {}).values()):
            problems.append(Problem("judge: verdicts are words with scores from 0 to 1"))
        if min(scale, max_tokens, longest) < 1:
            problems.append(Problem("judge: scale, max_tokens and longest are whole numbers above 0"))
        if problems or spec is None:
            raise PosttrainError(problems)
        self.spec = spec
        self._template = path.read_text(encoding="utf-8")
        self._verdicts = {str(word): float(score) for word, score in (verdicts or {}).items()}
        self._scale, self._constrained, self._longest = scale, constrained, longest
        self._request = {"temperature": 0.0, "max_tokens": max_tokens, **(request or {})}
        self._cache = None if cache == "off" else JudgeCache(Path(cache).expanduser() if cache else default_path())

    def __call__(self, query: Mapping[str, Any], rollout: Rollout) -> Score:
        return self.batch([query], [rollout])[0]

    def batch(self, queries: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> list[Score]:
        """The grades of a batch: equal ones are asked once, all of them at once."""
        known = [self._settled(query, rollout) for query, rollout in zip(queries, rollouts, strict=True)]
        asked: dict[str, tuple[dict[str, Any], str]] = {}
        marks: list[str | None] = []
        for query, rollout, settled in zip(queries, rollouts, known, strict=True):
            if settled is not None:
                marks.append(None)
                continue
            body, key = self.body(query, rollout.message.content)
            marks.append(_hash(self.spec.model, body))
            asked[marks[-1] or ""] = (body, key)
        scores = self._scores(asked)
        return [settled or scores[mark or ""] for settled, mark in zip(known, marks, strict=True)]

    def _settled(self, query: Mapping[str, Any], rollout: Rollout) -> Score | None:
        """The score of what needs no judge."""
        content = rollout.message.content
        if not query.get("answer"):
            return Score(None, "no reference")
        if (unanswered := no_answer(rollout)) is not None:
            return unanswered
        if not content.strip():
            return Score(0.0, "no answer")
        if len(content) > self._longest:
            return Score(0.0, f"{len(content)} characters, {self._longest} at most")
        return Score(0.0, "repeats the question") if normalise(content) == normalise(_question(query)) else None

    def body(self, query: Mapping[str, Any], content: str) -> tuple[dict[str, Any], str]:
        """The request that asks for a grade, and the key under which the grade stands in the reply."""
        texts = {"question": _question(query), "reference": str(query["answer"]), "answer": content.strip()}
        prompt, key = prompt_of(self._template, texts, scale=self._scale, verdicts=tuple(self._verdicts))
        body = {"messages": [{"role": "user", "content": prompt}], **self._request}
        if self._constrained:
            schema = {"name": "verdict", "schema": self._schema(key), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body, key

    def _schema(self, key: str) -> dict[str, Any]:
        if self._verdicts:
            return {"enum": list(self._verdicts)}
        grade = {"type": "integer", "minimum": 0, "maximum": self._scale}
        properties = {"reason": {"type": "string", "maxLength": 300}, key: grade}
        return {"type": "object", "properties": properties, "required": ["reason", key], "additionalProperties": False}

    def _scores(self, asked: Mapping[str, tuple[dict[str, Any], str]]) -> dict[str, Score]:
        """Scores by the hash of what was asked: from the cache, else from the server, which is asked twice at most."""
        scores: dict[str, Score] = {}
        left = dict(asked)
        for mark, reply in (self._cache.read(list(left)) if self._cache else {}).items():
            if (score := self.read(reply, left[mark][1])) is not None:
                scores[mark] = score
                del left[mark]
        for again in (False, True):
            if not left:
                break
            replies, gone = self._ask([body for body, _ in left.values()], again)
            for mark, said in zip(list(left), replies, strict=True):
                if isinstance(said, Exception):
                    scores[mark] = Score.fault_of(said)
                    del left[mark]
                elif (score := self.read(said, left[mark][1])) is None:
                    scores[mark] = Score.fault_of(ValueError(f"the judge's reply is no verdict: {said[:120]!r}"))
                else:
                    scores[mark] = score
                    del left[mark]
                    if self._cache:
                        self._cache.write(mark, said)
            if gone:
                break
        return scores

    def _ask(self, bodies: Sequence[dict[str, Any]], again: bool) -> tuple[list[str | Exception], bool]:
        """Replies in order, or why there is none, and whether the server failed for good."""
        from posttrain.model.endpoint import Endpoint

        extra = {"temperature": 0.7, "seed": 1} if again else {}
        replies: dict[int, str | Exception] = {}
        failed: Exception = RuntimeError("the judge gave no reply")
        gone = False
        try:
            for reply in Endpoint(self.spec, who="the judge").ask("chat/completions", [{**b, **extra} for b in bodies]):
                refusal = RuntimeError(f"the judge refuses the request: {reply.refused}")
                replies[reply.place] = refusal if reply.refused else _text(reply.body)
        except PosttrainError as error:
            failed, gone = TimeoutError(str(error)) if "within" in str(error) else error, True
        return [replies.get(place, failed) for place in range(len(bodies))], gone

    def read(self, reply: str, key: str) -> Score | None:
        """The score in a reply; None where it is no verdict. Thinking before it does not count."""
        text = parse(reply, get_family("qwen3")).content if "<think>" in reply else reply.rpartition("</think>")[2]
        if self._verdicts and text.strip() in self._verdicts:
            return Score(self._verdicts[text.strip()], text.strip())
        try:
            value = read_json_answer(text)
        except NotJson:
            return None
        if self._verdicts:
            return Score(self._verdicts[value], value) if isinstance(value, str) and value in self._verdicts else None
        if not isinstance(value, dict) or set(value) != {"reason", key} or type(value[key]) is not int:
            return None
        if not 0 <= value[key] <= self._scale:
            return None
        return Score(value[key] / self._scale, " ".join(str(value["reason"]).split())[:300])


def _spec_of(options: Mapping[str, Any]) -> tuple[EndpointSpec | None, list[Problem]]:
    """The server, and what is wrong with how it is named."""
    from pydantic import ValidationError

    from posttrain.recipe.endpoint import EndpointSpec

    try:
        return EndpointSpec(**options), []
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
        ]
        remedy = "as {endpoint: http://127.0.0.1:8000/v1, model: NAME}"
        return None, [Problem(f"judge: {line}", remedy=remedy) for line in told]


def prompt_of(
    template: str, texts: Mapping[str, str], *, scale: int = 10, verdicts: Sequence[str] = ()
) -> tuple[str, str]:
    """What a judge is asked, and the key of its grade: a Jinja template filled with question, reference and answer."""
    clean = {name: harmless(text) for name, text in texts.items()}
    fence, key = words_apart(clean)
    given = {"fence": fence, "key": key, "scale": scale, "verdicts": list(verdicts)}
    return str(_compiled(template).render(**clean, **given)), key


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """Compiling takes two hundred times as long as filling in."""
    import jinja2

    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)


def words_apart(texts: Mapping[str, str]) -> tuple[str, str]:
    """A word for the fences and one for the verdict's key that stand in none of the texts, and follow from all."""
    for round in range(1000):
        digest = hashlib.blake2b(repr((round, sorted(texts.items()))).encode("utf-8", "replace"), digest_size=12)
        fence, key = f"~~~{digest.hexdigest()[:12]}", f"grade_{digest.hexdigest()[12:]}"
        if not any(fence in text or key in text for text in texts.values()):
            return fence, key
    raise AssertionError("a thousand hashes of a text stand in it")


def _question(query: Mapping[str, Any]) -> str:
    return "\n\n".join(str(turn["content"] or "") for turn in query.get("prompt") or [] if turn["role"] == "user")


def _hash(model: str, body: Mapping[str, Any]) -> str:
    text = json.dumps([model, body], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def _text(body: Mapping[str, Any]) -> str:
    choices = body.get("choices") or [{}]
    return str((choices[0].get("message") or {}).get("content") or "")
