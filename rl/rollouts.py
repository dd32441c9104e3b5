"""Rollouts with a mode and a thinking budget of their own, in TRL's GRPO and distillation trainers alike.

TRL has one mode (`chat_template_kwargs`) and no budget per run. Here each row of the data says what it asks for: the
columns `mode`, `switch` (how the mode is asked for) and `thinking_budget` (-1: none). Generation is our `Generator`'s;
all else stays TRL's.

Tokens that a budget forced are not the policy's choice. They were "sampled" with probability 1 where the policy's own
is tiny, so their importance ratio explodes and training would teach the policy to emit them. TRL has a mask for tokens
that came from outside (`tool_mask`): what it masks is left out of loss, importance ratio, KL, entropy and every
denominator, in both trainers. The forced tokens go there, and so does what an environment says (`multi_turn.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from posttrain.evaluation.play import Played
from posttrain.model.generation import Completion, Generator, Prompt
from posttrain.rl.multi_turn import Episodes
from posttrain.rl.rewards import Rollout
from posttrain.rl.vllm_rollouts import SyncedEngine
from posttrain.templates.families import Family, Sampling


def rollout_seed(seed: int, global_step: int, micro_step: int, process: int) -> int:
    """The seed of one generation in one process: the same in a resumed run, another in every other generation."""
    digest = hashlib.blake2b(repr((seed, global_step, micro_step, process)).encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "big") >> 1


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The prompt that a row asks for. A mode asked for by a flag stands in the text: the template is not told of it."""
    mode = (row.get("mode") or None) if row.get("switch", "template") == "template" else None
    budget = row.get("thinking_budget", -1)
    # Arrow gives every message the keys of all: what is null was not there.
    return Prompt(
        messages=[{key: value for key, value in message.items() if value is not None} for message in row["prompt"]],
        mode=mode,
        thinking_budget=None if budget is None or budget < 0 else int(budget),
        tools=row.get("tools") or None,
    )


def rollout_of(completion: Completion, row: Mapping[str, Any], max_tokens: int) -> Rollout:
    """A completion as rewards see it: with the mode that the row asked for, however it was asked for."""
    return Rollout(
        message=completion.message,
        mode=row.get("mode") or None,
        text=completion.text,
        prefilled=completion.prefilled,
        truncated=completion.truncated,
        closed_by=completion.closed_by,
        thinking_budget=completion.thinking_budget,
        thinking_tokens=completion.thinking_tokens,
        tokens=len(completion.completion_ids) - sum(completion.forced),
        max_tokens=max_tokens,
        outcome=completion.outcome if isinstance(completion, Played) else None,
    )


