"""How near a student has come to its teacher: on the student's own answers to reserved queries, token by token.

By mode, data set and task: the share of tokens at which both hold the same entry for the most probable one, and the
mean divergence KL(teacher || student) in nats, on the teacher's k most probable entries and one bucket for the rest.
The tokens at which they differ most are kept to be read. Across tokenizers, both are compared by the bytes of the
answers (`agreement_by_bytes.py`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.distill.agreement_by_bytes import by_bytes
from posttrain.distill.buckets import TopK, bucket_divergence
from posttrain.distill.cache_write import Span, TeacherLogprobs
from posttrain.distill.cost import cost
from posttrain.distill.local_teacher import LocalTeacher, distributions
from posttrain.distill.served_teacher import ServedTeacher, spans_of
from posttrain.distill.teacher import check_rows, entries_of, load_teacher
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import write_json
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.teacher import OneTeacher, Teachers

if TYPE_CHECKING:
    from posttrain.model.generation import Completion
    from posttrain.recipe.stage import StageContext

log = logging.getLogger("posttrain")

QUERIES = 32
"""Of each data set of the evaluation, in every mode, shared by its tasks."""
LEAST = 8
"""Of each task, however many there are."""
TOP = 20
SHOWN = 24
"""Tokens kept to be read."""
BEFORE = 24
"""Tokens of context shown before each."""


@dataclass(frozen=True)
class Answer:
    """One answer of the student, and who teaches its query."""

    data: str
    task: str
    mode: str
    completion: Completion
    teacher: OneTeacher

    @property
    def ids(self) -> list[int]:
        return self.completion.prompt_ids + self.completion.completion_ids

    @property
    def spans(self) -> list[tuple[int, int]]:
        """What the student chose: a budget's tokens are nobody's choice."""
        return spans_of([not forced for forced in self.completion.forced], len(self.completion.prompt_ids))

    @property
    def places(self) -> list[int]:
        return [place for start, end in self.spans for place in range(start, end)]


def examine(context: StageContext) -> None:
    """Write agreement.json: how near the stage's model is to its teacher, and what it cost."""
    path = context.dir.path / "agreement.json"
    if not path.exists():
        write_json(path, {**measure(context), "cost": cost(context.dir)})


def measure(context: StageContext) -> dict[str, Any]:
    """The agreement of a finished stage's model with its teacher. JSON-able.

    Returns:
        `rows` (mode, data, task, answers, tokens, top1, divergence) and `tokens` (those at which they differ most); or
        `bytes`, of a teacher with another tokenizer (`by_bytes`); or `not_measured` with the reason.
    """
    from posttrain.model.policy import load_model, load_tokenizer, placed

    spec = context.recipe.model
    tokenizer = load_tokenizer(context.dir.model)
    cpu = context.recipe.engine.cpu
    student = placed(load_model(context.dir.model, dtype=spec.dtype, attention=spec.attention), cpu=cpu)
    try:
        answers = list(_answers(context, student, tokenizer))
        if (other := _another_tokenizer(context, tokenizer)) is not None:
            theirs = load_teacher(str(context.teacher), None, dtype=spec.dtype, attention=spec.attention)
            return {"bytes": by_bytes(answers, (student, tokenizer), (placed(theirs, cpu=cpu), other))}
        return _compared(answers, lambda one: _ask(context, one, tokenizer), student, tokenizer)
    except PosttrainError as error:
        reason = error.problems[0].what
    except torch.OutOfMemoryError:
        reason = "the memory does not hold student and teacher beside each other"
    log.warning("%s: agreement with the teacher is not measured: %s", context.name, reason)
    return {"not_measured": reason}


def _another_tokenizer(context: StageContext, tokenizer: Any) -> Any | None:
    """The tokenizer of a teacher here, if its entries are not the student's."""
    from posttrain.model.policy import load_tokenizer

    if not isinstance(context.teacher, Path):
        return None
    try:
        theirs = load_tokenizer(context.teacher)
    except Exception:  # it is gone, which is told when it is asked
        return None
    return theirs if theirs.get_vocab() != tokenizer.get_vocab() else None


def _answers(context: StageContext, student: Any, tokenizer: Any) -> Iterator[Answer]:
    """The student's own, in every mode of the family."""
    from posttrain.data.prepare import reserved_rows
    from posttrain.model.generation import Generator, Prompt
    from posttrain.progress import progress

    evaluation, family = context.recipe.evaluation, context.family
    generate = Generator(
        student, tokenizer, family, max_new_tokens=evaluation.max_new_tokens, batch_size=evaluation.batch_size
    )
    rows = {name: _shared_by_tasks(list(reserved_rows(context.run, name))) for name in evaluation.data}
    total = sum(map(len, rows.values())) * len(family.modes)
    with progress(f"agreement: {context.name}", total, quiet=context.quiet) as advance:
        for name, queries in rows.items():
            own = [(query, teacher) for query in queries if (teacher := _teacher_of(context, name, query)) is not None]
            for mode in family.modes:
                prompts = [Prompt([dict(m) for m in query["prompt"]], mode=mode) for query, _ in own]
                done = generate(prompts, seed=evaluation.seed, progress=advance)
                for (query, teacher), completion in zip(own, done, strict=True):
                    yield Answer(name, _task_of(query), mode, completion, teacher)


