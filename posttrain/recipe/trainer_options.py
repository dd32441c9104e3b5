"""The options of libraries in a recipe, checked against the classes that take them: `train:`, `lora:`, `config:`.

They are not declared again here: names, types and choices are read from the installed library's own source
(`option_fields.py`). What stands here is only what the product decides itself, and why.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from posttrain.recipe.option_fields import (
    OptionField,
    architecture_config,
    config_fields,
    model_type_config,
    trainers_choices,
)
from posttrain.recipe.option_types import choices_of, mismatch
from posttrain.recipe.stage import Fault, Stage
from posttrain.recipe.words import Loc, describe, did_you_mean, either, mend, nearest

OURS = {
    "where files go is the run's: RUN/stages/STAGE": "output_dir logging_dir overwrite_output_dir",
    "the same command resumes by itself": "resume_from_checkpoint",
    "a stage resumed from such a checkpoint would not end as an uninterrupted one": "ignore_data_skip save_only_model",
    "every stage's seed comes from the recipe's `seed:`": "seed data_seed",
    "`engine:` says where and on how many processes a trainer runs": (
        "use_cpu local_rank deepspeed fsdp fsdp_config accelerator_config parallelism_config ddp_backend"
    ),
    "`evaluation:` scores every stage in every mode; `evaluate_every` draws the curve": (
        "do_eval do_predict eval_strategy eval_steps eval_on_start eval_delay "
        "load_best_model_at_end metric_for_best_model"
    ),
    "a stage trains; nothing else is asked of its trainer": "do_train",
    "`template:` names the chat template": "chat_template_path",
    "mode and thinking budget are chosen for each sample, not for a run": "chat_template_kwargs",
    "`model:` names the model and how it is loaded": "model_init_kwargs trust_remote_code",
    "the stage's `teacher:` names the teacher": (
        "teacher_model_name_or_path teacher_model_revision teacher_model_init_kwargs"
    ),
    "the stage's data decides its columns": "remove_unused_columns dataset_text_field dataset_kwargs",
    "a secret would be written into the run: set the variable HF_TOKEN": "hub_token",
}
LORA_OURS = {
    "`model:` names the model": "base_model_name_or_path revision",
    "the adapter is a LoRA that is trained": "peft_type inference_mode auto_mapping peft_version",
}
AT_LEAST = {
    1: (
        "per_device_train_batch_size gradient_accumulation_steps steps_per_generation num_iterations r max_length "
        "max_completion_length hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim vocab_size max_position_embeddings"
    ),
    0: "learning_rate num_train_epochs weight_decay max_grad_norm temperature top_p beta epsilon",
}
LOWEST = {name: least for least, names in AT_LEAST.items() for name in names.split()}
# More is a slip: steps that no float counts, or a network that takes minutes to be laid out for its plan.
HIGHEST = {"num_train_epochs": 1_000_000, "num_hidden_layers": 2_000, "top_p": 1}
HELD_BY_THE_TRAINER = ("loss_type", "importance_sampling_level")  # plain text to the config, refused at the first loss
ENDLESS = ("max_grad_norm",)  # infinite: nothing is clipped
LORA_CONFIG = "peft.tuners.lora.config:LoraConfig"
# Taken by transformers' base configuration through keyword arguments, and so among no class's fields.
CONFIG_KEYWORDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")
REPORTERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "comet_ml": "comet_ml",
    "clearml": "clearml",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "dvclive": "dvclive",
    "codecarbon": "codecarbon",
    "azure_ml": "azureml",
    "dagshub": "dagshub",
    "flyte": "flytekit",
}


def option_names(config: str) -> Collection[str]:
    """The options of a config class (`module:Class`); none where it cannot be read."""
    try:
        return config_fields(config) if config else ()
    except LookupError:
        return ()


def train_faults(stage: type[Stage], train: Mapping[str, Any], loc: Loc) -> Iterator[Fault]:
    """What is wrong with a stage's `train:`. `loc` is its place."""
    if not stage.trainer_config:
        return
    ours = {name: reason for reason, names in OURS.items() for name in names.split()} | dict(stage.owned_options)
    beside = [name for name in stage.model_fields if name in train]
    for fault in option_faults(stage.trainer_config, train, loc, ours=ours):
        if fault.loc[-1] in beside and fault.what.startswith("unknown"):
            yield Fault(fault.loc, fault.what, remedy="it is an option of the stage: write it beside `train:`")
        elif fault.loc[-1] == "optim" and train.get("optim") == "muon":
            yield Fault(
                fault.loc, fault.what, remedy="write `optimizer: {name: muon, learning_rate: ...}` beside `train:`"
            )
        else:
            yield fault
    for name in HELD_BY_THE_TRAINER:
        if name in train and name not in ours:
            yield from _choice_faults(stage.trainer_config, name, train[name], loc)
    yield from _reporter_faults(train.get("report_to"), (*loc, "report_to"))


def _choice_faults(config: str, name: str, value: Any, loc: Loc) -> Iterator[Fault]:
    known = trainers_choices(config, name)
    for text in value if isinstance(value, list) else [value]:
        if known and isinstance(text, str) and text not in known:
            yield Fault((*loc, name), f"`{name}` knows no {text!r}", remedy=did_you_mean(text, known))


