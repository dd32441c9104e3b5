"""Tokens that a thinking budget forced are in no loss, ratio, KL, gradient or denominator: the numbers, derived.

A completion is own tokens o and forced tokens f. With the mask m = 1 on o and 0 on f, the derivations below use own
tokens alone; TRL's loss over the trainer's real output must be the same.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DistillationConfig, GRPOConfig

from posttrain.distill.trainer import StudentTrainer
from posttrain.errors import PosttrainError
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.schema import ModelSpec, TrainedTokenizer
from posttrain.rl.health import Health, PolicyHealth, Watch
from posttrain.rl.modes import Asking, ThinkingBudgets, ask
from posttrain.rl.rewards.column import RewardColumn
from posttrain.rl.trainer import PolicyTrainer
from posttrain.tasks.arithmetic import Arithmetic, corpus
from posttrain.templates.families import get_family

QWEN3 = get_family("qwen3")
# Its generation prompt ends inside an open block, so every rollout of an untrained model thinks from its first token.
THINKS = dataclasses.replace(get_family("qwen3_thinking_2507"), stop_thinking="\nTime is up.\n</think>\n\n")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
COMMON = {
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": [],
    "per_device_train_batch_size": 8,
    "max_completion_length": 16,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "remove_unused_columns": False,
}


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny models with one tokenizer, of another width each; the vocabulary is padded beyond the tokenizer."""
    root = tmp_path_factory.mktemp("policies")
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        config={**SIZES, "initializer_range": 0.5},
        tokenizer=TrainedTokenizer(train_on=["text"], vocab_size=330),
    )
    build_policy(spec, QWEN3, root / "student", seed=1, texts=list(corpus(300, 0)))
    wider = spec.model_copy(update={"config": {**spec.config, "hidden_size": 48}, "tokenizer": str(root / "student")})
    build_policy(wider, QWEN3, root / "teacher", seed=2)
    return [root / "student", root / "teacher"]


def rows() -> Dataset:
    """Eight queries that think under budgets of a few tokens."""
    asking = Asking(modes={"thinking": 1.0}, thinking_budgets=ThinkingBudgets(share=1.0, choices=[0, 2, 5]))
    return Dataset.from_list(list(ask(list(Arithmetic().queries(8, 0)), asking, THINKS, 1)))


