"""The divergences: equal to the plain formula, never negative, made in tiles; TRL's loss curve where it is TRL's."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.distill import tiles
from posttrain.distill.buckets import TopK
from posttrain.distill.divergence import divergence, top_k_divergence
from posttrain.distill.tiles import Head, Logits, Projection
from posttrain.errors import PosttrainError

ROWS, ENTRIES = 61, 53  # of the vocabulary; what lies behind is padding
BETAS = [0.0, 0.3, 1.0]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "COLUMNS", 7)
    monkeypatch.setattr(tiles, "TILE_BYTES", {"cpu": 16 * ENTRIES * 8})  # 16 tokens, of 37


class Models:
    """A student's and a teacher's hidden states and heads, and the logits that they come to."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        self.hidden, self.weight, self.bias = normal(37, 8), normal(ROWS, 8), normal(ROWS)
        self.inputs = [tensor.requires_grad_() for tensor in (self.hidden, self.weight, self.bias)]
        self.student = Projection(self.hidden, Head(self.weight, self.bias, 0.7))
        self.teacher = Projection(normal(37, 12), Head(normal(ROWS, 12)))
        self.labels = torch.randint(ENTRIES, (37,), generator=draw)

    def student_logs(self, temperature: float) -> Tensor:
        logits = (self.hidden @ self.weight.T + self.bias) * 0.7
        return (logits[:, :ENTRIES] / temperature).log_softmax(1)

    def teacher_logs(self, temperature: float) -> Tensor:
        return ((self.teacher.hidden @ self.teacher.head.weight.T)[:, :ENTRIES] / temperature).log_softmax(1)

    def top(self, k: int, temperature: float) -> TopK:
        return top_of(self.teacher_logs(temperature), k)


def top_of(logs: Tensor, k: int) -> TopK:
    top = logs.topk(k)
    return TopK(top.indices, top.values, logs.scatter(1, top.indices, -math.inf).logsumexp(1))


