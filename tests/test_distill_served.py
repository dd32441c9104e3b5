"""On-policy distillation from served teachers, and from several: the same as from one that is here."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from posttrain.distill.agreement import measure
from posttrain.distill.cache import LogprobCache
from posttrain.distill.cache_stage import open_teacher
from posttrain.distill.cache_unchanged import check_unchanged
from posttrain.distill.cache_write import fill
from posttrain.distill.served_teacher import ServedTeacher, spans_of, told_together, top_of
from posttrain.distill.teacher import load_teacher
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.endpoint import EndpointSpec
from posttrain.recipe.kinds import stage_class
from posttrain.recipe.schema import DataSpec, EngineSpec, EvaluationSpec, ModelSpec, Recipe, TrainedTokenizer
from posttrain.recipe.stage import Stage, StageContext
from posttrain.recipe.teacher import Teachers
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import get_family
from tests.scripted_server import scripted, slowly

QWEN3 = get_family("qwen3")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 64, "initializer_range": 0.3,
}  # fmt: skip
TASKS = ("arithmetic", "exact")
TRAIN = {
    "max_steps": 3, "per_device_train_batch_size": 8, "max_completion_length": 8, "learning_rate": 1e-2,
    "logging_steps": 1, "save_strategy": "no", "report_to": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("run"))
    tokenizer = TrainedTokenizer(train_on=["sums"], vocab_size=330)
    spec = ModelSpec(architecture="Qwen3ForCausalLM", config=SHAPE, tokenizer=tokenizer)
    build_policy(spec, QWEN3, run.base, seed=1, texts=list(corpus(300, 0)))
    wider = spec.model_copy(update={"tokenizer": str(run.base), "config": {**SHAPE, "vocab_size": 400}})
    build_policy(wider, QWEN3, run.stage("flagship").model, seed=2)
    rows = [{**row, "task": TASKS[place % 2]} for place, row in enumerate(Arithmetic().queries(24, 0))]
    Dataset.from_list(rows).save_to_disk(str(run.data("sums")))
    return run.path


def telling(directory: Path, asked: list[list[int]] | None = None) -> Callable[[str, dict[str, Any]], Any]:
    """A server's answers from a model here: log-probabilities of prompts as vLLM tells them, and token ids."""
    model, tokenizer, lock = load_model(directory), load_tokenizer(directory), threading.Lock()

    def answer(path: str, body: dict[str, Any]) -> Any:
        if path == "/tokenize":
            return {"tokens": tokenizer(body["prompt"], add_special_tokens=False).input_ids}
        ids = body["prompt"]
        with lock, torch.no_grad():
            if asked is not None:
                asked.append(ids)
            # The padding of these random weights is as probable as all else; that of trained ones is not.
            logs = model(torch.tensor([ids])).logits[0, :, : len(tokenizer)].log_softmax(-1)
        told: list[Any] = [None]
        for at in range(1, len(ids)):
            top = logs[at - 1].topk(min(body["prompt_logprobs"], logs.shape[1]))
            entries = {str(int(i)): {"logprob": float(v)} for v, i in zip(*top, strict=True)}
            told.append({str(ids[at]): {"logprob": float(logs[at - 1, ids[at]])}, **entries})
        return {"choices": [{"text": "", "finish_reason": "length", "prompt_logprobs": told}]}

    return answer


def endpoint(url: str) -> EndpointSpec:
    return EndpointSpec(endpoint=url, model="teacher", patience=0)


