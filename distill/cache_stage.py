"""The data and the trainer of off-policy distillation with stored log-probabilities.

A teacher's answers, and its log-probabilities on them, lie where every stage with the same teacher and the same wishes
finds them: under the run, in folders named by their fingerprints, or in a folder that the recipe names, which further
runs may share. So the second student asks the teacher nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from posttrain.distill.cache import FINGERPRINT, LogprobCache, check_fingerprint
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import MANIFEST, StageDir, faults_of, is_complete, read_json, seal, write_json
from posttrain.model.lock import in_turn
from posttrain.progress import progress
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.schema import Spec
from posttrain.recipe.stage import StageContext

if TYPE_CHECKING:
    from posttrain.distill.cache_write import TeacherLogprobs
    from posttrain.sft.stage import SftStage

log = logging.getLogger("posttrain")

NO_EFFECT = ("loss_type", "label_smoothing_factor", "use_liger_kernel")
"""Trainer options that say how a loss is made which is not made here."""
PLACE = "logprobs.json"


class StoredLogits(Spec):
    """`logits:` of an off-policy stage: the teacher's distribution, stored once, is learned from."""

    top_k: int = Field(default=64, ge=1, description="entries kept a position; all others are one bucket")
    beta: float = Field(
        default=0.0, ge=0.0, le=1.0, description="as TRL's: 0 forward KL, 1 reverse KL, between them Jensen-Shannon"
    )
    temperature: float = Field(default=1.0, gt=0.0, description="both distributions are softened by it")
    cross_entropy: float = Field(
        default=0.0, ge=0.0, description="weight of the answers' own tokens, beside 1 for the divergence"
    )
    cache: str | None = Field(
        default=None, description="a folder that further runs may share; default: under the run, for all its stages"
    )


@dataclass(frozen=True)
class SharedContext(StageContext):
    """The context of a stage whose data are every student's: its seed is the recipe's, and no stage's own."""

    @property
    def seed(self) -> int:
        return (self.recipe.seed * 1_000_003 + zlib.crc32(b"teacher's answers")) % (2**31)


def build_data(stage: SftStage, logits: StoredLogits, context: StageContext) -> dict[str, Any]:
    """The teacher's answers as the stage's data, and its log-probabilities on them; made only where they are not there.

    Raises:
        PosttrainError: a folder that the recipe names holds something else; the teacher has another tokenizer.
    """
    from posttrain.distill.cache_fingerprint import answers_fingerprint
    from posttrain.distill.teacher import check_tokenizers
    from posttrain.model.policy import load_tokenizer

    tokenizer = load_tokenizer(context.start)
    if isinstance(context.teacher, Path):
        check_tokenizers(tokenizer, load_tokenizer(context.teacher), str(context.teacher))
    answers = _folder(logits, context, "answers", answers_fingerprint(stage, context, tokenizer))
    with in_turn(answers, context.name):
        whose = str(context.dir.path.resolve())
        funnel = _answers(stage, SharedContext(**{**vars(context), "dir": StageDir(answers)}), whose)
        there = read_json(answers / "data" / MANIFEST).get("made_for") != whose
        _link(answers / "data", context.dir.data)
    cache, asked = _store(logits, context, tokenizer, funnel["tokens"]["supervised_tokens"])
    told = {"tokens": cache.tokens, "asked_of_the_teacher": asked, "answers_were_there": there}
    return {**funnel, "logprobs": told}


def _store(logits: StoredLogits, context: StageContext, tokenizer: Any, tokens: int) -> tuple[LogprobCache, int]:
    """The log-probabilities of the stage's rows, those that are missing asked of the teacher; and tokens asked about.

    Args:
        tokens: how many of the rows are supervised.
    """
    from datasets import load_from_disk

    from posttrain.distill.cache_fingerprint import logprobs_fingerprint
    from posttrain.distill.cache_processes import fill_by_processes, processes_here
    from posttrain.distill.cache_unchanged import check_unchanged
    from posttrain.distill.cache_write import fill
    from posttrain.distill.teacher import entries_of

    rows = load_from_disk(str(context.dir.data / "train"))
    known = logprobs_fingerprint(context, tokenizer, rows, k=logits.top_k, temperature=logits.temperature)
    directory = _folder(logits, context, "logprobs", known)
    k, temperature = logits.top_k, logits.temperature
    processes = processes_here(context)

    def opened() -> TeacherLogprobs:
        teacher = open_teacher(context, tokenizer, k=k, temperature=temperature)
        if not isinstance(context.teacher, Path) or not context.teacher.is_dir():  # known by name alone
            check_unchanged(directory, rows, teacher, min(k, entries_of(tokenizer)))
        return teacher

    with progress(f"{context.name}: log-probabilities", tokens, quiet=context.quiet) as advance:
        asked = 0
        if processes > 1:
            asked = fill_by_processes(
                directory, rows, context, processes, k=k, temperature=temperature, progress=advance
            )
        asked += fill(
            directory,
            rows,
            opened,
            known,
            k=k,
            entries=entries_of(tokenizer),
            progress=advance,
        )
    cache = LogprobCache(directory)
    write_json(context.dir.data / PLACE, {"directory": os.path.relpath(directory, context.dir.data)})
    return cache, asked


