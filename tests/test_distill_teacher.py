"""A teacher is held against its student before anything starts: tokenizers entry by entry, vocabularies, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from posttrain.distill.teacher import check_tokenizers, entries_of, load_teacher, match_vocabulary
from posttrain.errors import PosttrainError
from posttrain.model.policy import build_policy, load_model, load_tokenizer
from posttrain.recipe.schema import ModelSpec, TrainedTokenizer
from posttrain.tasks.arithmetic import corpus
from posttrain.templates.families import get_family

QWEN3 = get_family("qwen3")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("policy")
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        config=SIZES,
        tokenizer=TrainedTokenizer(train_on=["text"], vocab_size=330),
    )
    build_policy(spec, QWEN3, root, seed=1, texts=list(corpus(300, 0)))
    return root


def resized(policy: Path, rows: int) -> Any:
    model = load_model(policy)
    model.resize_token_embeddings(rows)
    return model


def test_a_tokenizer_equals_itself(policy: Path) -> None:
    check_tokenizers(load_tokenizer(policy), load_tokenizer(policy), "teacher")


def test_the_first_differing_entries_are_named(policy: Path) -> None:
    ours, theirs = load_tokenizer(policy), load_tokenizer(policy)
    size = len(ours)
    theirs.add_tokens([AddedToken(f"<extra_{i}>") for i in range(7)])
    with pytest.raises(PosttrainError) as caught:
        check_tokenizers(ours, theirs, "RUN/teacher")
    text = str(caught.value)
    assert f"entry {size} is nothing here and '<extra_0>' there" in text
    assert "and 2 more" in text and "RUN/teacher" in text


def test_the_same_entries_split_otherwise_are_a_difference(policy: Path, tmp_path: Path) -> None:
    import json

    ours = load_tokenizer(policy)
    ours.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = []  # the vocabulary stays: single bytes are put together no more
    path.write_text(json.dumps(tokenizer))
    theirs = load_tokenizer(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab()
    with pytest.raises(PosttrainError, match="is split into other entries"):
        check_tokenizers(ours, theirs, "teacher")


def test_another_name_for_the_end_is_no_difference(policy: Path) -> None:
    ours, theirs = load_tokenizer(policy), load_tokenizer(policy)
    theirs.eos_token = "<|endoftext|>"  # Qwen3's base models and its chat models differ so
    check_tokenizers(ours, theirs, "teacher")


def test_numbers_that_a_tokenizer_leaves_out_do_not_hide_its_last_entries(policy: Path, tmp_path: Path) -> None:
    """Counted by how many there are, the last would be padding."""
    import json

    load_tokenizer(policy).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    last = max(tokenizer["model"]["vocab"].values())
    tokenizer["model"]["vocab"] = {token: at for token, at in tokenizer["model"]["vocab"].items() if at != last - 1}
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["id"] < last]
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer))
    holed = load_tokenizer(tmp_path)
    assert entries_of(holed) == last + 1 == len(holed) + 1 and entries_of(load_tokenizer(policy)) == last + 3


def test_a_missing_teacher_is_one_line(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match=r"the teacher at .*nowhere could not be loaded"):
        load_teacher(tmp_path / "nowhere", load_tokenizer(policy), dtype="float32", attention="sdpa")


@pytest.mark.parametrize("rows", [384, 330])
def test_a_teacher_padded_otherwise_is_matched_and_answers_as_before(policy: Path, rows: int) -> None:
    student, teacher = load_model(policy), resized(policy, rows)
    entries = len(load_tokenizer(policy))
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        before = teacher(ids).logits[..., :entries]
        match_vocabulary(student, teacher, entries)
        after = teacher(ids).logits
    assert after.shape[-1] == student.config.vocab_size == teacher.config.vocab_size
    assert torch.equal(after[..., :entries], before)


def test_fewer_rows_than_entries_are_refused(policy: Path) -> None:
    with pytest.raises(PosttrainError, match="the teacher's vocabulary has 320 rows, its tokenizer 330 entries"):
        match_vocabulary(load_model(policy), resized(policy, 320), len(load_tokenizer(policy)))
