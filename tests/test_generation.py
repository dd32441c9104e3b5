"""Generation on real tiny Qwen3 models: random weights, and weights that walk a chain of ids written down here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.multiprocessing.spawn import spawn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.budget.tokens import budget_rule
from posttrain.errors import PosttrainError
from posttrain.model.decoding import draw
from posttrain.model.generation import Completion, Generator, Prompt
from posttrain.templates.families import Mode, Sampling, get_family

FAMILY = dataclasses.replace(get_family("qwen3"), stop_thinking="\n\nTime is up.\n</think>\n\n")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "\n\n"]
GREEDY: Mapping[Mode, Sampling] = {"thinking": Sampling(0.0), "non_thinking": Sampling(0.0)}
AT_ONE: Mapping[Mode, Sampling] = {"thinking": Sampling(1.0), "non_thinking": Sampling(1.0)}


@cache
def tokenizer() -> Any:
    """Bytes, and the tokens of the dialect."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={symbol: at for at, symbol in enumerate(symbols)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def id_of(text: str) -> int:
    (token,) = tokenizer().encode(text, add_special_tokens=False)
    return int(token)


def config(**changes: Any) -> Qwen3Config:
    settings = {
        "vocab_size": 288,  # 26 more than the tokenizer has
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": 258,
        "pad_token_id": 256,
    }
    return Qwen3Config(**(settings | changes))


@pytest.fixture(scope="module")
def random_model() -> Any:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config(initializer_range=0.2)).eval()
    with torch.no_grad():  # markers and ends come up often enough to matter
        for marker, factor in (("<think>", 2.0), ("</think>", 3.0), ("<|im_end|>", 5.0)):
            model.lm_head.weight[id_of(marker)] *= factor
    return model


