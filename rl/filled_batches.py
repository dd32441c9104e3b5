"""Generation batches filled with groups that carry a difference in reward, in TRL's GRPO trainer.

Before TRL generates, the groups are generated and scored here, more of them than needed; those with a difference are
handed to TRL with their completions and rewards, which it would only find anew. All else stays TRL's. Every process
fills its own part from its own share of the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather

from posttrain.model.generation import Completion
from posttrain.rl.advantage_rows import differs
from posttrain.rl.stream import DynamicSampling, QueryStream, stratum_of


@dataclass
class Group:
    """The rollouts of one query: G rows with their completions and rewards (G, rewards)."""

    place: int
    rows: list[dict[str, Any]]
    completions: list[Completion]
    rewards_G_R: torch.Tensor
    differs: bool

    @property
    def tokens(self) -> int:
        return sum(len(c.prompt_ids) + len(c.completion_ids) for c in self.completions)


class FilledBatches:
    """Mixin before `PerSampleRollouts`. `fill_batches` is called once, after `set_rollouts`."""

    _stream: QueryStream | None = None
    _filled: list[Group] | None = None

    def fill_batches(self, spec: DynamicSampling, *, shuffled: bool, seed: int) -> None:
        """Fill generation batches as `spec` says, with queries of the training data in the recipe's order."""
        trainer: Any = self
        rows = trainer.train_dataset
        process, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
        self._dynamic = spec
        self._least = len(rows) // processes  # queries that every process has
        self._stream = QueryStream(
            range(process, len(rows), processes),
            [stratum_of(row) for row in rows],
            dict(enumerate(rows["pass_rate"])) if "pass_rate" in rows.column_names else {},
            group=trainer.num_generations,
            shuffled=shuffled,
            seed=seed,
        )
        trainer.counters |= {"groups": 0, "equal_groups": 0}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        trainer: Any = self
        if self._stream is None or not trainer.model.training:
            return super()._generate_and_score_completions(inputs)  # type: ignore[misc, no-any-return]
        groups = self._fill(len(inputs) // trainer.num_generations, self._stream)
        self._filled = groups
        try:
            rows = [row for group in groups for row in group.rows]
            return super()._generate_and_score_completions(rows)  # type: ignore[misc, no-any-return]
        finally:
            self._filled = None

    def _sample(self) -> list[Completion]:
        if self._filled is None:
            return super()._sample()  # type: ignore[misc, no-any-return]
        return [completion for group in self._filled for completion in group.completions]

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        if self._filled is None:
            return super()._calculate_rewards(*args)  # type: ignore[misc, no-any-return]
        scores: torch.Tensor = gather(torch.cat([group.rewards_G_R for group in self._filled]))
        self._scores = scores
        return scores

    def _fill(self, wanted: int, stream: QueryStream) -> list[Group]:
        """`wanted` groups, those with a difference first among all that were generated."""
        groups: list[Group] = []
        tries, passed_over = 0, stream.passed_over
        for attempt in range(self._dynamic.tries):
            missing = wanted - sum(group.differs for group in groups)
            room = min(int(self._dynamic.oversampling * wanted), self._least) - len(groups)
            taken = {group.place for group in groups}
            places = stream.draw(missing, room, taken) if missing > 0 else []
            # Rewards are gathered, so all processes generate equally many groups.
            count = self._at_most(len(places))
            places += stream.draw_any(count - len(places), {*taken, *places})
            if not places:
                break
            groups += self._generated(places, attempt)
            tries += 1
        chosen = sorted(groups, key=lambda group: not group.differs)[:wanted]
        self._log_filling(groups, chosen, tries, stream.passed_over - passed_over)
        return chosen

    def _at_most(self, count: int) -> int:
        """The largest count of any process."""
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return count
        return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())

    def _generated(self, places: Sequence[int], attempt: int) -> list[Group]:
        trainer: Any = self
        size = trainer.num_generations
        rows = [dict(row) for place in places for row in [trainer.train_dataset[place]] * size]
        completions = trainer.sample_rows(rows, attempt)
        ids = [completion.completion_ids for completion in completions]
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        answers = [[{"role": "assistant", "content": text}] for text in texts]
        gathered = trainer._calculate_rewards(rows, [row["prompt"] for row in rows], answers, ids)
        own = slice(trainer.accelerator.process_index * len(rows), (trainer.accelerator.process_index + 1) * len(rows))
        rewards = gathered[own].view(len(places), size, -1)
        groups = [
            Group(place, rows[i * size : (i + 1) * size], completions[i * size : (i + 1) * size], rewards[i], False)
            for i, place in enumerate(places)
        ]
        scale = float(trainer.reward_weights.clamp(min=0).sum()) or 1.0
        noted = []
        for group in groups:
            group.differs = differs(group.rewards_G_R, trainer.reward_weights, trainer.multi_objective_aggregation)
            mean = float(torch.nan_to_num(group.rewards_G_R * trainer.reward_weights.to(rewards.device)).sum(-1).mean())
            noted.append((group.place, group.differs, min(1.0, max(0.0, mean / scale))))
        assert self._stream is not None
        self._stream.note(noted)
        return groups

    def _log_filling(self, groups: Sequence[Group], chosen: Sequence[Group], tries: int, passed_over: int) -> None:
        trainer: Any = self
        kept = {group.place for group in chosen}
        weights = trainer.reward_weights
        local = [
            len(groups),
            sum(not group.differs for group in groups),
            sum(group.differs for group in chosen),
            len(chosen),
            passed_over,
            sum(group.tokens for group in groups if group.place not in kept),
        ]
        drawn, equal, with_difference, size, passed, unused = map(int, trainer._summed(local))
        figures = trainer._metrics["train"]
        figures["dynamic_sampling/groups"].append(float(drawn))
        figures["dynamic_sampling/equal_groups"].append(equal / drawn)
        figures["dynamic_sampling/filled"].append(with_difference / size)
        figures["dynamic_sampling/passed_over"].append(float(passed))
        figures["dynamic_sampling/tries"].append(float(tries))
        # TRL's `reward` is over the groups that are trained on, hence no measure of progress.
        rewards = torch.cat([group.rewards_G_R for group in groups])
        total = (torch.nan_to_num(rewards) * weights.to(rewards.device)).sum(-1).mean()
        figures["dynamic_sampling/reward"].append(float(trainer.accelerator.gather(total).mean()))
        trainer.counters["groups"] += drawn
        trainer.counters["equal_groups"] += equal
        trainer.counters["rollout_tokens"] += unused

    def _rollout_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super()._rollout_state()  # type: ignore[misc]
        return state if self._stream is None else {**state, "stream": self._stream.state()}

    def _restore_rollouts(self, state: dict[str, Any]) -> None:
        super()._restore_rollouts(state)  # type: ignore[misc]
        if self._stream is not None:
            self._stream.restore(state["stream"])