def grpo(policy: Path, tmp_path: Path, **options: Any) -> PolicyTrainer:
    args = GRPOConfig(output_dir=str(tmp_path), num_generations=4, **{**COMMON, **options})
    reward = RewardColumn("own_tokens", lambda query, rollout: min(1.0, rollout.tokens / 16))
    trainer = PolicyTrainer(
        model=load_model(policy),
        reward_funcs=[reward],
        args=args,
        train_dataset=rows(),
        processing_class=load_tokenizer(policy),
    )
    trainer.set_rollouts(THINKS, seed=5)
    trainer.watch(PolicyHealth())
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def disturbed(inputs: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The trainer's inputs with advantages and old log-probabilities that make every term of the loss count."""
    noise = torch.Generator().manual_seed(seed)
    shape = inputs["completion_ids"].shape
    return {
        **inputs,
        "advantages": torch.randn(shape[0], generator=noise),
        "old_per_token_logps": torch.randn(shape, generator=noise) * 0.3 - 5.0,
        "ref_per_token_logps": torch.randn(shape, generator=noise) * 0.3 - 5.0,
    }


def own_log_probs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """log p of every completion token, (B, T), from plain logits."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    steps = inputs["completion_ids"].shape[1]
    log_p: torch.Tensor = logits[:, -steps:].log_softmax(-1).gather(-1, ids[:, -steps:, None])[..., 0]
    return log_p


def own_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    own: torch.Tensor = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    return own


def derived_loss(
    model: Any, inputs: dict[str, Any], *, kind: str, beta: float, epsilon: float, level: str, limit: int
) -> Any:
    """The clipped surrogate with the k3 estimate of the KL, summed row by row over own tokens only."""
    log_p, own = own_log_probs(model, inputs), own_tokens(inputs)
    by_row = []
    for i in range(len(own)):
        new, old, ref = (x[i][own[i]] for x in (log_p, inputs["old_per_token_logps"], inputs["ref_per_token_logps"]))
        advantage = inputs["advantages"][i]
        log_ratio = new - old if level == "token" else (new - old).mean().expand_as(new)
        ratio = log_ratio.exp()
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
        # TRL weighs the KL by the ratio (DeepSeek-V3.2, arXiv 2512.02556): its gradient is then that of the reverse KL.
        kl = ratio * ((ref - new).exp() - (ref - new) - 1)
        by_row.append(-surrogate + beta * kl)
    if kind == "grpo":
        return torch.stack([row.mean() for row in by_row]).mean()
    total = torch.cat(by_row).sum()
    if kind == "dr_grpo":
        return total / (len(by_row) * limit)
    return total / sum(len(row) for row in by_row)  # bnpo, dapo: the own tokens of the batch


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("kind", "level"),
    [("grpo", "token"), ("bnpo", "token"), ("dr_grpo", "token"), ("dapo", "token"), ("grpo", "sequence")],
)
def test_the_policy_loss_and_its_gradient_are_those_of_own_tokens(
    policies: list[Path], tmp_path: Path, kind: str, level: str
) -> None:
    trainer = grpo(policies[0], tmp_path, loss_type=kind, beta=0.1, importance_sampling_level=level)
    output = trainer._generate_and_score_completions(list(trainer.train_dataset)[:2] * 4)
    inputs = disturbed(output)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    real = gradients(trainer.model)
    expected = derived_loss(trainer.model, inputs, kind=kind, beta=0.1, epsilon=0.2, level=level, limit=16)
    expected.backward()
    derived = gradients(trainer.model)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert real.keys() == derived.keys()
    for name, gradient in derived.items():
        torch.testing.assert_close(real[name], gradient, rtol=2e-3, atol=1e-5, msg=name)


def test_the_mask_is_what_the_budget_forced(policies: list[Path], tmp_path: Path) -> None:
    trainer = grpo(policies[0], tmp_path)
    kept: list[Any] = []
    original = trainer._log_rollouts
    trainer._log_rollouts = lambda: (kept.extend(trainer._completions), original())  # type: ignore[assignment, func-returns-value]
    output = trainer._generate_and_score_completions(list(trainer.train_dataset))
    assert {c.thinking_budget for c in kept} == {0, 2, 5}
    assert any(any(c.forced) for c in kept)
    for row, completion in enumerate(kept):
        size = len(completion.completion_ids)
        assert output["completion_ids"][row, :size].tolist() == completion.completion_ids
        assert output["tool_mask"][row, :size].tolist() == [int(not forced) for forced in completion.forced]
        assert completion.thinking_tokens <= completion.thinking_budget
    own = sum(len(c.forced) - sum(c.forced) for c in kept)
    assert int(output["num_items_in_batch"]) == own
    figures = trainer._metrics["train"]
    assert figures["rollouts/forced_tokens"] == [pytest.approx(1 - own / sum(len(c.forced) for c in kept))]


def test_no_gradient_reaches_a_position_that_predicts_a_forced_token(policies: list[Path], tmp_path: Path) -> None:
    trainer = grpo(policies[0], tmp_path, beta=0.1)
    inputs = disturbed(trainer._generate_and_score_completions(list(trainer.train_dataset)))
    states: list[torch.Tensor] = []

    def keep(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        # A leaf behind the last norm: its gradient is that of the output head alone, position by position.
        states.append(out.detach().requires_grad_())
        return states[-1]

    handle = trainer.model.model.norm.register_forward_hook(keep)
    trainer._compute_loss(trainer.model, inputs).backward()
    handle.remove()
    steps = inputs["completion_ids"].shape[1]
    assert states[0].grad is not None
    size = states[0].grad[:, -steps - 1 : -1].norm(dim=-1)  # position t predicts token t + 1
    own = own_tokens(inputs)
    forced = inputs["completion_mask"].bool() & ~own
    assert forced.any()
    assert (size[forced] == 0).all()
    assert (size[own] > 0).all()


def test_an_exploding_ratio_on_forced_tokens_changes_nothing(policies: list[Path], tmp_path: Path) -> None:
    trainer = grpo(policies[0], tmp_path, beta=0.1, delta=None)
    inputs = disturbed(trainer._generate_and_score_completions(list(trainer.train_dataset)))
    before = trainer._compute_loss(trainer.model, inputs).item()
    forced = inputs["completion_mask"].bool() & ~own_tokens(inputs)
    for key in ("old_per_token_logps", "ref_per_token_logps"):
        inputs[key] = inputs[key].masked_fill(forced, -80.0)
    assert trainer._compute_loss(trainer.model, inputs).item() == before
    unmasked = {key: value for key, value in inputs.items() if key != "tool_mask"}
    assert abs(trainer._compute_loss(trainer.model, unmasked).item() - before) > 1e3


def student(policies: list[Path], tmp_path: Path, **options: Any) -> StudentTrainer:
    tokenizer = load_tokenizer(policies[0])
    trainer = StudentTrainer(
        model=load_model(policies[0]),
        teacher_model=load_model(policies[1]).requires_grad_(False),
        args=DistillationConfig(output_dir=str(tmp_path), **{**COMMON, **options}),
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    trainer.set_rollouts(THINKS, seed=5)
    trainer.watch(Health(), entries=len(tokenizer))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def derived_divergence(student: Any, teacher: Any, inputs: dict[str, Any], beta: float, entries: int) -> torch.Tensor:
    """Mean over own tokens of the divergence over the tokenizer's own entries (GKD, arXiv 2306.13649, equation 1)."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    steps = inputs["completion_ids"].shape[1]
    log_s, log_t = (
        model(input_ids=ids, attention_mask=mask).logits[:, -steps - 1 : -1, :entries].double().log_softmax(-1)
        for model in (student, teacher)
    )
    s, t = log_s.exp(), log_t.exp()
    if beta == 1.0:
        values = (s * (log_s - log_t)).sum(-1)
    elif beta == 0.0:
        values = (t * (log_t - log_s)).sum(-1)
    else:
        mixed = (beta * t + (1 - beta) * s).log()
        values = beta * (t * (log_t - mixed)).sum(-1) + (1 - beta) * (s * (log_s - mixed)).sum(-1)
    mean: torch.Tensor = values[own_tokens(inputs)].mean()
    return mean


@pytest.mark.parametrize("beta", [1.0, 0.0, 0.4])
def test_the_divergence_is_over_own_tokens_and_real_entries(policies: list[Path], tmp_path: Path, beta: float) -> None:
    trainer = student(policies, tmp_path, beta=beta)
    entries = len(load_tokenizer(policies[0]))
    assert trainer.model.config.vocab_size > entries
    inputs = trainer._generate_and_score_completions(list(trainer.train_dataset))
    assert (inputs["completion_mask"].bool() & ~own_tokens(inputs)).any()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    real = gradients(trainer.model)
    expected = derived_divergence(trainer.model, trainer.teacher_model, inputs, beta, entries)
    expected.backward()  # type: ignore[no-untyped-call]
    derived = gradients(trainer.model)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, gradient in derived.items():
        torch.testing.assert_close(real[name], gradient, rtol=2e-3, atol=1e-6, msg=name)
    # The head's own method is back in its place.
    assert "get_output_embeddings" not in vars(trainer.model)


def test_padding_rows_get_no_gradient_and_do_not_matter(policies: list[Path], tmp_path: Path) -> None:
    trainer = student(policies, tmp_path, beta=1.0)
    entries = len(load_tokenizer(policies[0]))
    inputs = trainer._generate_and_score_completions(list(trainer.train_dataset))
    before = trainer.compute_loss(trainer.model, inputs)
    before.backward()
    assert (trainer.model.lm_head.weight.grad[entries:] == 0).all()
    with torch.no_grad():
        for model in (trainer.model, trainer.teacher_model):
            model.lm_head.weight[entries:] *= 50.0
    assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(before.item(), rel=1e-6)


def test_a_batch_without_own_tokens_is_an_error() -> None:
    with pytest.raises(PosttrainError, match="no completion token"):
        Watch(Health()).look(truncated=0.0, trained_tokens=0, flat_groups=None, reward=None)
