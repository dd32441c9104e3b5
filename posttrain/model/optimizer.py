"""Muon on the matrices inside the blocks, AdamW on the rest, as one optimizer that a trainer can save and resume.

Muon orthogonalises the momentum of a matrix (Jordan et al. 2024; `torch.optim.Muon`). It is meant for hidden matrices
alone: embeddings, the output head, norms and biases stay with AdamW. No trainer knows this pair by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from posttrain.recipe.stage import Optimizer as OptimizerSpec


def hidden_matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The trainable 2-D weights of linear layers inside the model's blocks."""
    outside = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        outside.add(id(head.weight))
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outside]


class MuonAdamW(torch.optim.Optimizer):
    """Both algorithms over one list of parameter groups and one state.

    The two inner optimizers hold no state of their own: groups and state are this object's, so learning-rate schedules,
    `state_dict` and `load_state_dict` are torch's own and nothing is lost at a checkpoint.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._inner: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": adamw}
        groups: list[dict[str, Any]] = []
        for algorithm, optimizer in self._inner.items():
            groups += [{**group, "algorithm": algorithm} for group in optimizer.param_groups if group["params"]]
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both. Groups and state are handed over each time, as `load_state_dict` replaces them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for algorithm, optimizer in self._inner.items():
            optimizer.param_groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            optimizer.state = self.state
            if optimizer.param_groups:
                optimizer.step()
        return loss


def muon_adamw(model: torch.nn.Module, args: Any, spec: OptimizerSpec) -> MuonAdamW:
    """The pair for a model.

    Args:
        model: its hidden matrices go to Muon, everything else that is trainable to AdamW.
        args: `transformers.TrainingArguments`; learning_rate, weight_decay, adam_* are AdamW's.
        spec: Muon's own settings.
    """
    matrices = hidden_matrices(model)
    theirs = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in theirs]
    muon = torch.optim.Muon(
        matrices or [torch.nn.Parameter(torch.zeros(1, 1))],
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=True,
        adjust_lr_fn="original",
    )
    if not matrices:
        muon.param_groups.clear()
    adamw = torch.optim.AdamW(
        rest,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )
    return MuonAdamW(muon, adamw)