def losses(root: Path, teacher: Any, **options: Any) -> list[float]:
    """What training under a teacher comes to."""
    given = {"teacher": "flagship", "queries": {"from": "sums"}, "train": TRAIN, **options}
    stage = stage_class("on_policy_distillation").model_validate(given)
    where = context(root, stage, teacher)
    if not (where.dir.data / "train").exists():
        where.dir.data.mkdir(parents=True)
        stage.build_data(where)
    trainer = stage.make_trainer(where, load_model(where.start), load_tokenizer(where.start), None)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def context(root: Path, stage: Stage, teacher: Any) -> StageContext:
    run = RunDir(root)
    recipe = Recipe(
        name="test",
        model=ModelSpec(path="nowhere"),
        data={"sums": DataSpec(task="arithmetic", size=24)},
        evaluation=EvaluationSpec(data=["sums"], max_new_tokens=8),
        engine=EngineSpec(cpu=True),
        stages={"student": stage},
    )
    given: dict[str, Any] = {"recipe": recipe, "name": "student", "run": run, "dir": run.stage("student")}
    return StageContext(**given, start=run.base, teacher=teacher, family=QWEN3, kind="hybrid", quiet=True)


@pytest.fixture(scope="module")
def here(root: Path) -> list[float]:
    """The losses under the flagship as a model of this process."""
    return losses(root, RunDir(root).stage("flagship").model)


def test_a_served_teacher_that_tells_every_entry_teaches_what_it_would_here(root: Path, here: list[float]) -> None:
    with scripted(telling(RunDir(root).stage("flagship").model)) as it:
        assert losses(root, endpoint(it.url), top_k=400) == pytest.approx(here, rel=1e-3)


def test_fewer_entries_give_a_lower_divergence_that_is_one(root: Path, here: list[float]) -> None:
    with scripted(telling(RunDir(root).stage("flagship").model)) as it:
        few = losses(root, endpoint(it.url), top_k=8)
    assert 0 < few[0] < here[0]
    assert here[0] == pytest.approx(losses(root, RunDir(root).stage("flagship").model)[0])


def test_each_sample_is_taught_by_its_own_teacher(root: Path, here: list[float]) -> None:
    flagship, asked = RunDir(root).stage("flagship").model, list[list[int]]()
    with scripted(telling(flagship, asked)) as it:
        both = Teachers(by_task={"exact": endpoint(it.url)}, default=str(flagship))
        assert losses(root, both, top_k=400) == pytest.approx(here, rel=1e-3)  # the same teacher, here and there
    assert 0 < len(asked) < 24  # its own samples alone


def test_another_teacher_teaches_something_else(root: Path, here: list[float]) -> None:
    flagship, start = RunDir(root).stage("flagship").model, RunDir(root).base
    mixed = losses(root, Teachers(by_data={"sums": str(start)}, default=str(flagship)))
    assert mixed[0] == pytest.approx(0, abs=1e-5) and here[0] > 0.1  # the student's own start teaches it nothing


def test_a_sample_without_a_teacher_is_named_by_its_task(root: Path) -> None:
    with pytest.raises(PosttrainError, match=r"no teacher: those of task `exact`"):
        losses(root, Teachers(by_task={"arithmetic": str(RunDir(root).base)}))


