"""A sample names its task, a task names its rewards: one score with components, reasons kept, faults counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.recipe.kinds import stage_class
from posttrain.rl.rewards import Reward, Rollout, Score, resolve_reward
from posttrain.rl.rewards.by_task import combined
from posttrain.rl.rewards.column import RewardColumn
from posttrain.rl.rewards.reading import RolloutFile
from posttrain.tasks.arithmetic import Arithmetic
from posttrain.tasks.registry import get_task
from posttrain.tasks.task import plain_message

DIGIT = {"id": "d", "task": "number", "prompt": [{"role": "user", "content": "1+1?"}], "answer": "2", "entry": ""}
LETTER = {"id": "l", "task": "choice", "prompt": [{"role": "user", "content": "A or B?"}], "answer": "B", "entry": ""}


def said(content: str, **facts: Any) -> Rollout:
    return Rollout(message=plain_message(content), text=content, **facts)


def late(query: Mapping[str, Any], rollout: Rollout) -> float:
    raise TimeoutError("no verdict within 3 s")


def broken(query: Mapping[str, Any], rollout: Rollout) -> float:
    raise KeyError("nothing there")


def half(query: Mapping[str, Any], rollout: Rollout) -> Score:
    return Score(0.5, "half of it")


class Counting:
    """Scores a batch by its size."""

    sizes: ClassVar[list[int]] = []

    def __call__(self, query: Mapping[str, Any], rollout: Rollout) -> Score:
        return self.batch([query], [rollout])[0]

    def batch(self, queries: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> list[Score]:
        self.sizes.append(len(queries))
        return [Score(1.0)] * len(queries)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rewards of this file under a name that a recipe could give."""
    import sys

    monkeypatch.setitem(sys.modules, "rewards_of_this_test", SimpleNamespace(**globals()))
    yield


def by_task(**tables: Any) -> Reward:
    return resolve_reward("task", {"tables": tables})


def test_each_row_is_paid_by_its_own_tasks_table() -> None:
    reward = by_task(number={"accuracy": 3, "rewards_of_this_test:half": 1})
    right, wrong, letter = reward.batch([DIGIT, DIGIT, LETTER], [said("2"), said("3"), said("B")])
    assert right.value == pytest.approx((3 * 1 + 1 * 0.5) / 4)
    assert wrong.value == pytest.approx(0.5 / 4)
    assert set(letter.components) == {"accuracy"} and letter.value == 1.0
    assert right.components["rewards_of_this_test:half"].reason == "half of it"
    assert "accuracy: 1.00 ('2' for '2')" in right.reason
    assert reward({"id": "x"}, said("2")).value is None


def test_a_task_may_bring_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "rewards", {"accuracy": 1.0, "answer_format": 1.0}, raising=False)
    query = next(get_task("arithmetic").queries(1, 0))
    wrong = f"\\boxed{{{(int(query['answer']) + 1) % 10}}}"
    assert set(resolve_reward("task")(query, said(wrong)).components) == {"accuracy", "answer_format"}


values = st.one_of(st.none(), st.floats(0, 1))


@given(st.lists(values, min_size=1, max_size=3), st.lists(values, min_size=0, max_size=2))
def test_form_is_a_discount_on_content(contents: list[float | None], forms: list[float | None]) -> None:
    names = [f"c{i}" for i in range(len(contents))] + ["format", "length"][: len(forms)]
    table = [(Reward(name, half), 1.0) for name in names]
    scores = {name: Score(value) for name, value in zip(names, [*contents, *forms], strict=True)}
    whole = combined(table, scores).value
    paid = [value for value in contents if value is not None]
    shaped = [value for value in forms if value is not None]
    if paid:
        content = sum(paid) / len(paid)
        assert whole is not None and whole <= content + 1e-9
        assert whole == pytest.approx(content * (len(paid) + sum(shaped)) / (len(paid) + len(shaped)))
    else:
        assert whole == (pytest.approx(sum(shaped) / len(shaped)) if shaped else None)


def test_form_alone_earns_nothing_where_the_content_is_wrong_or_could_not_be_scored() -> None:
    wrong = by_task(number={"accuracy": 1, "length": 9})(DIGIT, said("3", tokens=1, max_tokens=10))
    assert wrong.value == 0.0 and wrong.components["length"].value == 1.0
    failed = by_task(number={"rewards_of_this_test:broken": 1, "length": 9})(DIGIT, said("2", tokens=1, max_tokens=10))
    assert failed.value is None and failed.fault == "raised"


