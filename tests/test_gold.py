"""Distillation across tokenizers: TRL's GOLD over a teacher's answers and own ones, with two tokenizers."""

from __future__ import annotations

import dataclasses
import math
import random
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.tokens import IGNORED
from posttrain.distill.agreement import Answer
from posttrain.distill.agreement_by_bytes import by_bytes
from posttrain.distill.gold import mode_of
from posttrain.distill.gold_trainer import FORCED, bytes_of, ends_of
from posttrain.errors import PosttrainError
from posttrain.model.artifacts import RunDir
from posttrain.model.generation import Generator, Prompt
from posttrain.model.policy import load_model, load_tokenizer
from posttrain.templates.render import render
from tests.gold import QWEN3, THINKS, context, conversations, models, trainer, write_data

EMPTY = QWEN3.prefill["non_thinking"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    made = RunDir(tmp_path_factory.mktemp("run"))
    models(made)
    write_data(made, conversations(24), QWEN3)
    return made


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    made = RunDir(tmp_path_factory.mktemp("thinks"))
    models(made, THINKS)
    write_data(made, conversations(24), THINKS)
    return made


def losses(made: Any) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def own_answers(made: Any) -> dict[str, Any]:
    """The first micro-step's inputs, on the way to a training step."""
    made.model.train()
    inputs: dict[str, Any] = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    return inputs


def test_the_tokenizers_are_really_two(run: RunDir) -> None:
    ours, theirs = load_tokenizer(run.base), load_tokenizer(run.path / "teacher")
    assert ours.get_vocab() != theirs.get_vocab()
    assert ours("7 c+5 =?").input_ids != theirs("7 c+5 =?").input_ids


def test_a_student_learns_from_a_teacher_with_other_tokens(run: RunDir) -> None:
    made = trainer(run)
    before = {name: value.clone() for name, value in made.teacher_model.state_dict().items()}
    made.train()
    assert all(loss == loss and loss > 0 for loss in losses(made))
    assert sum(losses(made)[-3:]) < 0.9 * sum(losses(made)[:3]), losses(made)
    assert all(torch.equal(value, before[name]) for name, value in made.teacher_model.state_dict().items())
    assert made.counters["rollout_tokens"] == 0
    assert made.counters["train_tokens"] > 0 and made.counters["teacher_tokens"] > 0 and made.flops() > 0


def test_it_learns_on_its_own_answers_too(run: RunDir) -> None:
    made = trainer(run, train={"lmbda": 1.0, "max_steps": 2})
    made.train()
    assert len(losses(made)) == 2 and all(loss == loss for loss in losses(made))
    assert made.counters["rollout_tokens"] > 0


def test_accumulated_micro_batches_weigh_as_much_as_one_batch(run: RunDir) -> None:
    """The loss is a mean over samples, so the mean of two halves' means is that of the whole."""
    plain = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    one = trainer(run, train=plain)
    two = trainer(run, train={**plain, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    start = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.train()
    two.train()
    for name, value in two.model.state_dict().items():
        moved, expected = value - start[name], one.model.state_dict()[name] - start[name]
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)


def test_the_tokens_are_those_of_every_other_stage(run: RunDir) -> None:
    """A row's batch has its tokens and labels; its two texts are its text; its byte offsets are the completion's."""
    made = trainer(run)
    tokenizer, rows = made.processing_class, [made.train_dataset[place] for place in range(4)]
    batch = made.data_collator(rows)
    for place, row in enumerate(rows):
        read = batch["attention_mask"][place].bool()
        assert batch["input_ids"][place][read].tolist() == row["input_ids"]
        assert batch["labels"][place][read].tolist() == row["labels"]
        text = batch["original_completion_text"][place]
        assert batch["original_prompt_text"][place] + text == tokenizer.decode(row["input_ids"])
        assert text.startswith("<think>\n") and text.endswith(QWEN3.message_end)
        for (begin, end), token in zip(batch["byte_offsets"][place][read].tolist(), row["input_ids"], strict=True):
            assert text.encode()[begin:end].decode() in ("", tokenizer.decode([token]))
        assert batch["byte_offsets"][place, -1, 1] == len(text.encode())


def modal(run: RunDir) -> list[dict[str, Any]]:
    """Conversations in both modes, dialogues among them."""
    thinking = [row["messages"] for row in conversations(8)]
    bare = [[{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages] for messages in thinking]
    dialogues = [first + second for first, second in zip(thinking[:4], bare[4:], strict=True)]
    return [{"messages": messages} for messages in [*thinking, *bare, *dialogues]]


@pytest.mark.parametrize("supervise_empty_think", [True, False])
def test_own_answers_are_asked_for_in_the_mode_of_their_sample(tmp_path: Path, supervise_empty_think: bool) -> None:
    """The prompt is the one that a server makes of the conversation in that mode, for every turn of it."""
    run = RunDir(tmp_path)
    models(run)
    given = modal(run)
    write_data(run, given, QWEN3, supervise_empty_think=supervise_empty_think)
    made = trainer(run, flags=False, train={"lmbda": 1.0})
    expected = []
    for row in given:
        for place, message in enumerate(row["messages"]):
            if message["role"] == "assistant":
                mode: Any = "thinking" if message.get("reasoning_content") else "non_thinking"
                before = row["messages"][:place]
                expected.append((mode, render(before, QWEN3, mode=mode, add_generation_prompt=True)))
    batch = made.data_collator([made.train_dataset[place] for place in range(len(expected))])
    asked = batch["_prompts"]
    assert [(prompt.mode, made.processing_class.decode(prompt.ids)) for prompt in asked] == expected
    assert {prompt.mode: prompt.prefilled for prompt in asked} == {"thinking": "", "non_thinking": EMPTY}
    inputs = own_answers(made)
    for prompt, text, row in zip(
        inputs["original_prompt_text"], inputs["original_completion_text"], inputs["labels"], strict=True
    ):
        assert prompt in {text for _, text in expected}
        assert made.processing_class.decode(row[row != IGNORED]) == text


def test_where_flags_ask_the_prompt_stands_as_it_is(run: RunDir) -> None:
    """The student has to write its empty block itself, as in fusion."""
    made = trainer(run, flags=True)
    asked = made.data_collator([made.train_dataset[place] for place in range(8)])["_prompts"]
    assert all(prompt.prefilled == "" for prompt in asked)
    assert set(made.train_dataset["prefix"]) == {""}


@pytest.mark.parametrize(
    ("answer", "family", "mode"),
    [
        ("<think>\n2+2\n</think>\n\n4", QWEN3, "thinking"),
        ("<think>\nnever close", QWEN3, "thinking"),
        (f"{EMPTY}4", QWEN3, "non_thinking"),
        ("4", QWEN3, "non_thinking"),
        ("2+2\n</think>\n\n4", THINKS, "thinking"),
    ],
)
def test_a_turn_tells_its_mode(answer: str, family: Any, mode: str) -> None:
    assert mode_of(answer, family) == mode


def test_an_own_answer_and_its_prompt_fit_in_max_length(run: RunDir) -> None:
    made = trainer(run, train={"lmbda": 1.0, "max_length": 60, "max_completion_length": 40})
    room = [60 - len(p.ids) for p in made.data_collator(list(made.train_dataset))["_prompts"]]
    assert min(room) < 40 <= max(room) + 20
    assert own_answers(made)["attention_mask"].sum(1).max() <= 60


BUDGETED: dict[str, Any] = {
    "modes": {"thinking": 1.0},
    "thinking_budgets": {"share": 0.75, "choices": [0, 3]},
    "train": {
        "lmbda": 1.0,
        "per_device_train_batch_size": 24,
        "max_length": 200,
        "uld_use_hybrid_loss": False,
    },
}


def test_budgets_stop_own_answers_and_their_tokens_are_out_of_the_loss(thinks: RunDir) -> None:
    made = trainer(thinks, THINKS, **BUDGETED)
    assert sorted(made.train_dataset["thinking_budget"]) == [-1] * 6 + [0] * 9 + [3] * 9
    inputs = own_answers(made)
    forced = 0
    for place, completion in enumerate(made._completions):
        if completion.thinking_budget is not None:
            assert completion.thinking_tokens <= completion.thinking_budget
            assert completion.closed_by == "budget"
        read = inputs["attention_mask"][place].bool()
        assert inputs["input_ids"][place][read].tolist() == completion.prompt_ids + completion.completion_ids
        chosen = [t for t, not_own in zip(completion.completion_ids, completion.forced, strict=True) if not not_own]
        labels = inputs["labels"][place]
        assert labels[labels != IGNORED].tolist() == chosen
        forced += sum(completion.forced)
    assert forced > 0
    assert made._metrics["train"]["rollouts/closed_by_budget"] == [18 / 24]


def test_entries_that_both_vocabularies_have_are_compared_with_each_other(run: RunDir) -> None:
    """By rank alone, two distributions that are sure of different words would be equal. At beta 0.5 they are as far
    apart as they can be, log 2, and its weight is the shared share of the teacher's entries."""
    made = trainer(run)
    loss = made.uld_loss_fn
    ours, theirs = made.processing_class, made.teacher_tokenizer
    both = sorted(ours.get_vocab().keys() & theirs.get_vocab().keys())
    shared = both[:2]
    sure = [
        torch.nn.functional.one_hot(torch.tensor([tokenizer.get_vocab()[word]]), len(tokenizer)).float()
        for tokenizer, word in ((ours, shared[0]), (theirs, shared[0]), (theirs, shared[1]))
    ]
    assert loss._compute_hybrid_uld_loss(sure[0], sure[1]) == pytest.approx(0, abs=1e-6)
    assert loss._compute_hybrid_uld_loss(sure[0], sure[2]) == pytest.approx(
        math.log(2) * len(both) / len(theirs), rel=1e-3
    )
    assert made.args.uld_use_hybrid_loss


def test_a_batch_in_which_nothing_was_chosen_has_no_gradient(thinks: RunDir) -> None:
    made = trainer(thinks, THINKS, **{**BUDGETED, "train": {**BUDGETED["train"], "uld_use_hybrid_loss": True}})
    batch = made.data_collator([made.train_dataset[0]])
    batch["labels"][:] = IGNORED
    batch["byte_offsets"][..., 0] = torch.where(batch["byte_offsets"][..., 1] > 0, FORCED, 0)
    made.compute_loss(made.model, batch).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in made.model.parameters())


def plain_loss(inputs: dict[str, Any], theirs: dict[str, Any], ours: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """GOLD's loss over what the student chose, written down plainly: (B, T, V) logits of student and teacher.

    Both texts are cut where both have a border between tokens. A piece is the product of the distribution before its
    last token and the probabilities of the tokens before that one; sorted, two pieces differ by their L1 distance.
    Pieces with a token that the student did not choose do not count, nor do samples without any other piece.
    """

    def before(logits_T_V: torch.Tensor) -> torch.Tensor:
        return logits_T_V.softmax(-1).roll(1, 0)  # of each token, as the token before it tells

    samples = []
    for place in range(len(ours)):
        sides = []
        for side, logits in ((inputs, ours), (theirs, other)):
            begins, ends = side["byte_offsets"][place].T.tolist()
            # The end that TRL writes behind the teacher's text covers no bytes.
            answer = [at for at, end in enumerate(ends) if begins[at] < end]
            sides.append((answer, ends, side["input_ids"][place], side["labels"][place], before(logits[place])))
        common = sorted({sides[0][1][at] for at in sides[0][0]} & {sides[1][1][at] for at in sides[1][0]})
        pieces = []
        for begin, end in pairwise([0, *common]):
            merged = []
            for answer, ends, ids, labels, probs in sides:
                own = [at for at in answer if begin < ends[at] <= end]
                if any(labels[at] == IGNORED for at in own):
                    break
                piece = probs[own[-1]]
                for at in own[:-1]:
                    piece = piece * probs[at, ids[at]]
                merged.append(torch.nn.functional.pad(piece.sort(descending=True).values, (0, 400 - len(piece))))
            else:
                pieces.append((merged[0] - merged[1]).abs().sum())
        if pieces:
            samples.append(torch.stack(pieces).mean())
    return torch.stack(samples).mean()


def test_the_loss_is_over_what_the_student_chose(thinks: RunDir) -> None:
    from trl.experimental.gold.gold_trainer import build_teacher_inputs_from_texts

    made = trainer(thinks, THINKS, **BUDGETED)
    inputs = own_answers(made)
    inputs["labels"][0] = IGNORED  # of one sample nothing was chosen
    inputs["byte_offsets"][0, :, 0] = torch.where(inputs["byte_offsets"][0, :, 1] > 0, FORCED, 0)
    names = ("input_ids", "labels", "attention_mask", "byte_offsets")
    texts = inputs["original_prompt_text"], inputs["original_completion_text"]
    theirs = dict(zip(names, build_teacher_inputs_from_texts(made.teacher_tokenizer, *texts), strict=True))
    generator = torch.Generator().manual_seed(0)
    ours, other = (
        torch.randn(*side["input_ids"].shape, len(tokenizer), generator=generator, dtype=torch.double)
        for side, tokenizer in ((inputs, made.processing_class), (theirs, made.teacher_tokenizer))
    )
    ours.requires_grad_()
    loss = made.uld_loss_fn(
        ours, other, inputs["labels"], theirs["labels"], inputs["input_ids"], theirs["input_ids"],
        student_byte_offsets=inputs["byte_offsets"], teacher_byte_offsets=theirs["byte_offsets"],
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(loss, plain_loss(inputs, theirs, ours, other))
    learned = gradient.abs().amax(-1) > 0  # what is learned is what a position says of the next one
    chosen = inputs["labels"] != IGNORED
    assert not learned[:, :-1][~chosen[:, 1:]].any() and not learned[:, -1].any()
    assert learned[:, :-1][chosen[:, 1:]].float().mean() > 0.5


def test_the_first_token_of_an_answer_and_its_end_are_learned(run: RunDir) -> None:
    """The one decides the mode, the other that the turn is over."""
    made = trainer(run)
    batch = made.data_collator([made.train_dataset[0]])
    ids, labels, offsets = batch["input_ids"], batch["labels"], batch["byte_offsets"]
    generator = torch.Generator().manual_seed(0)
    ours, other = (
        torch.randn(1, ids.shape[1], len(tokenizer), generator=generator, requires_grad=True)
        for tokenizer in (made.processing_class, made.processing_class)
    )
    # The teacher's cut is the student's here, with the end that TRL adds to it.
    behind = torch.nn.functional.pad
    ended = (behind(labels, (0, 1), value=0), behind(ids, (0, 1)), behind(offsets, (0, 0, 0, 1), value=9999))
    loss = made.uld_loss_fn(
        ours, torch.cat([other, other[:, :1]], 1), labels, ended[0], ids, ended[1],
        student_byte_offsets=offsets, teacher_byte_offsets=ended[2],
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, ours)
    learned = gradient[0].abs().amax(-1) > 0
    assert learned.tolist() == [*(labels[0, 1:] != IGNORED).tolist(), False]


def test_bytes_that_are_no_text_are_counted_as_they_are_decoded(run: RunDir) -> None:
    """An own answer may hold half a character, which the text that the teacher reads has as U+FFFD."""
    tokenizer = load_tokenizer(run.base)
    pieces = bytes_of(tokenizer)
    text = "Füße, 3 € und 🙂 <think>"
    ids = tokenizer(text).input_ids
    assert list(ends_of([pieces[token] for token in ids])) == list(accumulate(len(pieces[token]) for token in ids))
    assert b"".join(pieces[token] for token in ids) == text.encode()
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(len(tokenizer)) for _ in range(12)]
        ends = list(ends_of([pieces[token] for token in ids]))
        assert ends[-1] == len(tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode())
        assert ends == sorted(ends)


def test_the_padding_of_a_vocabulary_has_no_probability(run: RunDir) -> None:
    made = trainer(run)
    entries = len(made.processing_class)
    batch = made.data_collator([made.train_dataset[0]])
    ids, labels, offsets = batch["input_ids"], batch["labels"], batch["byte_offsets"]
    logits = torch.randn(1, ids.shape[1], entries + 7, generator=torch.Generator().manual_seed(0))
    other = logits[..., : len(made.teacher_tokenizer)]

    def loss(ours: torch.Tensor) -> torch.Tensor:
        told = {"student_byte_offsets": offsets, "teacher_byte_offsets": offsets}
        found: torch.Tensor = made.uld_loss_fn(ours, other, labels, labels, ids, ids, **told)
        return found

    assert loss(logits) == loss(logits[..., :entries]) > 0


@pytest.mark.parametrize(
    ("options", "place", "said"),
    [
        ({"train": {"use_vllm": True}}, ("train", "use_vllm"), "not sampled by vLLM"),
        ({"train": {"vllm_mode": "server"}}, ("train", "vllm_mode"), "not sampled by vLLM"),
        ({"train": {"lmbda": 0.5, "temperature": 0}}, ("train", "temperature"), "temperature 0"),
        ({"thinking_budgets": {"share": 1, "choices": [4]}}, ("thinking_budgets",), "lmbda 0 there are none"),
        (
            {"thinking_budgets": {"share": 1, "choices": [4]}, "modes": {"non_thinking": 1}, "train": {"lmbda": 1}},
            ("thinking_budgets",),
            "no sample thinks",
        ),
        (
            {"thinking_budgets": {"share": 1, "choices": [4]}, "train": {"lmbda": 1, "use_extended_uld": False}},
            ("thinking_budgets",),
            "use_extended_uld alone",
        ),
        (
            {
                "thinking_budgets": {"share": 1, "choices": [4]},
                "train": {"lmbda": 1, "uld_token_merge_strategy": "observed"},
            },
            ("thinking_budgets",),
            "observed",
        ),
        ({"logits": {}}, ("logits",), "cannot be stored"),
        ({"train": {"beta": 0.5, "uld_use_hybrid_loss": False}}, ("train", "beta"), "no effect"),
    ],
)
def test_what_gold_cannot_do_is_refused(run: RunDir, options: Any, place: tuple[str, ...], said: str) -> None:
    where = context(run, **options)
    faults = list(where.recipe.stages["student"].faults(where.recipe, "hybrid"))
    assert [fault.loc for fault in faults] == [place] and said in faults[0].what
    assert faults[0].remedy or "think" in faults[0].what


def test_what_gold_can_do_is_not_refused(run: RunDir) -> None:
    budgets = {"thinking_budgets": {"share": 1, "choices": [4]}, "train": {"lmbda": 0.5, "use_vllm": False}}
    allowed: list[dict[str, Any]] = [{}, budgets]
    for options in allowed:
        where = context(run, **options)
        assert not list(where.recipe.stages["student"].faults(where.recipe, "hybrid"))


def test_too_few_rows_for_one_step_are_refused(run: RunDir) -> None:
    with pytest.raises(PosttrainError, match="24 queries do not fill one generation batch of 32"):
        trainer(run, train={"per_device_train_batch_size": 32})


def test_a_tokenizer_without_bytes_is_refused_before_the_teacher_answers(run: RunDir, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"one": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="one").save_pretrained(tmp_path / "teacher")
    for teacher, said in (
        (tmp_path / "teacher", "teacher's tokenizer is not a byte-level one"),
        (tmp_path / "nowhere", "not be loaded"),
    ):
        where = context(run, teacher=str(teacher))
        with pytest.raises(PosttrainError, match=said):
            where.recipe.stages["student"].check_outside(where)
    where = context(run, teacher=str(tmp_path / "teacher"), train={"use_extended_uld": False})
    where.recipe.stages["student"].check_outside(where)


def test_student_and_teacher_are_compared_on_the_bytes_of_answers(run: RunDir) -> None:
    """Minus the log-likelihood of the same text, each model reading its own cut of it: the plain formula."""
    models_of = [(load_model(directory), load_tokenizer(directory)) for directory in (run.base, run.path / "teacher")]
    prompt, texts = f"{QWEN3.message_start}assistant\n", ["7 and 5 is 12", "7"]
    empty = Generator(*models_of[0], QWEN3, max_new_tokens=1)([Prompt([{"role": "user", "content": "a"}])], seed=0)[0]
    expected, answers = [], []
    for model, tokenizer in models_of:
        nats = 0.0
        for text in texts:
            before, own = (tokenizer(part, add_special_tokens=False).input_ids for part in (prompt, text))
            with torch.no_grad():
                logs = model(torch.tensor([before + own])).logits[0, :, : len(tokenizer)].log_softmax(-1)
            nats -= float(logs[len(before) - 1 : -1].gather(1, torch.tensor(own)[:, None]).sum())
        expected.append(nats / len("".join(texts)))
    tokenizer = models_of[0][1]
    for number, text in enumerate([*texts, ""]):  # one ended, one cut, one empty
        ids = [*tokenizer(text).input_ids, *([tokenizer.eos_token_id] if number != 1 else [])]
        done = dataclasses.replace(
            empty, prompt_ids=tokenizer(prompt).input_ids, completion_ids=ids, truncated=number == 1
        )
        answers.append(Answer("sums", "arithmetic", "thinking", done, "teacher"))
    (row,) = by_bytes(answers, *models_of)
    assert (row["mode"], row["data"], row["task"], row["answers"]) == ("thinking", "sums", "arithmetic", 2)
    assert (row["student"], row["teacher"]) == pytest.approx(expected, rel=1e-5)