def test_the_tokenizers_are_held_together_before_anything_starts(root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(RunDir(root).base)
    answer = telling(RunDir(root).base)
    with scripted(answer) as it:
        ServedTeacher(endpoint(it.url), entries=len(tokenizer), top_k=4).check(tokenizer)
        assert len([path for path, _, _ in it.asked if path == "/tokenize"]) >= 5

        def other(path: str, body: dict[str, Any]) -> Any:
            said = answer(path, body)
            return {"tokens": said["tokens"][::-1]} if path == "/tokenize" else said

        it.answer = other
        with pytest.raises(PosttrainError, match=r"the teacher at .* is not the student's: in 'The quick"):
            ServedTeacher(endpoint(it.url), entries=len(tokenizer), top_k=4).check(tokenizer)
        it.answer = answer
        tokenizer_of_others = TrainedTokenizer(train_on=["sums"], vocab_size=300)
        spec = ModelSpec(architecture="Qwen3ForCausalLM", config=SHAPE, tokenizer=tokenizer_of_others)
        build_policy(spec, QWEN3, tmp_path / "other", seed=3, texts=["other words altogether"] * 50)
        named = endpoint(it.url).model_copy(update={"tokenizer": str(tmp_path / "other")})
        with pytest.raises(PosttrainError, match="the tokenizers of student and teacher"):
            ServedTeacher(named, entries=len(tokenizer), top_k=4).check(tokenizer)


@pytest.mark.parametrize(
    ("answer", "said_of_it"),
    [
        ({"choices": [{"text": "x", "finish_reason": "stop"}]}, r"does not tell log-probabilities(.|\n)*vLLM"),
        (
            (400, {"error": {"message": "Requested prompt logprobs of 64, which is greater than max allowed: 20"}}),
            r"max allowed: 20(.|\n)*--max-logprobs 64",
        ),
        ((400, {"error": {"message": "maximum context length is 4"}}), r"--max-model-len"),
    ],
    ids=["no vLLM", "too many", "too long"],
)
def test_what_a_server_cannot_tell_is_named_with_the_remedy(answer: Any, said_of_it: str) -> None:
    with scripted(lambda path, body: answer) as it, pytest.raises(PosttrainError, match=said_of_it):
        ServedTeacher(endpoint(it.url), entries=100, top_k=64)([[1, 2, 3]], [[(1, 3)]])


def told_otherwise(change: Callable[[list[Any]], Any]) -> Callable[[str, dict[str, Any]], Any]:
    """A server's answers with the log-probabilities at the second place and on changed."""

    def answer(path: str, body: dict[str, Any]) -> Any:
        told: list[Any] = [None]
        for token in body["prompt"][1:]:
            told.append({str(one): {"logprob": -1.0 - one / 9} for one in (token, token + 1, token + 2)})
        return {"choices": [{"prompt_logprobs": change(told)}]}

    return answer


@pytest.mark.parametrize(
    ("change", "said_of_it"),
    [
        (lambda told: [None, None, *told[2:]], "tells no log-probabilities at place 1"),
        (lambda told: [None, told[2], told[1]], "was sent entry 2 at place 1, and tells of 3, 4, 5 there"),
        (lambda told: [None, {"2": told[1]["2"]}, told[2]], "tells 1 log-probabilities where 3 are asked for"),
        (lambda told: [None, told[1] | {"2": {"logprob": None}}, told[2]], "log-probabilities that are none"),
        (lambda told: [None, told[1] | {"2": {"logprob": float("nan")}}, told[2]], "that are none: NaN"),
        (lambda told: [None, told[1] | {"2": {}}, told[2]], "log-probabilities that are none"),
        (lambda told: [None, told[1] | {"-4": {"logprob": -1.0}}, told[2]], "that are none: NaN, or an id below 0"),
        (lambda told: [None, told[1] | {"2": {"logprob": 999.5}}, told[2]], "masses add up to more than 1"),
        (lambda told: [None, told[1] | {"two": {"logprob": -1.0}}, told[2]], "log-probabilities that are none"),
    ],
    ids=["nothing", "other ids", "fewer", "null", "NaN", "no number", "an id below 0", "logits", "an id that is none"],
)
def test_what_a_server_tells_of_other_tokens_or_as_no_numbers_is_refused(change: Any, said_of_it: str) -> None:
    with scripted(told_otherwise(lambda told: told)) as it:
        teacher = ServedTeacher(endpoint(it.url), entries=100, top_k=3)
        assert teacher([[1, 2, 3]], [[(1, 3)]]).ids.tolist() == [[2, 3, 4], [3, 4, 5]]
        it.answer = told_otherwise(change)
        with pytest.raises(PosttrainError, match=said_of_it):
            teacher([[1, 2, 3]], [[(1, 3)]])


def test_one_of_several_teachers_with_fewer_rows_than_entries_is_refused(root: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(RunDir(root).base), load_tokenizer(RunDir(root).base)
    model.resize_token_embeddings(len(tokenizer) - 8)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PosttrainError, match=r"the teacher's vocabulary has \d+ rows, its tokenizer \d+ entries"):
        losses(root, Teachers(by_data={"sums": str(tmp_path)}, default=str(RunDir(root).base)))


def test_padding_has_no_part_in_what_is_told() -> None:
    told = [None, {"7": {"logprob": -0.7}, "99": {"logprob": -0.9}, "2": {"logprob": -2.5}}]
    with scripted(lambda path, body: {"choices": [{"prompt_logprobs": told}]}) as it:
        top = ServedTeacher(endpoint(it.url), entries=50, top_k=3)([[1, 7]], [[(1, 2)]])
    assert top.ids.tolist() == [[7, 2, 0]]
    buckets = top.buckets(torch.float64).exp()[0]
    known, rest = torch.tensor([-0.7, -2.5]).exp(), 1 - torch.tensor([-0.7, -2.5, -0.9]).exp().sum()
    expected = torch.cat([known, torch.zeros(1), rest[None]])
    assert buckets == pytest.approx((expected / expected.sum()).double(), abs=1e-5)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_what_a_server_tells_is_sorted_and_the_rest_is_one_number(k: int) -> None:
    draw, entries = np.random.default_rng(k), 40
    told = []
    for _ in range(60):
        some = draw.choice(50, size=k + int(draw.integers(0, 3)), replace=False)  # those from 40 on are padding
        logs = np.log(draw.dirichlet(np.ones(len(some) + 1))[1:])
        told.append({str(token): {"logprob": float(one)} for token, one in zip(some, logs, strict=True)})
    top = top_of(told, entries=entries, k=k)
    for row, entry in enumerate(told):
        masses = {int(token): np.exp(own["logprob"]) for token, own in entry.items()}
        best = sorted((token for token in masses if token < entries), key=lambda token: -masses[token])[:k]
        ids, found = top.ids[row].tolist(), top.log_probs[row].double().exp().tolist()
        expected = [masses[one] for one in best] + [0] * (k - len(best))
        assert ids[: len(best)] == best and found == pytest.approx(expected)
        assert len(set(ids)) == k and max(ids) < entries
        padding = sum(mass for token, mass in masses.items() if token >= entries)
        assert float(top.tail[row].exp()) == pytest.approx(1 - sum(expected) - padding, abs=1e-6)
    assert top_of([], entries=entries, k=k).ids.shape == (0, k)


def test_the_next_batches_are_asked_about_meanwhile_and_told_in_order() -> None:
    """A server that answers nobody before eight are waiting, the first last."""
    together = threading.Barrier(8)

    def answer(path: str, body: dict[str, Any]) -> Any:
        together.wait(timeout=20)
        first = body["prompt"][0]
        told = [None, *({str(token): {"logprob": -9.0}, str(first): {"logprob": -0.5}} for token in body["prompt"][1:])]
        return slowly(0.05 if first == 0 else 0, {"choices": [{"prompt_logprobs": told}]})

    batches: list[Any] = [([[number, 1, 2], [number + 1, 1]], [[(1, 3)], [(1, 2)]]) for number in range(0, 16, 2)]
    batches.insert(1, ([[30, 31]], [[]]))  # nothing is asked about it
    with scripted(answer) as it:
        teacher = ServedTeacher(endpoint(it.url).model_copy(update={"concurrency": 8}), entries=50, top_k=1)
        told = [top.ids.flatten().tolist() for top in teacher.stream(batches)]
    assert told == [[0, 0, 1], [], *([number, number, number + 1] for number in range(2, 16, 2))]
    assert len(it.asked) == 16 and teacher.tokens == 8 * 5


def test_several_servers_are_asked_at_the_same_time() -> None:
    """None of them answers before every sequence has come to its own."""
    together = threading.Barrier(5)

    def answering(first: int) -> Callable[[str, dict[str, Any]], Any]:
        def answer(path: str, body: dict[str, Any]) -> Any:
            together.wait(timeout=20)
            said = ({str(token): {"logprob": -9.0}, str(first): {"logprob": -0.5}} for token in body["prompt"][1:])
            return {"choices": [{"prompt_logprobs": [None, *said]}]}

        return answer

    with scripted(answering(40)) as one, scripted(answering(41)) as other, scripted(answering(42)) as idle:
        teachers = [ServedTeacher(endpoint(it.url), entries=50, top_k=1) for it in (one, other, idle)]
        asked = [
            ([[1, 2, 3], [4, 5]], [[(1, 3)], [(1, 2)]]),
            ([[n, n + 1] for n in (6, 7, 8)], [[(1, 2)]] * 3),
            ([], []),
        ]
        told = told_together(list(zip(teachers, asked, strict=True)))
    assert [top.ids.flatten().tolist() for top in told] == [[40] * 3, [41] * 3, []]
    assert (len(one.asked), len(other.asked), len(idle.asked)) == (2, 3, 0)


def test_runs_of_chosen_tokens() -> None:
    assert spans_of([True, True, False, True], 5) == [(5, 7), (8, 9)]
    assert spans_of([False, False], 3) == [] and spans_of([False, True], 3) == [(4, 5)]


# --- agreement -------------------------------------------------------------------------------------------------------


def agreement(root: Path, teacher: Any) -> dict[str, Any]:
    """Of the student's start with a teacher."""
    run = RunDir(root)
    if not run.reserved("sums").exists():
        run.reserved("sums").parent.mkdir()
        sums, copied = list(Arithmetic().queries(6, 9)), list(Arithmetic().queries(20, 10))
        rows = sums[:3] + [{**query, "task": "copied"} for query in copied] + sums[3:]
        Dataset.from_list(rows).to_parquet(str(run.reserved("sums")))
    stage = stage_class("on_policy_distillation").model_validate({"teacher": "flagship", "queries": {"from": "sums"}})
    where = context(root, stage, teacher)
    where.dir.path.mkdir(parents=True, exist_ok=True)
    if not where.dir.model.exists():
        where.dir.model.symlink_to(run.base)
    return measure(where)


def test_a_model_agrees_with_itself_and_less_with_another(root: Path) -> None:
    run = RunDir(root)
    same, other = agreement(root, run.base), agreement(root, run.stage("flagship").model)
    assert [(row["mode"], row["data"], row["task"], row["answers"]) for row in same["rows"]] == [
        (mode, "sums", *each) for mode in ("thinking", "non_thinking") for each in (("arithmetic", 6), ("copied", 16))
    ]
    for own, far in zip(same["rows"], other["rows"], strict=True):
        assert own["top1"] == 1.0 and own["divergence"] == pytest.approx(0, abs=1e-6)
        assert far["top1"] < 0.9 and far["divergence"] > 0.1
        assert own["tokens"] == far["tokens"] > 6  # the same answers
    worst = other["tokens"]
    assert [one["divergence"] for one in worst] == sorted((one["divergence"] for one in worst), reverse=True)
    assert all(one["before"] and len(one["teacher"]) == 3 for one in worst)
    with scripted(telling(run.stage("flagship").model)) as it:
        served = agreement(root, endpoint(it.url))
    for near, far in zip(served["rows"], other["rows"], strict=True):
        assert (near["top1"], near["divergence"]) == pytest.approx((far["top1"], far["divergence"]), rel=1e-3)


def test_several_teachers_are_in_memory_one_after_the_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []

    def load(*given: Any, **options: Any) -> Any:
        gc.collect()
        assert not [one for one in loaded if one() is not None]
        model = load_teacher(*given, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("posttrain.distill.agreement.load_teacher", load)
    run = RunDir(root)
    both = Teachers(by_task={"copied": str(run.base)}, default=str(run.stage("flagship").model))
    found = {(row["mode"], row["task"]): row["top1"] for row in agreement(root, both)["rows"]}
    assert len(loaded) == 2 and len(found) == 4
    for (_, task), top1 in found.items():
        assert (top1 == 1.0) == (task == "copied")


def test_a_teacher_that_memory_does_not_hold_leaves_the_stage_finished(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("80 GiB")

    monkeypatch.setattr("posttrain.distill.agreement.load_teacher", load)
    found = agreement(root, RunDir(root).base)
    assert found == {"not_measured": "the memory does not hold student and teacher beside each other"}


def test_a_teacher_that_is_gone_leaves_the_stage_finished(root: Path) -> None:
    found = agreement(root, endpoint("http://127.0.0.1:9"))
    assert "is not reachable" in found["not_measured"]


def test_a_server_that_dies_while_a_cache_is_filled_costs_no_shard_that_was_whole(root: Path, tmp_path: Path) -> None:
    flagship, entries = RunDir(root).stage("flagship").model, len(load_tokenizer(RunDir(root).base))
    rows = [list(range(5 + number, 15 + number)) for number in range(12)]  # nine positions each, three rows a shard
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    options: dict[str, Any] = {"k": 8, "entries": entries, "shard_tokens": 27}
    answer, asked = telling(flagship), itertools.count()

    def filled(name: str, url: str) -> LogprobCache:
        one_at_a_time = endpoint(url).model_copy(update={"concurrency": 1})
        fill(tmp_path / name, data, lambda: ServedTeacher(one_at_a_time, entries=entries, top_k=8), {}, **options)
        return LogprobCache(tmp_path / name)

    with scripted(lambda path, body: answer(path, body) if next(asked) < 7 else (503, b"gone")) as it:
        with pytest.raises(PosttrainError, match="HTTP 503"):
            filled("broken", it.url)
        assert not list((tmp_path / "broken").glob("*.partial"))
        it.answer, it.asked = answer, []
        broken = filled("broken", it.url)
        assert len(it.asked) == 6  # two of four shards stood
        whole = filled("whole", it.url)
    mine, theirs = broken.read(list(range(12))), whole.read(list(range(12)))
    assert torch.equal(mine.ids, theirs.ids) and torch.equal(mine.log_probs, theirs.log_probs)


def test_a_server_that_came_back_with_other_weights_continues_no_cache(root: Path, tmp_path: Path) -> None:
    """Under the same name: asked about a row that stands, it says something else."""
    run, entries = RunDir(root), len(load_tokenizer(RunDir(root).base))
    rows = [list(range(5 + number, 15 + number)) for number in range(12)]
    data = Dataset.from_dict({"input_ids": rows, "labels": [[-100] * 10, *rows[1:]]})
    with scripted(telling(run.stage("flagship").model)) as it:
        teacher = ServedTeacher(endpoint(it.url), entries=entries, top_k=8)
        check_unchanged(tmp_path, data, teacher, 8)  # nothing stands yet
        fill(tmp_path, data, lambda: teacher, {}, k=8, entries=entries)
        it.asked = []
        check_unchanged(tmp_path, data, teacher, 8)
        assert [body["prompt"] for _, body, _ in it.asked] == [rows[1]]
        it.answer = telling(run.base)
        with pytest.raises(PosttrainError, match=r"is not the one whose log-probabilities stand in"):
            check_unchanged(tmp_path, data, teacher, 8)


def test_log_probabilities_to_be_stored_may_come_from_a_server(root: Path) -> None:
    run, tokenizer = RunDir(root), load_tokenizer(RunDir(root).base)
    stage = stage_class("on_policy_distillation").model_validate({"teacher": "flagship", "queries": {"from": "sums"}})
    ids = tokenizer("7 c+5 d*3 =?", add_special_tokens=False).input_ids
    asked = [ids, ids[:4]], [[(1, 3), (4, len(ids))], [(2, 4)]]
    flagship = run.stage("flagship").model
    local = open_teacher(context(root, stage, flagship), tokenizer, k=8, temperature=1.0)(*asked)
    with scripted(telling(flagship)) as it:
        served = open_teacher(context(root, stage, endpoint(it.url)), tokenizer, k=8, temperature=1.0)(*asked)
    assert torch.equal(served.ids, local.ids)
    assert torch.allclose(served.log_probs, local.log_probs, atol=1e-4)
    assert torch.allclose(served.tail, local.tail, atol=1e-4)