def _task_of(query: Mapping[str, Any]) -> str:
    return str(query.get("task") or "")


def _shared_by_tasks(queries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of each task, in their order."""
    tasks: defaultdict[str, list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        tasks[_task_of(query)].append(place)
    share = max(LEAST, QUERIES // max(1, len(tasks)))
    return [queries[place] for place in sorted(place for places in tasks.values() for place in places[:share])]


def _teacher_of(context: StageContext, data: str, query: Mapping[str, Any]) -> OneTeacher | None:
    teacher = context.teacher
    if isinstance(teacher, Teachers):
        return teacher.of(data, _task_of(query))
    return str(teacher) if isinstance(teacher, Path) else teacher


def _ask(context: StageContext, teacher: OneTeacher, tokenizer: Any) -> TeacherLogprobs:
    """A teacher that tells its distribution before given tokens."""
    if isinstance(teacher, EndpointSpec):
        served = ServedTeacher(teacher, entries=entries_of(tokenizer), top_k=TOP)
        served.check(tokenizer)
        return served
    from posttrain.model.policy import placed

    spec = context.recipe.model
    model = load_teacher(teacher, tokenizer, dtype=spec.dtype, attention=spec.attention)
    check_rows("teacher", model, entries_of(tokenizer))
    local = LocalTeacher(placed(model, cpu=context.recipe.engine.cpu), entries=entries_of(tokenizer), k=TOP)

    def ask(sequences: Sequence[Sequence[int]], spans: Sequence[Sequence[Span]]) -> TopK:
        return TopK.concatenate([local([ids], [own]) for ids, own in zip(sequences, spans, strict=True)])

    return ask


def _on(logs_N_V: torch.Tensor, ids_N_K: torch.Tensor) -> TopK:
    """A whole distribution on these entries and one bucket."""
    rest = logs_N_V.scatter(1, ids_N_K, float("-inf")).logsumexp(1)
    return TopK(ids_N_K, logs_N_V.gather(1, ids_N_K), rest)


def _compared(
    answers: Sequence[Answer], opened: Callable[[OneTeacher], TeacherLogprobs], student: Any, tokenizer: Any
) -> dict[str, Any]:
    """By whom each answer is taught, one teacher after the other: one of them at a time is in memory."""
    sums: defaultdict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    worst: list[dict[str, Any]] = []
    for teacher in dict.fromkeys(answer.teacher for answer in answers if answer.places):
        own = [answer for answer in answers if answer.teacher == teacher and answer.places]
        told = opened(teacher)([answer.ids for answer in own], [answer.spans for answer in own])
        at = 0
        for answer in own:
            theirs = told[at : at + len(answer.places)]
            at += len(answer.places)
            row = sums[answer.mode, answer.data, answer.task]
            row[0] += 1
            for piece, logs in distributions(student, answer.ids, answer.places, entries_of(tokenizer)):
                part = theirs[piece]
                known = TopK(*(each.to(logs.device) for each in (part.ids, part.log_probs, part.tail)))
                ours = _on(logs, known.ids).buckets(torch.float64)
                apart = bucket_divergence(ours, known.buckets(torch.float64), 0.0)
                best = known.ids.gather(1, known.log_probs.argmax(1, keepdim=True))[:, 0]
                row[1] += len(known)
                row[2] += float((logs.argmax(1) == best).sum())
                row[3] += float(apart.sum())
                worst += _shown(answer, answer.places[piece], known, logs, apart, tokenizer)
            worst = sorted(worst, key=lambda one: -float(one["divergence"]))[:SHOWN]
    rows = [
        {
            **dict(zip(("mode", "data", "task"), of, strict=True)),
            "answers": int(n),
            "tokens": int(t),
            "top1": a / t,
            "divergence": max(0.0, d / t),
        }
        for of, (n, t, a, d) in sums.items()
    ]
    return {"rows": rows, "tokens": worst, "top_k": TOP}


def _shown(
    answer: Answer, places: Sequence[int], theirs: TopK, logs: torch.Tensor, apart: torch.Tensor, tokenizer: Any
) -> Iterator[dict[str, Any]]:
    """The tokens of an answer's piece at which the two differ most, with what each of them would rather have said."""

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def likely(ids: torch.Tensor, logs: torch.Tensor) -> list[list[Any]]:
        best = logs.topk(min(3, len(logs)))
        return [[text([int(ids[i])]), float(v.exp())] for v, i in zip(*best, strict=True)]

    for place in apart.topk(min(4, len(apart))).indices.tolist():
        position = places[place]
        top = logs[place].topk(3)
        yield {
            "mode": answer.mode,
            "data": answer.data,
            "task": answer.task,
            "divergence": float(apart[place]),
            "before": text(answer.ids[max(0, position - BEFORE) : position]),
            "token": text([answer.ids[position]]),
            "student": likely(top.indices, top.values),
            "teacher": likely(theirs.ids[place], theirs.log_probs[place]),
        }