class PerSampleRollouts:
    """Mixin before TRL's `GRPOTrainer` or `DistillationTrainer`. `set_rollouts` is called once, after construction.

    Counters (all processes, all of the run, prompts included): `rollout_tokens` went through generation,
    `train_tokens` through forward and backward.
    """

    family: Family
    rollout_batch_size: int | None
    counters: dict[str, int]

    def set_rollouts(
        self,
        family: Family,
        *,
        seed: int,
        batch_size: int | None = None,
        turn_tokens: int | None = None,
        engine: SyncedEngine | None = None,
    ) -> None:
        """Say how rollouts are made.

        Args:
            family: markers, stop text and modes.
            seed: of the stage; every generation's own seed is derived from it.
            batch_size: rollouts generated at once in one process; None: all of a generation batch.
            turn_tokens: of one turn of an interactive task at most (`Episodes`).
            engine: what samples; None: the policy itself.
        """
        self._engine = engine
        self._episodes = Episodes(turn_tokens)
        self.family, self._stage_seed, self.rollout_batch_size = family, seed, batch_size
        self.counters = {"rollout_tokens": 0, "train_tokens": 0}
        self._rows: list[dict[str, Any]] = []
        self._completions: list[Completion] = []
        self._attempt = 0

    @property
    def rollout_tokens(self) -> int:
        return self.counters["rollout_tokens"]

    @property
    def train_tokens(self) -> int:
        return self.counters["train_tokens"]

    # What TRL calls, in the order in which it does.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # Copies: a row that stands twice in a batch gets two different rollouts.
        self._rows = [dict(row) for row in inputs]
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(self._rows)  # type: ignore[misc]
        finally:
            self._rows, self._completions = [], []
        return output

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        output = super()._generate(prompts)  # type: ignore[misc]
        mask = [[int(not forced) for forced in completion.forced] for completion in self._completions]
        self._log_rollouts()
        return (*output[:2], mask, *output[3:])

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._completions = self._sample()
        self._attach(self._rows, self._completions)
        return [completion.prompt_ids for completion in self._completions], None, {}

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return [completion.completion_ids for completion in self._completions]

    def sample_rows(self, rows: list[dict[str, Any]], attempt: int) -> list[Completion]:
        """One completion for every row, beside TRL's own round; `attempt` tells generations of one batch apart."""
        self._rows, self._attempt = rows, attempt
        try:
            completions = self._sample()
        finally:
            self._rows, self._attempt = [], 0
        self._attach(rows, completions)
        return completions

    def _attach(self, rows: Sequence[dict[str, Any]], completions: Sequence[Completion]) -> None:
        """Hand rewards their rollouts, as a further column."""
        for row, completion in zip(rows, completions, strict=True):
            row["rollout"] = rollout_of(completion, row, self.max_completion_length)  # type: ignore[attr-defined]

    def _sample(self) -> list[Completion]:
        """One completion for every row, by the policy as it is now."""
        trainer: Any = self
        sampling = Sampling(temperature=trainer.temperature, top_p=trainer.top_p, top_k=trainer.top_k)
        settings: dict[str, Any] = {
            "max_new_tokens": trainer.max_completion_length,
            "sampling": dict.fromkeys(self.family.modes, sampling),
        }
        if self._engine is not None:
            from posttrain.model.vllm_generation import VllmGenerator

            policy = trainer.accelerator.unwrap_model(trainer.model)
            engine = self._engine.at_step(trainer.state.global_step, policy)
            return self._completed(VllmGenerator(engine, trainer._tokenizer, self.family, **settings))
        gathered = getattr(trainer.args, "ds3_gather_for_generation", True)  # GOLD's arguments have no such choice
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=gathered,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as policy,
            torch.no_grad(),
            trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
        ):
            sharded = trainer._dist.is_fsdp or (trainer._dist.is_zero3 and not gathered)
            settings |= {"batch_size": self.rollout_batch_size or len(self._rows), "sharded": sharded}
            return self._completed(Generator(policy, trainer._tokenizer, self.family, **settings), sharded)

    def _completed(self, generator: Generator, sharded: bool = False) -> list[Completion]:
        trainer: Any = self
        return self._episodes.complete(
            generator,
            self._rows,
            [prompt_of(row) for row in self._rows],
            seed=self._seed(trainer.model.training),
            max_tokens=trainer.max_completion_length,
            anyone=self._anyone if sharded else None,
        )

    def _anyone(self, mine: bool) -> bool:
        return self._summed([int(mine)])[0] > 0

    def _seed(self, training: bool) -> int:
        trainer: Any = self
        # Evaluation batches of one step differ by their rows; training batches by the micro-step.
        place = trainer._step if training else hash_rows(self._rows)
        seed = rollout_seed(self._stage_seed, trainer.state.global_step, place, trainer.accelerator.process_index)
        return rollout_seed(seed, self._attempt, 0, 0) if self._attempt else seed

    def _log_rollouts(self) -> None:
        trainer: Any = self
        mode = "train" if trainer.model.training else "eval"
        done = self._completions
        local = [
            len(done),
            sum(len(c.prompt_ids) + len(c.completion_ids) for c in done),
            sum(sum(c.forced) for c in done),
            sum(c.thinking_tokens for c in done),
            sum(c.closed_by == "budget" for c in done),
            sum(len(c.completion_ids) for c in done),
        ]
        rollouts, tokens, forced, thinking, by_budget, completion_tokens = map(int, self._summed(local))
        figures = trainer._metrics[mode]
        figures["rollouts/forced_tokens"].append(forced / max(1, completion_tokens))
        figures["rollouts/thinking_tokens"].append(thinking / rollouts)
        figures["rollouts/closed_by_budget"].append(by_budget / rollouts)
        for name, value in self._episodes.figures(done, self._summed).items():
            figures[name].append(value)
        if mode == "train":
            self.counters["rollout_tokens"] += tokens

    def _summed(self, local: Sequence[float]) -> list[float]:
        """Sums over the processes."""
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        if accelerator.num_processes == 1:
            return list(local)
        own = torch.tensor(local, device=accelerator.device, dtype=torch.double)
        totals: list[float] = accelerator.reduce(own, reduction="sum").tolist()
        return totals

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if self.model.training:  # type: ignore[attr-defined]
            self.counters["train_tokens"] += int(self._summed([self._tokens_of(inputs)])[0])
        return inputs

    def _tokens_of(self, inputs: dict[str, Any]) -> int:
        """Tokens that a micro-step reads, prompts included."""
        return int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:  # type: ignore[attr-defined]
            logs.update({"tokens/rollout": self.rollout_tokens, "tokens/train": self.train_tokens})
        super().log(logs, start_time)  # type: ignore[misc]

    def _other_forward_tokens(self) -> float:
        """Multiply-add pairs spent on forward passes beside the policy's, in parameter-tokens; 0 here."""
        return 0.0

    def flops(self) -> float:
        """Floating-point operations so far: 6 N a trained token, 2 N a sampled one, 2 N' a token of another forward.

        N is the number of parameters outside the embeddings (Kaplan et al. 2020, section 2.1).
        """
        policy = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        size = size_outside_embeddings(policy)
        return float(6 * size * self.train_tokens + 2 * size * self.rollout_tokens + 2 * self._other_forward_tokens())


def size_outside_embeddings(model: torch.nn.Module) -> int:
    """Parameters of a model but for its embeddings; under ZeRO-3 too, where those of other processes look empty."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters() if id(p) not in embeddings)


def hash_rows(rows: Sequence[Mapping[str, Any]]) -> int:
    """A number that stands for what a batch asks."""
    text = repr([(row["prompt"], row.get("mode"), row.get("thinking_budget")) for row in rows])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