def plain(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The formula, over the last dimension, from logarithms of probabilities. 0 log 0 is 0."""
    p, q, of = student.exp(), teacher.exp(), torch.special.xlogy
    if beta == 0.0:
        terms = of(q, q) - q * student.clamp(min=-1e9)
    elif beta == 1.0:
        terms = of(p, p) - p * teacher.clamp(min=-1e9)
    else:
        m = (1 - beta) * p + beta * q
        terms = beta * (of(q, q) - of(q, m)) + (1 - beta) * (of(p, p) - of(p, m))
    return torch.sum(terms, -1)


def merged(logs: Tensor, ids: Tensor) -> Tensor:
    """The logarithms of the masses of the entries of `ids` and, last, of all others together."""
    rest = logs.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([logs.gather(1, ids), rest], 1) if ids.shape[1] < logs.shape[1] else logs.gather(1, ids)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_full_vocabulary_equals_the_plain_formula_with_its_gradient(beta: float, temperature: float) -> None:
    given = Models()
    teachers = (given.teacher, Logits(given.teacher.hidden @ given.teacher.head.weight.T))
    for teacher in teachers:
        found = divergence(given.student, teacher, entries=ENTRIES, beta=beta, temperature=temperature)
        logs = given.student_logs(temperature)
        expected = plain(logs, given.teacher_logs(temperature), beta)
        torch.testing.assert_close(found.per_token, expected)
        torch.testing.assert_close(found.entropy, -(logs.exp() * logs).sum(1))
        gradients = torch.autograd.grad(found.total / 3, given.inputs)
        for gradient, of_formula in zip(gradients, torch.autograd.grad(expected.sum() / 3, given.inputs), strict=True):
            torch.testing.assert_close(gradient, of_formula)
        assert (gradients[1][ENTRIES:] == 0).all() and (gradients[2][ENTRIES:] == 0).all()  # padding


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 5, ENTRIES])
@pytest.mark.parametrize(("temperature", "weights"), [(1.0, (0.8, 0.4)), (2.0, (1.0, 0.0))])
def test_buckets_equal_the_plain_formula_with_its_gradient(
    beta: float, k: int, temperature: float, weights: tuple[float, float]
) -> None:
    given = Models()
    top = given.top(k, temperature)
    labels = given.labels if weights[1] else None
    found = top_k_divergence(
        given.student, top, entries=ENTRIES, beta=beta, temperature=temperature, labels=labels, weights=weights
    )
    logs = given.student_logs(temperature)
    expected = plain(merged(logs, top.ids), merged(given.teacher_logs(temperature), top.ids), beta)
    torch.testing.assert_close(found.per_token, expected)
    torch.testing.assert_close(found.entropy, -(logs.exp() * logs).sum(1))
    total = weights[0] * expected.sum()
    if labels is not None:
        assert found.cross_entropy is not None
        cross_entropy = -logs.gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(found.cross_entropy, cross_entropy)
        total = total + weights[1] * cross_entropy.sum()
    torch.testing.assert_close(found.total, total)
    gradients = torch.autograd.grad(found.total / 3, given.inputs)
    for gradient, of_formula in zip(gradients, torch.autograd.grad(total / 3, given.inputs), strict=True):
        torch.testing.assert_close(gradient, of_formula)


@pytest.mark.parametrize("beta", BETAS)
def test_the_gradient_is_the_slope(beta: float) -> None:
    """By finite differences, along one direction through all inputs at once: no formula but the divergence itself."""
    given = Models(seed=1)
    top, step = given.top(4, 1.0), 1e-6

    def in_full(at: Models) -> Tensor:
        return divergence(at.student, at.teacher, entries=ENTRIES, beta=beta).total

    def on_buckets(at: Models) -> Tensor:
        options: Any = {"labels": at.labels, "weights": (1.0, 0.5)}
        return top_k_divergence(at.student, top, entries=ENTRIES, beta=beta, **options).total

    for run in (in_full, on_buckets):
        gradients = torch.autograd.grad(run(given), given.inputs)
        ways = [
            torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)).double() for tensor in given.inputs
        ]
        ends = []
        for sign in (1, -1):
            moved = Models(seed=1)
            with torch.no_grad():
                for tensor, way in zip(moved.inputs, ways, strict=True):
                    tensor += sign * step * way
            ends.append(run(moved).item())
        slope = (ends[0] - ends[1]) / (2 * step)
        expected = sum((gradient * way).sum().item() for gradient, way in zip(gradients, ways, strict=True))
        assert slope == pytest.approx(expected, rel=1e-6)


@settings(max_examples=150)
@given(
    beta=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99)),
    k=st.integers(1, ENTRIES),
    sharpness=st.floats(0.01, 60.0),
    apart=st.sampled_from([0.0, 1e-4, 0.1, 1.0, 10.0]),
    rounded=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_buckets_are_never_negative_and_never_above_the_full_vocabulary(
    beta: float, k: int, sharpness: float, apart: float, rounded: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    theirs = torch.randn(4, ENTRIES, generator=draw) * sharpness
    ours = theirs + torch.randn(4, ENTRIES, generator=draw) * apart
    teacher = top_of(theirs.log_softmax(1), k)
    if rounded:  # as a cache in half precision keeps it
        teacher = TopK(teacher.ids, teacher.log_probs.half().float(), teacher.tail.half().float())
    hidden = ours.requires_grad_()  # logits by a head that changes nothing
    found = top_k_divergence(Projection(hidden, Head(torch.eye(ENTRIES))), teacher, entries=ENTRIES, beta=beta)
    full = divergence(Projection(ours, Head(torch.eye(ENTRIES))), Logits(theirs), entries=ENTRIES, beta=beta)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and hidden.grad.isfinite().all() and found.total.isfinite()
    assert (found.per_token >= 0).all() and found.total >= 0
    if not rounded:
        assert (found.per_token <= full.per_token * 1.001 + 1e-4 * sharpness).all()
        if apart == 0.0:
            assert (found.per_token <= 1e-4).all()


def test_before_rounding_the_formula_on_buckets_is_not_negative_either() -> None:
    """The clamp at 0 hides no more than rounding: in double precision nothing lies further below."""
    from posttrain.distill.buckets import bucket_divergence

    draw = torch.Generator().manual_seed(3)
    for beta in (0.0, 0.2, 0.5, 0.9, 1.0):
        logs = (torch.randn(2, 4000, 9, generator=draw, dtype=torch.float64) * 20).log_softmax(-1)
        known = TopK(torch.zeros(4000, 8), logs[1, :, :8].half(), logs[1, :, 8].half()).buckets(torch.float64)
        assert bucket_divergence(logs[0], known, beta).min() > -1e-13
        assert bucket_divergence(known, known, beta).abs().max() < 1e-13


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most elements that any tensor had that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("beta", BETAS)
def test_logits_never_stand_for_all_tokens(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "COLUMNS", 512)
    monkeypatch.setattr(tiles, "TILE_BYTES", {"cpu": 1 << 20})
    tokens, entries = 256, 4000
    hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(entries, 8, requires_grad=True)
    student = Projection(hidden, Head(weight))
    with Largest() as largest:  # type: ignore[no-untyped-call]
        divergence(
            student, Projection(hidden.detach(), Head(weight.detach())), entries=entries, beta=beta
        ).total.backward()  # type: ignore[no-untyped-call]
        ids = torch.arange(8).expand(tokens, 8)
        top = TopK(ids, torch.full((tokens, 8), -3.0), torch.full((tokens,), -1.0))
        top_k_divergence(student, top, entries=entries, beta=beta).total.backward()  # type: ignore[no-untyped-call]
    assert weight.numel() <= largest.elements <= (1 << 20) / 4 < tokens * entries / 3


def test_no_token_at_all_is_no_divergence() -> None:
    given = Models()
    none = Projection(given.hidden[:0], given.student.head)
    found = divergence(none, Projection(given.teacher.hidden[:0], given.teacher.head), entries=ENTRIES, beta=1.0)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.total == 0 and given.weight.grad is not None and (given.weight.grad == 0).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("where", ["student", "teacher", "stored"])
def test_what_is_no_number_is_refused(beta: float, where: str) -> None:
    """Weights trained on it would all become NaN, and what is logged leaves such steps out."""
    given = Models(torch.float32)
    top = given.top(4, 1.0)
    (given.hidden.detach() if where == "student" else given.teacher.hidden)[17, 3] = math.inf
    with pytest.raises(PosttrainError, match="is no number"):
        if where == "stored":
            top_k_divergence(
                given.student, TopK(top.ids, top.log_probs * math.nan, top.tail), entries=ENTRIES, beta=beta
            )
        else:
            divergence(given.student, given.teacher, entries=ENTRIES, beta=beta)


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("largest", [1.0, 1e4])
def test_extreme_logits_leave_divergence_and_gradient_finite(beta: float, temperature: float, largest: float) -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 6, ENTRIES, generator=draw) * largest
    theirs[0, 5], ours[0, 7], theirs[1], ours[2] = 3 * largest, 3 * largest, 0.0, 0.0  # sure of other entries; flat
    for teacher in (None, top_of((theirs / temperature).log_softmax(1), 5)):
        hidden = ours.clone().requires_grad_()
        student = Projection(hidden, Head(torch.eye(ENTRIES)))
        options: Any = {"entries": ENTRIES, "beta": beta, "temperature": temperature}
        found = (
            divergence(student, Logits(theirs), **options)
            if teacher is None
            else top_k_divergence(student, teacher, **options)
        )
        found.total.backward()  # type: ignore[no-untyped-call]
        assert (found.per_token >= 0).all() and found.entropy.isfinite().all()
        assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_a_gradient_is_used_once() -> None:
    given = Models()
    total = divergence(given.student, given.teacher, entries=ENTRIES, beta=1.0).total
    total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="is used up"):
        total.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_curve_is_trls(beta: float, temperature: float) -> None:
    """Stock TRL's loss and ours teach a student the same, step by step, where no padding is compared."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    curves = []
    for ours in (True, False):
        given = Models(torch.float32)
        optimizer = torch.optim.Adam(given.inputs, lr=0.05)
        mask = torch.arange(37) % 5 > 0
        curve = []
        for _ in range(12):
            hidden = given.hidden
            if ours:
                head = Head(given.weight, given.bias)
                teacher = Projection(given.teacher.hidden[mask], given.teacher.head)
                student = Projection(hidden[mask], head)
                found = divergence(student, teacher, entries=ROWS, beta=beta, temperature=temperature)
                loss = found.total / mask.sum()
            else:
                loss, _, _ = _chunked_divergence_loss(
                    hidden[None],
                    given.teacher.hidden[None],
                    given.weight,
                    given.teacher.head.weight,
                    mask[None].int(),
                    beta,
                    student_lm_head_bias=given.bias,
                    temperature=temperature,
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], rel=2e-4)
    assert curves[0][-1] < 0.8 * curves[0][0]
