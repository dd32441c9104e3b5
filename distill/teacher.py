"""The teacher: loaded, and held against the student before anything starts.

Distillation compares two distributions entry by entry, so entry 17 must mean the same to both. A vocabulary is often
padded beyond its tokenizer (Qwen3: 151,669 entries, 151,936 or 152,064 rows): the padding means nothing and stays out
of the divergence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem

SHOWN = 5
"""Differences told one by one."""


def load_teacher(directory: Path | str, tokenizer: Any, *, dtype: str, attention: str) -> Any:
    """The teacher's model, frozen, in evaluation mode.

    Args:
        directory: a model directory or a hub id.
        tokenizer: the student's.

    Raises:
        PosttrainError: the teacher is not there, or its tokenizer is not the student's.
    """
    from posttrain.model.policy import load_model, load_tokenizer

    try:
        theirs = load_tokenizer(directory)
        check_tokenizers(tokenizer, theirs, str(directory))
        teacher = load_model(directory, dtype=dtype, attention=attention)
    except (OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PosttrainError(
            Problem(f"the teacher at {directory} could not be loaded: {line}", remedy="check the stage's `teacher`")
        ) from error
    return teacher.requires_grad_(False)


def check_tokenizers(student: Any, teacher: Any, name: str) -> None:
    """Compare two tokenizers entry by entry. What they call their end of sequence or padding may differ: a base model
    and its chat model differ in that alone.

    Raises:
        PosttrainError: they differ; the first differences are named.
    """
    differences = list(_differences(student, teacher))
    if differences:
        more = len(differences) - SHOWN
        shown = "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise PosttrainError(
            Problem(
                f"the tokenizers of student and teacher ({name}) differ: {shown}",
                why="distillation compares their distributions entry by entry",
                remedy="choose a teacher with the student's tokenizer (there is no distillation across tokenizers)",
            )
        )


def _differences(student: Any, teacher: Any) -> Iterator[str]:
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    our_ids, their_ids = {i: token for token, i in ours.items()}, {i: token for token, i in theirs.items()}
    for index in sorted(our_ids.keys() | their_ids.keys()):
        ours_here, theirs_here = our_ids.get(index), their_ids.get(index)
        if ours_here != theirs_here:
            yield f"entry {index} is {_shown(ours_here)} here and {_shown(theirs_here)} there"
    # The same entries may still be put together by other merges: the text of every kind of entry is tried.
    if ours == theirs:
        for text in _PROBES:
            if student(text, add_special_tokens=False).input_ids != teacher(text, add_special_tokens=False).input_ids:
                yield f"{text!r} is split into other entries"


def _shown(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


_PROBES = (
    "The quick brown fox jumps over 1,234.5 lazy dogs.",
    "<think>\nSo x = 7*(8+9) - 10/3?\n</think>\n\n\\boxed{42}",
    "def f(x):\n\treturn {'a': [x ** 2, None]}\n\n\n",
    "价格是 3.14 元，Füße über Ærø — ça va? 🙂",
    "<|im_start|>user\nhi<|im_end|>\n",
)


def match_vocabulary(student: Any, teacher: Any, entries: int) -> None:
    """Give the teacher as many vocabulary rows as the student has, where the two differ in padding alone.

    The student stays as it is. Rows that are added to the teacher are never read: a divergence stops at `entries`.

    Args:
        entries: of the tokenizer that both share.

    Raises:
        PosttrainError: one of them has fewer rows than the tokenizer has entries.
    """
    ours, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    for who, rows in (("student", ours), ("teacher", theirs)):
        if rows < entries:
            raise PosttrainError(
                Problem(
                    f"the {who}'s vocabulary has {rows} rows, its tokenizer {entries} entries",
                    why="entries without a row cannot be compared",
                    remedy=f"resize the {who}'s embeddings to its tokenizer",
                )
            )
    if ours != theirs:
        teacher.resize_token_embeddings(ours, mean_resizing=False)