def test_components_are_asked_in_batches_and_once_a_rollout() -> None:
    Counting.sizes.clear()
    table = {"accuracy": 1, "rewards_of_this_test:Counting": 1}
    by_task(number=table).batch([DIGIT] * 5 + [LETTER], [said("2")] * 6)
    assert Counting.sizes == [5]


def test_components_faults_and_timeouts_are_logged_by_themselves() -> None:
    table = {"accuracy": 1, "rewards_of_this_test:late": 1}
    column = RewardColumn("task", by_task(number=table))
    logged: dict[str, float] = {}
    rows = {key: [DIGIT[key], LETTER[key], LETTER[key]] for key in DIGIT if key != "prompt"}
    scores = column(rollout=[said("2"), said("B"), said("A")], log_metric=logged.__setitem__, **rows)
    assert scores == [1.0, 1.0, 0.0]
    assert logged["rewards/task/accuracy"] == pytest.approx(2 / 3)
    assert logged["rewards/task/rewards_of_this_test:late/failed"] == 1.0
    assert (logged["rewards/task/task/number"], logged["rewards/task/task/choice"]) == (1.0, 0.5)
    alone = RewardColumn("late", late)
    with pytest.raises(PosttrainError, match=r"raised on 1 of 1 rollouts \(TimeoutError\)"):
        alone(rollout=[said("2")], log_metric=logged.__setitem__)
    assert (alone.failed, alone.timeouts) == (1, 1)


def test_a_component_that_mostly_fails_stops_the_run_though_others_score() -> None:
    column = RewardColumn("task", by_task(number={"accuracy": 1, "rewards_of_this_test:broken": 1}))
    rows = {key: [DIGIT[key]] * 3 for key in DIGIT if key != "prompt"}
    with pytest.raises(PosttrainError, match="'rewards_of_this_test:broken' raised on 8 of 8 rollouts"):
        for _ in range(4):
            column(rollout=[said("2")] * 3, **rows)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"number": {"acuracy": 1}}, "did you mean 'accuracy'"),
        ({"number": {"length": {"weight": 1, "options": {"bufer": 1}}}}, "no option 'bufer'"),
        ({"numbr": {"accuracy": 1}}, "did you mean number"),
        ({"number": {"accuracy": "much"}}, "is no weight"),
        ({"number": {"accuracy": 0}}, "a weight above 0"),
        ({"number": {"task": 1}}, "will not do"),
        ({"number": 1.0}, "a mapping of reward to weight"),
    ],
)
def test_a_table_is_checked_with_the_recipe(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(PosttrainError, match=told):
        resolve_reward("task", {"tables": tables})


def test_by_task_is_short_for_the_one_reward() -> None:
    stage: Any = stage_class("grpo").model_validate({"queries": {"from": "x"}, "rewards": "by_task"})
    assert stage.rewards == {"task": 1.0}
    columns, weights = stage.reward_columns()
    assert [column.name for column in columns] == ["task"] and weights == [1.0]


def test_some_rollouts_are_kept_to_read_and_those_of_a_killed_run_are_not_kept_twice(tmp_path: Path) -> None:
    def batches(steps: range, file: RolloutFile) -> None:
        columns = [RewardColumn("task", resolve_reward("task"), reading=file), RewardColumn("half", half, reading=file)]
        rows = {key: [DIGIT[key]] * 8 for key in DIGIT}
        rows["prompts"] = rows.pop("prompt")
        for step in steps:
            for column in columns:
                column(rollout=[said("2")] * 8, trainer_state=SimpleNamespace(global_step=step), **rows)

    path = tmp_path / "rollouts.jsonl"
    batches(range(10), RolloutFile(path, 2))
    first = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in first] == [step for step in (0, 1, 3, 7) for _ in range(4)]
    assert first[0]["rewards"]["half"] == {"score": 0.5, "reason": "half of it"}
    assert first[0]["rewards"]["task"]["components"]["accuracy"]["score"] == 1.0
    assert (first[0]["prompt"], first[0]["completion"], first[0]["answer"]) == ("1+1?", "2", "2")
    batches(range(3, 5), RolloutFile(path, 2))
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [step for step in (0, 1, 3, 4) for _ in range(4)]