def chain_model(**following: str) -> Any:
    """A Qwen3 whose next id depends on the latest alone: "a" follows by=..., and so on; anything else ends the turn."""
    model = Qwen3ForCausalLM(config(hidden_size=288, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(288))
        model.lm_head.weight.zero_()
        model.lm_head.weight[id_of("<|im_end|>")] = 1.0
        for latest, after in following.items():
            model.lm_head.weight[id_of(after), id_of(NAMES.get(latest, latest))] = 2.0
    return model


NAMES = {"line": "\n", "gap": "\n\n", "open": "<think>", "close": "</think>"}
THINKS_ON = {"line": "<think>", "open": "a", "a": "a", "gap": "b", "b": "c"}  # opens, never closes, answers "bc"


def user(text: str, **options: Any) -> Prompt:
    return Prompt([{"role": "user", "content": text}], **options)


def mixed_prompts() -> list[Prompt]:
    """Twenty-four prompts of different lengths, modes and budgets."""
    modes: tuple[Mode | None, ...] = ("thinking", "non_thinking", None)
    budgets = (None, 0, 3, 7, -1)
    return [
        user("why " * (1 + at * 5 % 7) + "?" * (at % 4), mode=modes[at % 3], thinking_budget=budgets[at % 5])
        for at in range(24)
    ]


def ids(completions: list[Completion]) -> list[list[int]]:
    return [completion.completion_ids for completion in completions]


# ---------------------------------------------------------------- modes and budgets


def test_budgets_of_a_mixed_batch_are_exact() -> None:
    budgets = [0, 1, 5, 9, None, -1]
    generate = Generator(chain_model(**THINKS_ON), tokenizer(), FAMILY, max_new_tokens=16, sampling=GREEDY)
    completions = generate([user("x" * at, thinking_budget=budget) for at, budget in enumerate(budgets)], seed=0)
    stop = tokenizer().encode(FAMILY.stop_thinking)
    for budget, done in zip(budgets, completions, strict=True):
        if budget is None or budget == -1:
            assert done.text == "<think>" + "a" * 15
            assert (done.thinking_tokens, done.closed_by, done.truncated) == (15, None, True)
            assert not any(done.forced) and not done.message.closed
            continue
        own, answer = [id_of("<think>")] + [id_of("a")] * budget, [id_of("b"), id_of("c"), id_of("<|im_end|>")]
        assert done.completion_ids == own + stop + answer
        assert done.forced == [False] * len(own) + [True] * len(stop) + [False] * 3
        assert (done.thinking_tokens, done.closed_by, done.truncated) == (budget, "budget", False)
        assert done.text == "<think>" + "a" * budget + FAMILY.stop_thinking + "bc"
        assert done.message.content.strip() == "bc" and done.message.closed
        assert (done.message.reasoning or "").strip() == ("a" * budget + "\n\nTime is up.").strip()


def test_every_prompt_has_its_own_mode() -> None:
    generate = Generator(chain_model(**THINKS_ON), tokenizer(), FAMILY, max_new_tokens=16, sampling=GREEDY)
    thinking, plain, unsaid = generate(
        [user("q", mode="thinking", thinking_budget=2), user("q", mode="non_thinking"), user("q", thinking_budget=4)],
        seed=0,
    )
    assert (thinking.thinking_tokens, plain.thinking_tokens, unsaid.thinking_tokens) == (2, 0, 4)
    assert (thinking.prefilled, plain.prefilled, unsaid.prefilled) == ("", "<think>\n\n</think>\n\n", "")
    assert (plain.text, plain.message.content.strip(), plain.message.mode) == ("bc", "bc", "non_thinking")
    assert tokenizer().decode(plain.prompt_ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert [completion.mode for completion in (thinking, plain, unsaid)] == ["thinking", "non_thinking", None]


def test_a_prompt_that_ends_inside_a_block_is_thinking_from_the_start() -> None:
    family = dataclasses.replace(get_family("qwen3_thinking_2507"), stop_thinking=FAMILY.stop_thinking)
    model = chain_model(line="a", a="a", gap="b", b="c")
    (done,) = Generator(model, tokenizer(), family, max_new_tokens=16, sampling=GREEDY)(
        [user("a <think> typed by the user", thinking_budget=4)], seed=0
    )
    assert done.prefilled == "<think>\n"
    assert done.text == "aaaa" + FAMILY.stop_thinking + "bc"
    assert (done.thinking_tokens, done.message.content.strip()) == (4, "bc")


def test_a_marker_typed_by_the_user_opens_nothing() -> None:
    generate = Generator(chain_model(line="a", a="a"), tokenizer(), FAMILY, max_new_tokens=8, sampling=GREEDY)
    (done,) = generate([user("what is <think>?", thinking_budget=2)], seed=0)
    assert (done.text, done.thinking_tokens) == ("a" * 8, 0)


def test_eos_inside_limited_thinking_closes_it_and_the_model_answers() -> None:
    model = chain_model(line="<think>", open="a", gap="b", b="c")  # "a" is followed by the end of the turn
    limited, unlimited = Generator(model, tokenizer(), FAMILY, max_new_tokens=16, sampling=GREEDY)(
        [user("q", thinking_budget=9), user("q")], seed=0
    )
    assert limited.text == "<think>a</think>\n\nbc"
    assert limited.forced == [False, False, True, True, False, False, False]
    assert (limited.closed_by, limited.thinking_tokens, limited.truncated) == ("eos", 1, False)
    assert (unlimited.text, unlimited.closed_by, unlimited.message.closed) == ("<think>a", None, False)


def test_forced_tokens_do_not_eat_the_answers_room() -> None:
    model = chain_model(**(THINKS_ON | {"b": "b"}))
    (done,) = Generator(model, tokenizer(), FAMILY, max_new_tokens=10, sampling=GREEDY)(
        [user("q", thinking_budget=3)], seed=0
    )
    assert done.text == "<think>aaa" + FAMILY.stop_thinking + "b" * 6
    assert done.truncated and done.forced.count(False) == 10


def test_reentry_gains_nothing() -> None:
    model = chain_model(**(THINKS_ON | {"gap": "<think>"}))  # it always wants back
    (done,) = Generator(model, tokenizer(), FAMILY, max_new_tokens=8, sampling=GREEDY)(
        [user("q", thinking_budget=2)], seed=0
    )
    assert done.thinking_tokens == 2
    assert done.text.startswith("<think>aa" + FAMILY.stop_thinking + "<think></think>\n\n<think></think>")
    assert done.truncated and len(done.completion_ids) == 8 + len(tokenizer().encode(FAMILY.stop_thinking))


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    instruct = get_family("qwen3_instruct_2507")
    generate = Generator(chain_model(), tokenizer(), instruct, max_new_tokens=4)
    assert generate([user("q")], seed=0)[0].completion_ids == [id_of("<|im_end|>")]
    with pytest.raises(PosttrainError, match="stop-thinking text"):
        generate([user("q", thinking_budget=3)], seed=0)


# ---------------------------------------------------------------- rows do not depend on their companions


@pytest.mark.parametrize("sampling", [GREEDY, AT_ONE, None], ids=["greedy", "at one", "the family's"])
def test_a_completion_does_not_depend_on_its_batch(random_model: Any, sampling: Any) -> None:
    def complete(batch_size: int) -> list[Completion]:
        generate = Generator(
            random_model, tokenizer(), FAMILY, max_new_tokens=24, batch_size=batch_size, sampling=sampling
        )
        return generate(mixed_prompts(), seed=5)

    together = complete(64)
    assert together == complete(1) == complete(7)
    assert len({len(completion.completion_ids) for completion in together}) > 3  # rows did leave at different times


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, {"num_key_value_heads": 4}],
    ids=["grouped heads", "a layer with a sliding window", "full heads"],
)
def test_greedy_is_what_transformers_generates(changes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(config(initializer_range=0.2, vocab_size=262, **changes)).eval()
    prompts = [user("why " * size) for size in (1, 3, 3, 9)]
    for done in Generator(model, tokenizer(), FAMILY, max_new_tokens=90, sampling=GREEDY)(prompts, seed=0):
        expected = model.generate(
            torch.tensor([done.prompt_ids]), max_new_tokens=90, do_sample=False, eos_token_id=[id_of("<|im_end|>"), 256]
        )
        assert done.prompt_ids + done.completion_ids == expected[0].tolist()


def test_equal_prompts_are_sampled_differently_and_seeds_decide(random_model: Any) -> None:
    generate = Generator(random_model, tokenizer(), FAMILY, max_new_tokens=12, sampling=AT_ONE)
    prompts = [user("same")] * 6
    first = generate(prompts, seed=1)
    assert first == generate(prompts, seed=1)
    assert len({tuple(row) for row in ids(first)}) == 6
    assert ids(first) != ids(generate(prompts, seed=2))
    assert ids(first)[:3] == ids(generate(prompts[:3], seed=1))  # what comes later in the list does not matter


def test_padding_of_the_vocabulary_is_never_sampled(random_model: Any) -> None:
    hot: Mapping[Mode, Sampling] = {"thinking": Sampling(50.0)}
    generate = Generator(random_model, tokenizer(), FAMILY, max_new_tokens=40, sampling=hot)
    assert max(map(max, ids(generate([user("q")] * 20, seed=0)))) < 262


# ---------------------------------------------------------------- what is left as it was


def test_training_mode_configuration_and_random_state_are_restored(random_model: Any) -> None:
    prompts = mixed_prompts()[:4]
    generate = Generator(random_model, tokenizer(), FAMILY, max_new_tokens=8, sampling=AT_ONE)
    expected = generate(prompts, seed=3)
    random_model.train()
    random_model.model.layers[0].eval()
    random_model.config.use_cache = False
    random_model.gradient_checkpointing_enable()
    flags = [module.training for module in random_model.modules()]
    state = torch.get_rng_state()
    try:
        assert generate(prompts, seed=3) == expected
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in random_model.modules()] == flags
        assert random_model.config.use_cache is False
        assert random_model.config._attn_implementation == "sdpa"
        loss = random_model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
        loss.backward()  # nothing of the generation stays in the way of training
    finally:
        random_model.zero_grad()
        random_model.gradient_checkpointing_disable()
        random_model.config.use_cache = True
        random_model.eval()


