"""The teacher: loaded, and held against the student before anything starts.

Distillation compares two distributions entry by entry, so entry 17 must mean the same to both. A vocabulary is often
padded beyond its tokenizer (Qwen3: 151,669 entries, 151,936 or 152,064 rows): the padding means nothing and stays out
of the divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.references import start_of
from posttrain.recipe.teacher import OneTeacher, Teacher, Teachers, each_teacher

if TYPE_CHECKING:
    from posttrain.recipe.stage import StageContext

SHOWN = 5
"""Differences told one by one."""


def load_teacher(directory: Path | str, tokenizer: Any | None, *, dtype: str, attention: str) -> Any:
    """The teacher's model, frozen, in evaluation mode.

    Args:
        directory: a model directory or a hub id.
        tokenizer: the student's, which has to be the teacher's; None: it may have another.

    Raises:
        PosttrainError: the teacher is not there, or its tokenizer is not the student's.
    """
    from posttrain.model.policy import load_model, load_tokenizer

    try:
        if tokenizer is not None:
            check_tokenizers(tokenizer, load_tokenizer(directory), str(directory))
        teacher = load_model(directory, dtype=dtype, attention=attention)
    except PosttrainError:
        raise
    except Exception as error:  # transformers raises what it likes
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PosttrainError(
            Problem(f"the teacher at {directory} could not be loaded: {line}", remedy="check the stage's `teacher`")
        ) from error
    return teacher.requires_grad_(False)


@dataclass(frozen=True)
class Several:
    """The teachers of a stage, ready to teach, and which of them teaches a query.

    Attributes:
        specs: as the stage has them (directories, hub ids, servers); teachers: a model or a `ServedTeacher` each.
        by: who teaches what.
        data_of: the data set of each query, by key.
    """

    specs: list[OneTeacher]
    teachers: list[Any]
    by: Teacher
    data_of: Mapping[str, str]

    def of(self, rows: Any) -> list[int]:
        """The place of each row's teacher.

        Raises:
            PosttrainError: a row has none.
        """
        by = self.by if isinstance(self.by, Teachers) else Teachers(default=self.by)
        found = [by.of(self.data_of.get(key), task) for key, task in zip(rows["key"], rows["task"], strict=True)]
        if None in found:
            tasks = sorted({task for one, task in zip(found, rows["task"], strict=True) if one is None})
            what = f"queries have no teacher: those of task {', '.join(f'`{task}`' for task in tasks)}"
            raise PosttrainError(Problem(what, remedy="give teacher.default, or name the task"))
        return [self.specs.index(one) for one in found if one is not None]

    def shares(self, places: Sequence[int]) -> list[float]:
        """Of the rows that each teacher teaches."""
        return [list(places).count(number) / max(1, len(places)) for number in range(len(self.specs))]


def load_teachers(context: StageContext, tokenizer: Any, top_k: int) -> Several:
    """Several teachers, or a served one.

    Args:
        tokenizer: the student's.
        top_k: entries that served ones tell.

    Raises:
        PosttrainError: one is not there, its tokenizer is not the student's, or it has fewer rows than entries.
    """
    from datasets import load_from_disk

    from posttrain.distill.served_teacher import ServedTeacher

    assert context.teacher is not None and not isinstance(context.teacher, Path)
    specs = list(dict.fromkeys(one for _, one in each_teacher(context.teacher)))
    settings = context.recipe.model
    teachers: list[Any] = []
    for one in specs:
        if isinstance(one, EndpointSpec):
            teachers.append(ServedTeacher(one, entries=entries_of(tokenizer), top_k=top_k))
        else:
            teachers.append(load_teacher(one, tokenizer, dtype=settings.dtype, attention=settings.attention))
            check_rows("teacher", teachers[-1], entries_of(tokenizer))
    data_of: dict[str, str] = {}
    for _, name in context.recipe.stages[context.name].data_references():
        for key in load_from_disk(str(context.run.data(name)))["key"]:
            data_of.setdefault(key, name)
    return Several(specs, teachers, context.teacher, data_of)


def check_teachers(context: StageContext, top_k: int) -> None:
    """Hold every teacher's tokenizer against the student's, before the first stage of a run begins.

    A stage hands on the tokenizer of the model at the root of its chain, which stands when a run begins.

    Raises:
        PosttrainError: all that is wrong.
    """
    from posttrain.distill.served_teacher import ServedTeacher
    from posttrain.model.policy import load_tokenizer

    recipe = context.recipe
    student = load_tokenizer(root_of(context, context.name))
    problems: list[Problem] = []
    for one in dict.fromkeys(one for _, one in each_teacher(recipe.stages[context.name].teacher)):
        try:
            if isinstance(one, EndpointSpec):
                ServedTeacher(one, entries=entries_of(student), top_k=top_k).check(student)
            else:
                name = f"stage {one}" if one in recipe.stages else one
                check_tokenizers(student, teachers_tokenizer(context, one), name)
        except PosttrainError as error:
            problems += error.problems
    if problems:
        raise PosttrainError(problems)


def teachers_tokenizer(context: StageContext, teacher: str) -> Any:
    """The tokenizer of a teacher here, which may be a stage that has not begun.

    Raises:
        PosttrainError: it cannot be loaded.
    """
    place = root_of(context, teacher) if teacher in context.recipe.stages else teacher
    return loaded_tokenizer(place, f"the tokenizer of the teacher {teacher}")


def loaded_tokenizer(place: Path | str, who: str) -> Any:
    """A tokenizer.

    Args:
        who: what messages call it.

    Raises:
        PosttrainError: it cannot be loaded.
    """
    from posttrain.model.policy import load_tokenizer

    try:
        return load_tokenizer(place)
    except Exception as error:  # transformers raises what it likes
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "check the stage's `teacher`"
        raise PosttrainError(Problem(f"{who} could not be loaded: {line}", remedy=remedy)) from error


def root_of(context: StageContext, name: str) -> Path:
    """The directory of the model at the root of a stage's chain."""
    origin = start_of(context.recipe, name)
    while origin[0] == "stage":
        name = origin[1]
        origin = start_of(context.recipe, name)
    return context.run.stage(name).path / "start" if origin[0] == "model" else context.run.base


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
                remedy="choose a teacher with the student's tokenizer, or kind: gold_distillation, which crosses them",
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
        for text in PROBES:
            if student(text, add_special_tokens=False).input_ids != teacher(text, add_special_tokens=False).input_ids:
                yield f"{text!r} is split into other entries"


