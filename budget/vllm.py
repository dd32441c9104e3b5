"""The thinking budget in vLLM, under both of its model runners, by one name:

    vllm serve MODEL --logits-processors posttrain.budget.vllm:ThinkingBudgetLogitsProcessor
    LLM(MODEL, logits_processors=["posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"])

A request asks for a budget with the flat keys of `posttrain.budget.request`, in `vllm_xargs` or in
`SamplingParams(extra_args=...)`. A request without them is not touched, unless the server has a default or a ceiling
(`posttrain.budget.vllm_request`). Neither a reasoning parser nor a reasoning configuration is needed.

The V1 runner calls `update_state` and `apply(scores)`; the V2 runner (the default from vLLM 0.31 on, on GPUs) calls
`add_request`, `apply_staged_writes` and `apply(scores, context)`. Each gets its own half (`vllm_v1`, `vllm_v2`); the
rule is one (`posttrain.budget.state`). What cannot be enforced is refused: when vLLM starts, or with HTTP 400.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from posttrain.budget.vllm_request import check_request, server_settings
from posttrain.errors import PosttrainError, Problem

if TYPE_CHECKING:
    import torch

_INTERFACES = (
    "vllm.v1.sample.logits_processor",
    "vllm.v1.worker.gpu.sample.logits_processor",  # from vLLM 0.31 on; before, a custom processor means the V1 runner
)


def _bases() -> Iterator[type]:
    """What this vLLM wants a logits processor to inherit."""
    for interface in _INTERFACES:
        try:
            yield import_module(interface).LogitsProcessor
        except ModuleNotFoundError:  # this vLLM has one of the two runners
            continue


class ThinkingBudgetLogitsProcessor(*_bases()):  # type: ignore[misc]  # vLLM has one base or two
    """See the module. vLLM makes it, with what its runner gives a processor.

    Raises:
        ValueError: this vLLM, or this model, or these options cannot keep a budget; the message says why.
    """

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        from posttrain.budget.vllm_model import refusals, served_model

        second = len(runner) == 1
        problems = [*refusals(vllm_config), *(_v2_refusals if second else _v1_refusals)(vllm_config)]
        try:
            server_settings()
            if problems:
                raise PosttrainError(problems)
            self._model = served_model(vllm_config)
        except PosttrainError as error:
            raise ValueError(f"no thinking budget can be kept here:\n{error}") from None
        self._rows: Any
        if second:
            from posttrain.budget.vllm_v2 import V2Rows

            self._rows = V2Rows(vllm_config, self._model, runner[0])
        else:
            from posttrain.budget.vllm_v1 import V1Rows

            self._rows = V1Rows(vllm_config, self._model, runner[0])

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse what makes no sense, in the frontend: HTTP 400, or an error from `LLM.generate`."""
        check_request(sampling_params)

    # --- the V1 runner

    def is_argmax_invariant(self) -> bool:
        """No: a forced id is another argmax."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Requests came, went or moved."""
        self._rows.update_state(batch_update)

    # --- the V2 runner

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request enters a slot. Returns whether its scores can change."""
        limited: bool = self._rows.add_request(req_idx, sampling_params)
        return limited

    def apply_staged_writes(self) -> None:
        """Called before every forward pass."""
        self._rows.apply_staged_writes()

    # --- both

    def apply(self, logits: torch.Tensor, *context: Any) -> torch.Tensor:
        """Write into the scores (rows, vocabulary) in place, and return them."""
        scores: torch.Tensor = self._rows.apply(logits, *context)
        return scores


def _v1_refusals(vllm_config: Any) -> list[Problem]:
    problems = []
    if vllm_config.speculative_config is not None:
        problems.append(
            Problem(
                "speculative decoding under the V1 model runner",
                why="that runner gives a processor no drafts",
                remedy="use the V2 runner (vLLM 0.31 or newer, VLLM_USE_V2_MODEL_RUNNER=1), or no speculation",
            )
        )
    if vllm_config.scheduler_config.async_scheduling and not vllm_config.model_config.logits_processors:
        problems.append(
            Problem(
                "asynchronous scheduling under the V1 model runner, with the processor loaded by an entry point",
                why="the runner then shows placeholders in the place of tokens",
                remedy="name the processor with --logits-processors, or give --no-async-scheduling",
            )
        )
    return problems


def _v2_refusals(vllm_config: Any) -> list[Problem]:
    problems = []
    if getattr(vllm_config.model_config, "enable_trace_replay", False):
        why = "replayed tokens overrule forced ones"
        problems.append(Problem("trace replay", why=why, remedy="leave --enable-trace-replay out"))
    speculation = vllm_config.speculative_config
    if getattr(speculation, "rejection_sample_method", None) == "synthetic":
        why = "drafts are accepted at a given rate, whatever their scores are"
        problems.append(Problem("synthetic acceptance of drafts", why=why, remedy="another rejection_sample_method"))
    return problems