def mend_data(logits: StoredLogits, context: StageContext) -> None:
    """See that the log-probabilities of a stage whose data are built are whole, checksums too; make anew what is not.

    Raises:
        PosttrainError: as `build_data`.
    """
    from posttrain.model.policy import load_tokenizer

    place = place_of(context.dir.data)
    faults = [f"{place}: not there"] if place is None else faults_of(place)
    if faults:
        log.warning("%s: stored log-probabilities are not whole (%s): made anew", context.name, faults[0])
        facts = {key: value for key, value in read_json(context.dir.data / MANIFEST).items() if key != "files"}
        _store(logits, context, load_tokenizer(context.start), facts["funnel"]["tokens"]["supervised_tokens"])
        seal(context.dir.data, **facts)


def check_stored(context: StageContext, name: str) -> None:
    """See that a finished stage's log-probabilities are still there, for one that learns from them as well.

    Raises:
        PosttrainError: they are not.
    """
    other = context.run.stage(name)
    if not other.record.exists():
        return  # it comes first, and makes them
    place = place_of(other.data)
    faults = ["it is not told where they lie"] if place is None else faults_of(place, checksums=False)
    if faults:
        what = f"stage {context.name}: the log-probabilities stored by stage {name} are not whole: {faults[0]}"
        raise PosttrainError(Problem(what, remedy=f"put them back, or run with --restart-from {name}"))


def place_of(data: Path) -> Path | None:
    """Where the log-probabilities of the stage with this data directory lie."""
    told = read_json(data / PLACE)
    return None if told is None else (data / told["directory"]).resolve()


def _folder(logits: StoredLogits, context: StageContext, what: str, fingerprint: dict[str, Any]) -> Path:
    """Where it lies, with its fingerprint in it.

    Raises:
        PosttrainError: something else lies there.
    """
    from posttrain.distill.cache_fingerprint import mark_of

    if logits.cache is None:
        folder = context.run.path / "teacher" / f"{what}-{mark_of(fingerprint)}"
    else:
        folder = Path(logits.cache).expanduser() / what
    with in_turn(folder, context.name):
        if not check_fingerprint(folder, fingerprint):
            write_json(folder / FINGERPRINT, fingerprint)
    return folder


def _answers(stage: SftStage, shared: SharedContext, whose: str) -> dict[str, Any]:
    """The funnel of the teacher's answers, which are made if they are not there.

    Args:
        whose: the stage that they are made for, and that they are a cost of.
    """
    data = shared.dir.data
    if is_complete(data):
        log.info("%s: the teacher's answers are there already", shared.name)
        funnel: dict[str, Any] = read_json(data / MANIFEST)["funnel"]
        return funnel
    data.mkdir(parents=True, exist_ok=True)
    funnel = stage.build_data(shared)
    seal(data, funnel=funnel, made_for=whose)
    return funnel


def _link(source: Path, target: Path) -> None:
    """The files of a folder in another one, without a second copy where the file system can."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            try:
                os.link(path, place)
            except OSError:  # another file system
                shutil.copy2(path, place)


def open_teacher(context: StageContext, tokenizer: Any, *, k: int, temperature: float) -> TeacherLogprobs:
    """The stage's teacher, ready to tell log-probabilities.

    Raises:
        PosttrainError: it cannot be loaded, or has fewer rows than the tokenizer entries; a served one is not as
            `ServedTeacher.check` wants it.
    """
    from posttrain.distill.local_teacher import LocalTeacher
    from posttrain.distill.teacher import check_rows, entries_of, load_teacher
    from posttrain.model.policy import placed

    if isinstance(context.teacher, EndpointSpec):
        from posttrain.distill.served_teacher import ServedTeacher

        served = ServedTeacher(context.teacher, entries=entries_of(tokenizer), top_k=k)
        served.check(tokenizer)
        return served
    if not isinstance(context.teacher, Path):
        raise PosttrainError(Problem(f"stage {context.name}: `logits` needs one teacher, here or served"))
    settings = context.recipe.model
    log.info("%s: loading %s for its log-probabilities", context.name, context.teacher)
    teacher = load_teacher(str(context.teacher), tokenizer, dtype=settings.dtype, attention=settings.attention)
    check_rows("teacher", teacher, entries_of(tokenizer))
    teacher = placed(teacher, cpu=context.recipe.engine.cpu)
    return LocalTeacher(teacher, entries=entries_of(tokenizer), k=k, temperature=temperature)


def make_trainer(
    stage: SftStage, logits: StoredLogits, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None
) -> Any:
    """TRL's SFT trainer, learning from the stored log-probabilities."""
    import numpy as np
    from datasets import load_from_disk

    from posttrain.distill.cached_trainer import CachedTeacherTrainer
    from posttrain.distill.teacher import entries_of

    rows = load_from_disk(str(context.dir.data / "train"))
    rows = rows.add_column("row", np.arange(len(rows)))
    trainer = stage.trainer_over(rows, CachedTeacherTrainer, context, model, tokenizer, peft_config)
    trainer.teach(
        open_cache(context.dir.data),
        entries=entries_of(tokenizer),
        beta=logits.beta,
        temperature=logits.temperature,
        cross_entropy=logits.cross_entropy,
    )
    return trainer


def open_cache(data: Path) -> LogprobCache:
    """The log-probabilities of the stage with this data directory.

    Raises:
        PosttrainError: they are not there any more, or not whole.
    """
    place = place_of(data)
    if place is None:
        raise PosttrainError(Problem("no log-probabilities are stored for these data", str(data)))
    return LogprobCache(place)
