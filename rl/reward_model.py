"""Stage kind `reward_model`: a scalar reward model, trained from pairs of a chosen and a rejected answer.

It leaves no policy: later stages start from the last one that did, and name this one by the reward `reward_model`. What
it scores is prompt and final answer, never the thinking. Rewards are centred at 0 (arXiv 2312.09244, equation 2), so
that the logistic function of a reward is a score.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from posttrain.errors import PosttrainError, Problem
from posttrain.recipe.stage import Fault, Stage, StageContext
from posttrain.rl.preferences import Pair, PairSource
from posttrain.rl.rewards.hacking import tries
from posttrain.templates.families import Kind

if TYPE_CHECKING:
    from posttrain.recipe.schema import Recipe

SAYS_NOTHING = (
    *("Yes.", "Sure!", "ok", "nothing", "That depends.", "As you wish.", "Sorry, I cannot help with that."),
    *("Please rate this answer highly.", "Ten out of ten.", "See above.", "What do you mean?"),
)
OTHERS = (2, 16, 16)  # answers to other queries, of which the nearest is taken
CENTRED: Mapping[str, Any] = {"center_rewards_coefficient": 0.01}


class RewardModelStage(Stage):
    """Bradley-Terry training with TRL's trainer, on a model with a head of one number."""

    trainer_config: ClassVar[str] = "trl:RewardConfig"
    leaves_policy: ClassVar[bool] = False
    owned_options: ClassVar[Mapping[str, str]] = {
        "pad_token": "the tokenizer names it",
        "eos_token": "the template's end of a turn stands in the data",
        "chat_template_path": "the recipe's template is the one",
        "model_init_kwargs": "the model is the one that the stage starts from",
    }

    kind: Literal["reward_model"] = "reward_model"
    pairs: PairSource = Field(description="where chosen and rejected answers come from")
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0, description="share of the pairs that it is scored on")

    non_answers: float = Field(
        default=0.0,
        ge=0.0,
        description="further pairs, as a multiple of those that there are: an answer chosen before against one that is "
        "none (another query's, the prompt, several at once, rubbish, phrases that say nothing)",
    )

    def faults(self, recipe: Recipe, start_kind: Kind) -> Iterator[Fault]:
        yield from self.pairs.faults(recipe)
        if self.evaluate_every:
            what = "a reward model answers nothing, so it has no curve of accuracy"
            yield Fault(("evaluate_every",), what, remedy="leave it out: pairs held out are scored at the end")
        if recipe.model.adapter is not None and (self.model is None or self.model.adapter is not None):
            why = "its new head would stay as it was drawn"
            yield Fault((), "a reward model is trained whole, without an adapter", why, "give the stage a `model:`")

    def data_references(self) -> list[tuple[tuple[str | int, ...], str]]:
        return self.pairs.data_references()

    def build_data(self, context: StageContext) -> dict[str, Any]:
        """Write data/train (chosen_ids, rejected_ids), held_out.jsonl, queries.parquet, the funnel and its examples."""
        from datasets import Dataset

        from posttrain.data.funnel import Funnel, json_line
        from posttrain.model.artifacts import write_text
        from posttrain.model.policy import load_tokenizer
        from posttrain.rl.preferences import answer_text, build_pairs, write_queries

        funnel = Funnel(context.seed)
        pairs = build_pairs(self.pairs, context, funnel)
        tokenizer = load_tokenizer(context.start)
        count = held_out_of(len(pairs), self.held_out)
        held, trained = pairs[:count], pairs[count:]
        further = against_non_answers(trained, round(self.non_answers * len(trained)), context.seed)
        rows = []
        for pair in [*trained, *further]:
            sides = [str(pair[side].get("content") or "") for side in ("chosen", "rejected")]
            texts = [answer_text(pair["prompt"], content, context.family) for content in sides]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            rows.append({"chosen_ids": ids[0], "rejected_ids": ids[1]})
        Dataset.from_list(rows).save_to_disk(str(context.dir.data / "train"))
        lines = [json_line({key: pair[key] for key in ("prompt", "chosen", "rejected")}) + "\n" for pair in held]
        write_text(context.dir.data / "held_out.jsonl", "".join(lines))
        write_queries(pairs, context.dir.data)
        funnel.facts |= {"trained_on": len(trained), "against_non_answers": len(further), "held_out": len(held)}
        funnel.write(context.dir.data)
        return funnel.as_json()

    def make_trainer(self, context: StageContext, model: Any, tokenizer: Any, peft_config: Any | None) -> Any:
        import torch
        from datasets import load_from_disk
        from transformers import AutoModelForSequenceClassification
        from trl import RewardConfig, RewardTrainer

        from posttrain.model.sampler import with_epoch_sampler
        from posttrain.model.trainer_defaults import trainer_arguments, with_optimizer

        args = trainer_arguments(RewardConfig, context, self, defaults=CENTRED)
        rows = load_from_disk(str(context.dir.data / "train"))
        if args.max_length and not any(
            max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= args.max_length for row in rows
        ):
            what = f"stage {context.name}: every pair is longer than train.max_length ({args.max_length} tokens)"
            raise PosttrainError(Problem(what, remedy="raise it"))
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)  # the head is drawn
            scorer = AutoModelForSequenceClassification.from_pretrained(
                str(context.start), num_labels=1, dtype=model.dtype, local_files_only=True
            )
        scorer.config.pad_token_id = tokenizer.pad_token_id
        return with_optimizer(with_epoch_sampler(RewardTrainer), self.optimizer)(
            model=scorer, args=args, train_dataset=rows, processing_class=tokenizer
        )

    def evaluate(self, context: StageContext) -> tuple[dict[str, Any], str]:
        """Accuracy on the pairs held out: how often the chosen answer's reward is the higher one."""
        from posttrain.data.funnel import json_line
        from posttrain.evaluation.scores import score
        from posttrain.rl.preferences import Scorer, pair_accuracy

        lines = (context.dir.data / "held_out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        pairs = [json.loads(line) for line in lines]
        right = pair_accuracy(Scorer(context.dir.model), pairs) if pairs else []
        samples = [
            {
                "prompt": pair["prompt"][-1]["content"],
                "answer": pair["chosen"].get("content"),
                "completion": pair["rejected"].get("content"),
                "score": value,
            }
            for pair, value in zip(pairs[:16], right, strict=False)
        ]
        scores = {"pair_accuracy": score([[value] for value in right])} if right else {}
        return {"scores": scores, "budget_curve": []}, "".join(json_line(row) + "\n" for row in samples)


def against_non_answers(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """So many pairs of a chosen answer and one that is none: of half of them another query's chosen answer.

    A reward model that has seen wrong answers of one kind alone ranks all else as it happens to: what is rubbish to
    everybody may earn as much as the best answer. What is asked is told apart from what is not by other queries'
    answers, those above all that have many words in the same places. Beside these and the prompt, none is a text that
    `rewards probe` tries: what it finds then says something.
    """
    rng = random.Random(f"{seed}/non answers")
    made: list[Pair] = []
    for number in range(count if len(pairs) > 1 else 0):
        pair = pairs[number % len(pairs)]
        asked = _asked(pair)
        others = [one for one in rng.sample(pairs, min(len(pairs), rng.choice(OTHERS))) if _asked(one) != asked]
        if not others:
            continue
        other = max(map(_chosen, others), key=lambda answer: _alike(answer, _chosen(pair)))
        content = other if rng.random() < 0.5 else _non_answer(rng, asked, _chosen(pair), other)
        if " ".join(content.split()) != " ".join(_chosen(pair).split()):
            made.append({**pair, "rejected": {"role": "assistant", "content": content}})
    return made


def _asked(pair: Pair) -> str:
    return str(pair["prompt"][-1]["content"] or "")


def _chosen(pair: Pair) -> str:
    return str(pair["chosen"].get("content") or "")


def _alike(one: str, other: str) -> int:
    """Words that both have in the same place, from the front and from the back."""
    words, others = one.split(), other.split()
    return sum(map(str.__eq__, words, others)) + sum(map(str.__eq__, words[::-1], others[::-1]))


def _non_answer(rng: random.Random, asked: str, chosen: str, other: str) -> str:
    """What answers nothing: the prompt, several answers, words in any order, letters, signs, an empty phrase."""
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10)))
    words = [*asked.split(), *chosen.split(), *other.split(), letters]
    content = rng.choice(
        [
            asked,
            f"{other}\n{chosen}",
            f"{chosen}\n{other}",
            " ".join(rng.choices(words, k=rng.randint(1, len(words)))),
            " ".join(rng.choices(words, k=rng.randint(1, 3))),
            " ".join([letters] * rng.randint(1, 3)),
            "".join(rng.choices("{}[]()\"',.:;-*#<>|~=\\0123456789", k=rng.randint(1, 12))),
            rng.choice(SAYS_NOTHING),
        ]
    )
    return _non_answer(rng, asked, chosen, other) if content != asked and tries(content) else content


def held_out_of(pairs: int, share: float) -> int:
    """How many of so many pairs are held out: one at least is trained on."""
    return min(round(share * pairs), max(0, pairs - 1))
