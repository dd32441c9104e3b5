"""A scalar reward model, trained from preferences (stage kind `reward_model`): no reference is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import RunDir
from posttrain.rl.rewards import Rollout, Score
from posttrain.rl.rewards.harmless import without_markers
from posttrain.rl.rewards.outcome import no_answer


class RewardModel:
    """A reward model's score of prompt and answer, squashed by the logistic function; thinking is not shown to it."""

    def __init__(self, *, stage: str = "", model: str = "", batch_size: int = 32, temperature: float = 1.0) -> None:
        """Options:

        stage: the stage that trained it. model: its directory instead, where it comes from elsewhere.
        batch_size: answers scored together.
        temperature: the score is 1 / (1 + exp(-reward / temperature)); the stage trains rewards centred at 0.

        Raises:
            PosttrainError: neither or both of the two are given, no model is there, or the other options will not do.
        """
        if bool(stage) == bool(model):
            raise PosttrainError(
                Problem(
                    "reward_model: give `stage` or `model`, one of the two",
                    remedy="as {reward_model: {weight: 1, options: {stage: preferences}}}",
                )
            )
        if batch_size < 1 or not temperature > 0.0:
            raise PosttrainError(Problem("reward_model: batch_size and temperature are above 0"))
        if model and not (Path(model).expanduser() / "config.json").is_file():
            what = f"reward_model: {model}: no model there (no config.json)"
            raise PosttrainError(Problem(what, remedy="the directory of a stage's model, as RUN/stages/STAGE/model"))
        self.stage, self._batch_size, self._temperature = stage, batch_size, temperature
        self._directory = Path(model).expanduser() if model else None
        self._loaded: Any = None

    def stages(self) -> list[str]:
        """The stages of the recipe that this reward needs."""
        return [self.stage] if self.stage else []

    def open(self, run: RunDir) -> None:
        """Take the stage's model from a run. It is loaded when it is first asked."""
        if self.stage:
            self._directory = run.stage(self.stage).model

    def __call__(self, query: Mapping[str, Any], rollout: Rollout) -> Score:
        return self.batch([query], [rollout])[0]

    def batch(self, queries: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> list[Score]:
        """The scores of a batch. What holds no answer, or a longer one than the model reads, scores 0 without it."""
        scores = [no_answer(rollout) for rollout in rollouts]
        texts: dict[int, str] = {}
        for place, score in enumerate(scores):
            if score is None:
                texts[place] = self._text(queries[place], rollouts[place])
                if not self._scorer().fits(texts[place]):
                    del texts[place]
                    scores[place] = Score(0.0, "longer than the reward model reads")
        if texts:
            rewards = self._scorer()(list(texts.values()), self._batch_size)
            for place, reward in zip(texts, rewards, strict=True):
                value = 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, reward / self._temperature))))
                scores[place] = Score(value, f"reward {reward:.2f}")
        return [score for score in scores if score is not None]

    def _text(self, query: Mapping[str, Any], rollout: Rollout) -> str:
        """What the model reads. The answer opens no turn of its own: it would be read as somebody else's words."""
        from posttrain.rl.preferences import answer_text

        return answer_text(query["prompt"], without_markers(rollout.message.content), self._scorer().family)

    def _scorer(self) -> Any:
        if self._loaded is None:
            from posttrain.rl.preferences import Scorer

            if self._directory is None:
                raise PosttrainError(Problem(f"reward_model: the stage {self.stage!r} is known within a run only"))
            self._loaded = Scorer(self._directory)
        return self._loaded