def test_a_peft_model_generates_with_its_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config(initializer_range=0.2)).eval()
    prompts = mixed_prompts()[:6]
    bare = Generator(model, tokenizer(), FAMILY, max_new_tokens=12, sampling=GREEDY)(prompts, seed=0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    generate = Generator(adapted, tokenizer(), FAMILY, max_new_tokens=12, sampling=GREEDY)
    assert generate(prompts, seed=0) == bare  # a new adapter changes nothing
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert ids(generate(prompts, seed=0)) != ids(bare)


def test_progress_counts_every_completion_once(random_model: Any) -> None:
    counts: list[int] = []
    generate = Generator(random_model, tokenizer(), FAMILY, max_new_tokens=8, batch_size=5)
    assert len(generate(mixed_prompts(), seed=0, progress=counts.append)) == 24
    assert sum(counts) == 24
    assert generate([], seed=0) == []


def test_a_model_that_diverged_is_named() -> None:
    model = chain_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    for sampling in (GREEDY, AT_ONE, None):
        with pytest.raises(PosttrainError, match="not finite"):
            Generator(model, tokenizer(), FAMILY, max_new_tokens=4, sampling=sampling)([user("q")], seed=0)


def _generate_sharded(rank: int, rendezvous: str, results: str) -> None:
    """One of two processes that hold half of every parameter, and have different numbers of prompts."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config(initializer_range=0.2)).eval()
    whole = Generator(model, tokenizer(), FAMILY, max_new_tokens=9, batch_size=4, sampling=GREEDY)
    prompts = mixed_prompts()[: 3 if rank else 13]
    expected = ids(whole(prompts, seed=0))
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    generate = Generator(model, tokenizer(), FAMILY, max_new_tokens=9, batch_size=4, sampling=GREEDY, sharded=True)
    torch.save(ids(generate(prompts, seed=0)) == expected, f"{results}{rank}")
    dist.destroy_process_group()


def test_sharded_parameters_and_different_work_on_two_processes(tmp_path: Any) -> None:
    paths = (str(tmp_path / "rendezvous"), str(tmp_path / "same"))
    spawn(_generate_sharded, paths, nprocs=2)  # type: ignore[no-untyped-call]
    assert torch.load(tmp_path / "same0") and torch.load(tmp_path / "same1")


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.6),
        Sampling(0.6, top_p=0.95, top_k=20),
        Sampling(0.7, top_p=0.8),
        Sampling(1.5, top_k=3),
    ],
)
def test_draws_follow_the_distribution_of_transformers_warpers(sampling: Sampling) -> None:
    """With N noises spread evenly over [0, 1), an id of probability p is drawn N p times, give or take one."""
    size = 20_000
    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 2
    warped = TemperatureLogitsWarper(sampling.temperature)(None, scores.clone())
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(None, warped)
    noise = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    counts = torch.bincount(draw(scores.expand(size, -1), noise, sampling), minlength=50)
    assert (counts - warped.softmax(-1)[0] * size).abs().max() < 1.5


def test_the_ends_of_the_noise_draw_possible_ids() -> None:
    scores = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(2, -1)
    noise = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores, noise, Sampling(1.0)).tolist() == [1, 3]


def test_presence_penalty_is_on_what_was_generated_and_in_its_rows_alone(random_model: Any) -> None:
    penal: Mapping[Mode, Sampling] = {"thinking": Sampling(0.0, presence_penalty=1e6), "non_thinking": Sampling(0.0)}
    generate = Generator(random_model, tokenizer(), FAMILY, max_new_tokens=20, sampling=penal)
    free, plain = (
        Generator(random_model, tokenizer(), FAMILY, max_new_tokens=20, sampling=GREEDY)(
            [user("why why", mode=mode)] * 2, seed=0
        )
        for mode in ("thinking", "non_thinking")
    )
    repelled, untouched = generate([user("why why", mode="thinking"), user("why why", mode="non_thinking")], seed=0)
    assert len(set(repelled.completion_ids)) == len(repelled.completion_ids) > 3
    assert len(set(free[0].completion_ids)) < len(free[0].completion_ids)
    assert repelled.completion_ids[0] == free[0].completion_ids[0]  # the prompt's ids are not penalised
    assert untouched.completion_ids == plain[0].completion_ids


# ---------------------------------------------------------------- the ids of the rule


def test_the_rule_is_encoded_by_the_tokenizer() -> None:
    rule = budget_rule(tokenizer(), FAMILY)
    assert (rule.open_ids, rule.close_ids) == ((id_of("<think>"),), (id_of("</think>"),))
    assert tokenizer().decode(rule.stop_ids) == FAMILY.stop_thinking
    assert (tokenizer().decode(rule.lead_ids), tokenizer().decode(rule.tail_ids)) == ("\n\nTime is up.\n", "\n\n")
    assert rule.eos_ids == {id_of("<|im_end|>"), id_of("<|endoftext|>")}
    assert budget_rule(tokenizer(), FAMILY, stop_text="</think>").stop_ids == rule.close_ids


def test_markers_of_several_ids_work_where_they_are_the_same_everywhere() -> None:
    family = dataclasses.replace(FAMILY, think_open="[t]", think_close="[/t]", stop_thinking="\n[/t]\n\n")
    rule = budget_rule(tokenizer(), family)
    assert (len(rule.open_ids), len(rule.close_ids)) == (3, 4)


def test_faults_of_the_rule_are_told() -> None:
    with pytest.raises(PosttrainError, match="does not contain '</think>'"):
        budget_rule(tokenizer(), dataclasses.replace(FAMILY, stop_thinking="enough"))
    with pytest.raises(PosttrainError, match="knows neither"):
        budget_rule(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), FAMILY)
    letters = {symbol: at for at, symbol in enumerate(sorted(set("<|im_end|>\n</think>")))}
    merging = Tokenizer(models.BPE(vocab=letters | {"\n<": len(letters)}, merges=[("\n", "<")]))
    merging.add_tokens(["<|im_end|>"])
    family = dataclasses.replace(FAMILY, stop_thinking="\n</think>")
    with pytest.raises(PosttrainError, match=r"splits the think markers(.|\n)*add '<think>'"):
        budget_rule(PreTrainedTokenizerFast(tokenizer_object=merging), family)


def test_answers_past_the_models_positions_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = chain_model(**THINKS_ON)
    model.config.max_position_embeddings = 40
    generate = Generator(model, tokenizer(), FAMILY, max_new_tokens=30, sampling=GREEDY)
    with caplog.at_level("WARNING", logger="posttrain"):
        short = generate([user("a", mode="non_thinking", thinking_budget=0)], seed=0)
        assert len(short[0].prompt_ids) + len(short[0].completion_ids) <= 40 and not caplog.messages
        for _ in range(2):
            generate([user("a", mode="thinking"), user("a", mode="non_thinking")], seed=0)
    assert caplog.messages == ["1 of 2 completions went on past the model's 40 positions (prompt and answer together)"]
