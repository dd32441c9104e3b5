"""Muon with AdamW as one optimizer: who trains what, and that a resumed one is the same to the bit."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from posttrain.model.optimizer import hidden_matrices, muon_adamw
from posttrain.recipe.stage import Optimizer


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 8)
        self.inner = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 10, bias=False)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.inner(self.embed(ids)))
        return out


def build() -> tuple[Net, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    torch.manual_seed(0)
    net = Net()
    args = TrainingArguments(output_dir="unused", learning_rate=1e-3, weight_decay=0.01, use_cpu=True, report_to=[])
    optimizer = muon_adamw(net, args, Optimizer(learning_rate=0.02))
    return net, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))


def run(net: Net, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 10, (4,), generator=torch.Generator().manual_seed(step))
        net(ids).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def test_embeddings_head_and_biases_stay_with_adamw() -> None:
    net, optimizer, _ = build()
    assert hidden_matrices(net) == [net.inner.weight]
    muon, adamw = optimizer.param_groups
    assert (muon["algorithm"], muon["lr"], len(muon["params"])) == ("muon", 0.02, 1)
    assert (adamw["algorithm"], adamw["lr"], len(adamw["params"])) == ("adamw", 1e-3, 3)


def test_both_groups_move_and_follow_the_schedule() -> None:
    net, optimizer, schedule = build()
    before = {name: p.clone() for name, p in net.named_parameters()}
    run(net, optimizer, schedule, range(2))
    assert all(not torch.equal(before[name], p) for name, p in net.named_parameters())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02 / 3, 1e-3 / 3])


def test_resumed_equals_uninterrupted() -> None:
    straight = build()
    run(*straight, range(6))
    first = build()
    run(*first, range(3))
    disk = io.BytesIO()
    torch.save([part.state_dict() for part in first], disk)
    disk.seek(0)
    second = build()
    parts: tuple[Any, ...] = second
    for part, state in zip(parts, torch.load(disk), strict=True):
        part.load_state_dict(state)
    run(*second, range(3, 6))
    for a, b in zip(straight[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    # Without the optimizer's state the end is another one: the test can fail.
    third = build()
    third[0].load_state_dict(first[0].state_dict())
    run(*third, range(3, 6))
    assert not torch.equal(third[0].inner.weight, straight[0].inner.weight)
