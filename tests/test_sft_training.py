"""The SFT stage's trainer: what it takes, its optimizer, its resume, its packing, its refusals."""

from __future__ import annotations

import pytest
import torch
from datasets import load_from_disk

from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from tests.sft_stage import TRAIN, build, context_of, prepared, recipe_of, run, sft, trainer_of

__all__ = ["prepared", "run"]


def test_the_trainer_takes_the_data_as_they_are(run: RunDir) -> None:
    context = context_of(recipe_of({"cold": sft({"data": "problems"})}), run, "cold")
    build(context)
    trainer = trainer_of(context)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    row = next(
        row
        for row in load_from_disk(str(context.dir.data / "train"))
        if row["input_ids"] == batch["input_ids"][0].tolist()
    )
    assert row["labels"] == batch["labels"][0].tolist()
    args = trainer.args
    assert args.use_cpu and not args.bf16 and not args.gradient_checkpointing and args.max_length is None
    assert args.seed == args.data_seed == context.seed and args.output_dir == str(context.dir.checkpoints)
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_muon_is_made_for_the_model_and_the_schedule_drives_it(run: RunDir) -> None:
    optimizer = {"name": "muon", "learning_rate": 0.02}
    train = TRAIN | {"learning_rate": 1e-3, "warmup_steps": 2}
    context = context_of(recipe_of({"cold": sft({"data": "problems"}, optimizer=optimizer, train=train)}), run, "cold")
    build(context)
    trainer = trainer_of(context)
    assert type(trainer).__name__ == "SFTTrainer"
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "MuonAdamW"
    rates = {group["algorithm"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"muon": 0.02, "adamw": 1e-3}


@pytest.mark.parametrize("packing", [False, True])
def test_a_resumed_training_ends_with_the_same_weights(run: RunDir, packing: bool) -> None:
    """Three epochs with a checkpoint inside the second: sampler, schedule and Muon's state come back."""
    batch = 4 if packing else 10
    train = TRAIN | {"max_length": 96, "per_device_train_batch_size": batch, "learning_rate": 1e-3, "logging_steps": 1}
    stage = sft({"data": "problems"}, packing=packing, optimizer={"learning_rate": 0.02}, train=train)
    build(context_of(recipe_of({"cold": stage}), run, "cold"))
    epoch = -(-len(load_from_disk(str(run.stage("cold").data / "train"))) // batch)
    saved, steps = epoch + epoch // 2, 3 * epoch
    stage["train"] |= {"max_steps": steps, "save_steps": saved, "lr_scheduler_type": "linear"}
    context = context_of(recipe_of({"cold": stage}), run, "cold")
    whole = trainer_of(context)
    whole.train()
    torch.manual_seed(99)  # what the global state was left at must not matter
    resumed = trainer_of(context)
    resumed.train(resume_from_checkpoint=str(context.dir.checkpoints / f"checkpoint-{saved}"))
    assert resumed.state.global_step == whole.state.global_step == steps
    for (name, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    after = [[row["loss"] for row in one.state.log_history if "loss" in row][saved:] for one in (whole, resumed)]
    assert after[0] == after[1] and len(after[0]) == steps - saved


def test_packed_samples_cost_what_they_cost_alone(run: RunDir) -> None:
    train = TRAIN | {"max_length": 96}
    stages = {
        "packed": sft({"data": "problems"}, packing=True, train=train),
        "plain": sft({"data": "problems"}, train=train),
    }
    recipe = recipe_of(stages)
    losses = {}
    for name in stages:
        context = context_of(recipe, run, name)
        build(context)
        trainer = trainer_of(context)
        dataset = trainer.train_dataset
        if name == "packed":
            assert len(dataset) < 30 and max(map(sum, dataset["seq_lengths"])) <= 96
        batch = trainer.data_collator([dataset[place] for place in range(len(dataset))])
        trainer.model.train()  # losses are means over supervised tokens, of the same tokens in both
        losses[name] = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert losses["packed"] == pytest.approx(losses["plain"], rel=1e-5)


def test_a_trainers_refusal_is_told_with_its_place(run: RunDir) -> None:
    stage = sft({"data": "problems"}, train=TRAIN | {"lr_scheduler_type": "no_such_schedule"})
    context = context_of(recipe_of({"cold": stage}), run, "cold")
    build(context)
    with pytest.raises(PosttrainError, match=r"stages\.cold\.train: SFTConfig refuses"):
        trainer_of(context)
