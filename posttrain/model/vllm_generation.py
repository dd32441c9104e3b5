"""A model in vLLM as what decodes: the same prompts, modes, budgets and completions as `Generator`, another engine.

The engine runs beside the caller, in processes of vLLM's own. Budgets are kept by our logits processor inside it
(`posttrain.budget.vllm`); here the rule is run over what came back, which tells the forced positions and is the proof
that the budget was kept to the token.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import PosttrainError, Problem
from posttrain.model.generation import Generator
from posttrain.templates.families import Family, Mode, Sampling

if TYPE_CHECKING:
    import torch

    from posttrain.model.decoding import Row

PROCESSOR = "posttrain.budget.vllm:ThinkingBudgetLogitsProcessor"
WORKER = "posttrain.model.vllm_worker.PolicyWorker"
CPU_CACHE_GIB = "1"
CPU_MEMORY = 0.1
MEMORY = 0.5


class VllmEngine:
    """One model in vLLM.

    Args:
        directory: a policy as a stage leaves it, with its tokenizer.
        dtype: of the weights, as `float32`.
        max_length: tokens of prompt and completion together; None: the model's positions.
        as_it_is: nothing but the model's own distribution is sampled from (temperature 1, no top-p, no top-k), and
            log-probabilities are the model's; else they are those after temperature, top-p and budget.
        memory: share of an accelerator's memory; on a CPU `$VLLM_CPU_KVCACHE_SPACE` says it (in GiB, 1 by default).

    Raises:
        PosttrainError: vLLM is not installed, or cannot run this model.
    """

    def __init__(
        self,
        directory: Path,
        *,
        dtype: str,
        max_length: int | None = None,
        as_it_is: bool = False,
        memory: float | None = None,
        seed: int = 0,
    ) -> None:
        self.directory = directory
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise PosttrainError(
                Problem(f"vLLM cannot be imported: {error}", remedy="make setup-vllm, or sample with transformers")
            ) from error
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        try:
            self._llm = LLM(
                str(directory),
                dtype=dtype,
                max_model_len=max_length,
                gpu_memory_utilization=memory or (CPU_MEMORY if on_cpu else MEMORY),
                seed=seed,
                logits_processors=[PROCESSOR],
                worker_extension_cls=WORKER,
                logprobs_mode="raw_logprobs" if as_it_is else "processed_logprobs",
                enable_chunked_prefill=False,  # chunks crash on a CPU when requests have seeds
                enforce_eager=on_cpu,
                disable_log_stats=True,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise PosttrainError(
                Problem(f"vLLM cannot start with {directory}: {str(error).strip().splitlines()[-1]}")
            ) from error

    @property
    def config(self) -> Any:
        """The model's configuration, of transformers."""
        return self._llm.llm_engine.model_config.hf_config

    def complete(self, rows: Sequence[Row], *, eos_ids: frozenset[int], vocabulary: int) -> list[Any]:
        """vLLM's outputs for the rows, in order: ids and their log-probabilities, not yet read by the rule."""
        from vllm import SamplingParams

        # Padding of the embedding is no token; where there is none, nothing needs to be masked.
        padded = self._llm.llm_engine.model_config.get_vocab_size() > vocabulary
        parameters = [
            SamplingParams(
                temperature=row.sampling.temperature,
                top_p=row.sampling.top_p,
                top_k=row.sampling.top_k,
                presence_penalty=row.sampling.presence_penalty,
                seed=row.seed,
                max_tokens=row.limit,
                stop_token_ids=sorted(eos_ids),
                logprobs=0,
                detokenize=False,
                allowed_token_ids=list(range(vocabulary)) if padded else None,
                extra_args={} if row.budget is None else {"thinking_budget": row.budget},
            )
            for row in rows
        ]
        prompts = [{"prompt_token_ids": row.prompt_ids} for row in rows]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def close(self) -> None:
        """End vLLM's processes, and give back their memory."""
        self._llm.llm_engine.engine_core.shutdown()

    def __del__(self) -> None:
        # Who samples for a while lets go of the engine before training begins.
        with suppress(Exception):
            self.close()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over a policy's weights (checkpoint names). They pass through memory that both processes see."""
        from safetensors.torch import save_file

        shared = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None, prefix="policy-") as folder:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
            save_file(tensors, Path(folder) / "model.safetensors")
            self._llm.collective_rpc("load_policy", args=(folder,))
        # Keys and values of the old weights are no longer those of any prompt.
        self._llm.reset_prefix_cache()


class VllmGenerator(Generator):
    """`Generator` over a `VllmEngine`: same arguments, same completions, and log-probabilities beside them."""

    def __init__(
        self,
        engine: VllmEngine,
        tokenizer: Any,
        family: Family,
        *,
        max_new_tokens: int,
        sampling: Mapping[Mode, Sampling] | None = None,
    ) -> None:
        super().__init__(engine, tokenizer, family, max_new_tokens=max_new_tokens, sampling=sampling)
        self._engine = engine

    def _decode(self, rows: Sequence[Row], ended: Callable[[int], None]) -> None:
        eos_ids = self._watching.eos_ids
        outputs = self._engine.complete(rows, eos_ids=eos_ids, vocabulary=self._vocabulary)
        for row, output in zip(rows, outputs, strict=True):
            log_probs = [entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
            for token in output.token_ids:
                over = row.take(token, eos_ids)
                if row.ids[-1] != token:
                    raise PosttrainError(_not_kept(row, token))
                if over:
                    break
            row.log_probs = log_probs[: len(row.ids)]
        ended(len(rows))


def generator_over(
    model: Any,
    tokenizer: Any,
    family: Family,
    *,
    max_new_tokens: int,
    batch_size: int,
    sampling: Mapping[Mode, Sampling] | None,
) -> Generator:
    """A generator over a transformers model or a `VllmEngine`, which makes its own batches."""
    if isinstance(model, VllmEngine):
        return VllmGenerator(model, tokenizer, family, max_new_tokens=max_new_tokens, sampling=sampling)
    return Generator(model, tokenizer, family, max_new_tokens=max_new_tokens, batch_size=batch_size, sampling=sampling)


def _not_kept(row: Row, token: int) -> Problem:
    return Problem(
        f"vLLM wrote token {token} at place {len(row.ids)}, where the thinking budget wants {row.ids[-1]}",
        why="rollouts under another rule than the one that they are read by would be masked in the wrong places",
        remedy="report it, with the versions; sample with transformers meanwhile",
    )