def lora_faults(lora: Mapping[str, Any], loc: Loc) -> Iterator[Fault]:
    """What is wrong with an adapter's `lora:`."""
    ours = {name: reason for reason, names in LORA_OURS.items() for name in names.split()}
    yield from option_faults(LORA_CONFIG, lora, loc, ours=ours)
    targets = lora.get("target_modules")
    if "lm_head" in (targets if isinstance(targets, list) else [targets]):
        what = "an adapter on the output layer would not be trained"
        why = "log-probabilities are made from that layer's weights, not by calling it"
        yield Fault(
            (*loc, "target_modules"), what, why, "leave lm_head out, or train it whole: modules_to_save: [lm_head]"
        )


def architecture_faults(model: Mapping[str, Any], loc: Loc) -> Iterator[Fault]:
    """What is wrong with a model's `architecture:` and its `config:`. transformers itself takes any key, silently.

    A model with a `path` may have a `config` too, its shape, to plan by: it names its class by `model_type`.
    """
    architecture, config = model.get("architecture"), model.get("config")
    named = config.get("model_type") if isinstance(config, dict) else None
    if isinstance(architecture, str):
        reference, known = architecture_config(architecture)
        if reference is None and known and architecture not in known:
            what = f"transformers has no causal language model `{architecture}`"
            yield Fault((*loc, "architecture"), what, remedy=did_you_mean(architecture, known))
    elif isinstance(named, str):
        reference, known = model_type_config(named)
        if known and named not in known:
            what = f"transformers has no model type `{named}`"
            yield Fault((*loc, "config", "model_type"), what, remedy=did_you_mean(named, known))
    else:
        if isinstance(config, dict) and config and "path" in model:
            what = "the shape of a model with a `path` names no class"
            yield Fault((*loc, "config"), what, remedy="give its `model_type:`, as qwen3")
        return
    if reference is not None and isinstance(config, dict):
        more = CONFIG_KEYWORDS if isinstance(architecture, str) else (*CONFIG_KEYWORDS, "model_type")
        yield from option_faults(reference, config, (*loc, "config"), undecorated=True, more=more)


def option_faults(
    config: str,
    options: Mapping[str, Any],
    loc: Loc,
    *,
    ours: Mapping[str, str] | None = None,
    undecorated: bool = False,
    more: Collection[str] = (),
) -> Iterator[Fault]:
    """What is wrong with options of a config class.

    Args:
        config: `module:Class`.
        loc: the place of the options in the recipe.
        ours: options that the product sets itself, with the reason.
        undecorated: as `config_fields` has it.
        more: names that the class takes besides its fields.
    """
    try:
        fields = config_fields(config, undecorated=undecorated)
    except LookupError as error:
        yield Fault(loc, f"these options cannot be checked: {error}", remedy="reinstall the package")
        return
    ours = ours or {}
    for name, value in options.items():
        here = (*loc, name)
        if name in ours:
            yield Fault(here, f"`{name}` is not yours to set under `{loc[-1]}:`", why=ours[name], remedy="remove it")
        elif name in fields:
            yield from _value_faults(fields[name], value, here)
        elif name not in more:
            allowed = [field for field in fields if field not in ours]
            class_name = config.partition(":")[2]
            yield Fault(
                here, f"unknown option `{name}`: {class_name} has none", remedy=did_you_mean(str(name), allowed)
            )


def _value_faults(option: OptionField, value: Any, loc: Loc) -> Iterator[Fault]:
    expected = mismatch(option, value)
    if expected:
        remedy = next((text for word in expected if (text := mend(value, word))), "")
        if not remedy and value is None:
            remedy = f"leave it out for the default ({option.default})" if option.default else ""
        if not remedy and isinstance(value, str) and (near := nearest(value, choices_of(option))):
            remedy = f"did you mean `{near}`?"
        yield Fault(loc, f"`{option.name}` must be {either(expected)}, not {describe(value)}", remedy=remedy)
    elif isinstance(value, int | float) and (bound := _bound(option.name, value)):
        yield Fault(loc, f"`{option.name}` must be {bound}, not {value}")


def _bound(name: str, value: float) -> str:
    """What a number has to be, where it is not: libraries take any, and train on nothing, or on nonsense."""
    if math.isnan(value) or (math.isinf(value) and name not in ENDLESS):
        return "a finite number"
    if value < LOWEST.get(name, value):
        return f"at least {LOWEST[name]}"
    if value > HIGHEST.get(name, value):
        return f"at most {HIGHEST[name]:,}"
    if name == "max_steps" and value < 1 and value != -1:
        return "at least 1, or -1 for `num_train_epochs`"
    return ""


def _reporter_faults(report_to: Any, loc: Loc) -> Iterator[Fault]:
    """Reporters that are unknown or not installed: a trainer finds out only after the data are built."""
    names = report_to if isinstance(report_to, list) else [report_to]
    for name in names:
        if not isinstance(name, str) or name in ("none", "all", "kubeflow"):
            continue
        if name not in REPORTERS:
            yield Fault(loc, f"`report_to` knows no {name!r}", remedy=did_you_mean(name, [*REPORTERS, "none", "all"]))
        elif find_spec(REPORTERS[name]) is None:
            remedy = f"install {REPORTERS[name]}, or leave it out"
            yield Fault(loc, f"`report_to` names {name}, which is not installed", remedy=remedy)
