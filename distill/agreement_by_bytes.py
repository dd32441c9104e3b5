"""How near a student is to a teacher with another tokenizer: what both make of the same bytes.

A text's log-likelihood does not depend on how it is cut, so two models can be compared on it whatever their tokenizers
(each scores its own cut, the usual lower bound of the text's probability). On the student's own answers the teacher's
nats a byte beyond the student's estimate the divergence KL(student || teacher) a byte; it is exact in expectation where
the answers were drawn at temperature 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.distill.local_teacher import distributions

if TYPE_CHECKING:
    from posttrain.distill.agreement import Answer


def by_bytes(answers: Sequence[Answer], student: tuple[Any, Any], teacher: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Both models' nats a byte on the student's answers, by mode, data set and task.

    Args:
        answers: the student's own; empty ones do not count.
        student, teacher: a model with its tokenizer. The teacher reads the text as the student's template renders it.

    Returns:
        Rows with `mode`, `data`, `task`, `answers`, `bytes`, `student`, `teacher`.
    """
    sums: defaultdict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for answer in answers:
        done = answer.completion
        own = done.completion_ids if done.truncated else done.completion_ids[:-1]
        if not own:
            continue
        prompt, text = (_text(student[1], ids) for ids in (done.prompt_ids, own))
        cut = [teacher[1](part, add_special_tokens=False)["input_ids"] for part in (prompt, text)]
        row = sums[answer.mode, answer.data, answer.task]
        row[0] += 1
        row[1] += len(text.encode())
        row[2] += _nats(student, done.prompt_ids, own)
        row[3] += _nats(teacher, *cut)
    return [
        {
            **dict(zip(("mode", "data", "task"), of, strict=True)),
            "answers": int(count),
            "bytes": int(size),
            "student": ours / size,
            "teacher": theirs / size,
        }
        for of, (count, size, ours, theirs) in sums.items()
    ]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _nats(model: tuple[Any, Any], prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Minus the log-likelihood of an answer behind its prompt."""
    network, tokenizer = model
    ids = [*prompt, *answer]
    entries = max(tokenizer.get_vocab().values()) + 1
    found = 0.0
    for piece, logs in distributions(network, ids, range(len(prompt), len(ids)), entries):
        given = logs.new_tensor(list(answer)[piece]).long()
        found -= float(logs.gather(1, given[:, None]).sum())
    return found