def _shown(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


PROBES = (
    "The quick brown fox jumps over 1,234.5 lazy dogs.",
    "<think>\nSo x = 7*(8+9) - 10/3?\n</think>\n\n\\boxed{42}",
    "def f(x):\n\treturn {'a': [x ** 2, None]}\n\n\n",
    "价格是 3.14 元，Füße über Ærø — ça va? 🙂",
    "<|im_start|>user\nhi<|im_end|>\n",
)


def entries_of(tokenizer: Any) -> int:
    """How many rows of a vocabulary mean something: to the last entry, numbers that are left out included."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_rows(who: str, model: Any, entries: int) -> None:
    """See that every entry of a tokenizer has a row in a model's vocabulary.

    Args:
        who: what messages call it, as "teacher".

    Raises:
        PosttrainError: it has fewer.
    """
    rows = model.config.get_text_config().vocab_size
    if rows < entries:
        raise PosttrainError(
            Problem(
                f"the {who}'s vocabulary has {rows} rows, its tokenizer {entries} entries",
                why="entries without a row cannot be compared",
                remedy=f"resize the {who}'s embeddings to its tokenizer",
            )
        )


def match_vocabulary(student: Any, teacher: Any, entries: int) -> None:
    """Give the teacher as many vocabulary rows as the student has, where the two differ in padding alone.

    The student stays as it is. Rows that are added to the teacher are never read: a divergence stops at `entries`.

    Args:
        entries: of the tokenizer that both share.

    Raises:
        PosttrainError: one of them has fewer rows than the tokenizer has entries.
    """
    check_rows("student", student, entries)
    check_rows("teacher", teacher, entries)
    ours, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    if ours != theirs:
        teacher.resize_token_embeddings(ours, mean_resizing=False)
