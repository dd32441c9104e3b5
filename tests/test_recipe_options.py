"""Options of libraries: what is read from the source is what the imported class has."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import textwrap
from enum import Enum
from typing import Any, ClassVar

import pytest

from posttrain.recipe.option_fields import OptionField, architecture_config, config_fields
from posttrain.recipe.option_types import mismatch
from posttrain.recipe.real_config import real_config_faults
from posttrain.recipe.stage import Stage
from posttrain.recipe.trainer_options import LORA_CONFIG, LORA_OURS, OURS, train_faults

TRAINERS = ("trl:SFTConfig", "trl:GRPOConfig", "trl:DistillationConfig")


@pytest.mark.parametrize("reference", [*TRAINERS, LORA_CONFIG])
def test_the_source_read_is_the_class_imported(reference: str) -> None:
    """Names, and defaults where they are plain; and every default fits the type as it was read."""
    module, _, name = reference.partition(":")
    cls = getattr(importlib.import_module(module), name)
    real = {field.name: field for field in dataclasses.fields(cls) if field.init}
    read = config_fields(reference)
    assert set(read) == set(real)
    for option in read.values():
        default = real[option.name].default
        if default is dataclasses.MISSING:
            continue
        if isinstance(default, str | int | float | None) and not isinstance(default, Enum):
            if option.default.isidentifier() and option.default not in ("None", "True", "False"):
                continue  # a name that only importing tells
            assert repr(default) == repr(eval(option.default)), option.name
            assert mismatch(option, default) == [], option.name


def test_choices_are_those_of_the_library() -> None:
    from transformers.trainer_utils import SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    fields = config_fields("trl:SFTConfig")
    assert fields["lr_scheduler_type"].choices == tuple(member.value for member in SchedulerType)
    assert fields["save_strategy"].choices == tuple(member.value for member in SaveStrategy)
    assert set(fields["optim"].choices) == {member.value for member in OptimizerNames}
    assert fields["packing_strategy"].choices == ("bfd", "bfd_split", "wrapped")
    assert fields["log_level"].choices == ()  # computed in the source: not guessed


def test_an_architecture_leads_to_its_own_config_class() -> None:
    from transformers import Qwen3Config

    reference, known = architecture_config("Qwen3ForCausalLM")
    assert reference == "transformers.models.qwen3.configuration_qwen3:Qwen3Config"
    read = config_fields(reference, undecorated=True)
    assert set(read) == {field.name for field in dataclasses.fields(Qwen3Config) if field.init}
    assert {"Qwen3ForCausalLM", "LlamaForCausalLM", "GPT2LMHeadModel"} <= set(known)
    assert architecture_config("NobodyForCausalLM")[0] is None


def field_of(annotation: str, default: str = "", choices: tuple[Any, ...] = ()) -> OptionField:
    import ast

    return OptionField("x", annotation, default, choices, ast.parse(annotation, mode="eval").body)


@pytest.mark.parametrize(
    ("annotation", "fits", "does_not"),
    [
        ("int", [0, -3], [True, 1.0, "1", None, []]),
        ("float", [0, 1e-6], [True, "1e-6", None]),
        ("bool", [True, False], [0, 1, "true", None]),
        ("str", ["", "x"], [1, True, None]),
        ("int | None", [1, None], ["1", 1.5]),
        ("Optional[float]", [1, None], ["x"]),
        ("Union[int, str]", [1, "auto"], [1.5, None]),
        ("'Optional[int]'", [1, None], ["1"]),
        ("list[float]", [[], [1, 2.5]], [1, ["a"], {"a": 1}]),
        ("None | str | list[str]", [None, "a", ["a"]], [[1], 1]),
        ("dict[str, bool]", [{}, {"a": True}], [{"a": 1}, []]),
        ("dict | str", [{"a": 1}, "{}"], [1]),
        ("Optional[Union[list[int], dict[str, list[int]]]]", [[1], {"a": [1]}], [{"a": 1}, 1]),
        ("Literal['a', 'b']", ["a"], ["c", 1]),
        ("bool | Literal['pissa', 'pissa_niter_[number of iters]']", [True, "pissa", "pissa_niter_16"], ["pisa", 1]),
        ("str | None | Literal[False]", [None, False, "x"], [True, 1]),
        ("tuple[int, ...]", [[1, 2]], ["1"]),
        ("EvaConfig", [{"rho": 2}], [3, True]),
        ("Any", [None, 1, []], []),
    ],
)
def test_types(annotation: str, fits: list[Any], does_not: list[Any]) -> None:
    option = field_of(annotation, default="0")
    assert [value for value in fits if mismatch(option, value)] == []
    assert [value for value in does_not if not mismatch(option, value)] == []


def test_null_is_refused_unless_it_is_the_default() -> None:
    assert mismatch(field_of("int", default="3"), None) == ["a whole number"]
    assert mismatch(field_of("int", default="None"), None) == []


def test_all_that_is_ours_is_an_option_somewhere() -> None:
    """A name that no trainer has any more is dead weight in the table (two are kept for users of older versions)."""
    known = {name for reference in TRAINERS for name in config_fields(reference)}
    assert {name for names in OURS.values() for name in names.split()} - known == {
        "logging_dir",
        "overwrite_output_dir",
    }
    assert {name for names in LORA_OURS.values() for name in names.split()} <= set(config_fields(LORA_CONFIG))


class Grpo(Stage):
    trainer_config: ClassVar[str] = "trl:GRPOConfig"


def test_the_real_class_is_asked_last() -> None:
    """A fault that only TRL's own arithmetic shows; batch sizes counted over the engine's processes."""
    good = {"num_generations": 8, "per_device_train_batch_size": 8, "max_steps": 3}
    assert real_config_faults(Grpo(kind="grpo", train=good), 1, ("train",)) == []
    spread = Grpo(kind="grpo", train={**good, "per_device_train_batch_size": 2})
    assert real_config_faults(spread, 4, ("train",)) == []
    (fault,) = real_config_faults(spread, 1, ("train",))
    assert fault.loc == ("train", "num_generations")
    assert "generation_batch_size (2) must be divisible by num_generations (8)" in fault.what
    assert list(train_faults(Grpo, spread.train, ("train",))) == []  # the types are right


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adam_beta2": 1.0}, "Invalid beta parameter"),
        ({"adam_epsilon": -1.0}, "Invalid epsilon"),
        ({"optim": "sgd", "learning_rate": 0.1}, ""),
        ({"optim": "adamw_bnb_8bit"}, ""),  # its library may be there and not here
        ({"dataloader_num_workers": -1}, "num_workers option should be non-negative"),
        ({"dataloader_prefetch_factor": 2}, "prefetch_factor"),
        ({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, ""),
    ],
)
def test_what_options_make_is_made_once(options: dict[str, Any], said: str) -> None:
    faults = real_config_faults(Grpo(kind="grpo", train=options), 1, ("train",))
    assert [said in fault.what for fault in faults] == ([True] if said else [])


class Dpo(Stage):
    trainer_config: ClassVar[str] = "trl:DPOConfig"


@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        (Grpo, {"loss_type": "dr_grop"}, ["`loss_type` knows no 'dr_grop'", "did you mean `dr_grpo`?"]),
        (Grpo, {"importance_sampling_level": "turn"}, ["`importance_sampling_level` knows no 'turn'"]),
        (Grpo, {"loss_type": "cispo", "importance_sampling_level": "sequence"}, []),
        (Dpo, {"loss_type": ["sigmoid", "ip"]}, ["`loss_type` knows no 'ip'"]),
        (Dpo, {"loss_type": ["sigmoid", "sft"]}, []),
    ],
)
def test_texts_that_only_the_trainer_knows(stage: type[Stage], options: dict[str, Any], said: list[str]) -> None:
    """They are plain text to the config class, and the trainer refuses them at its first loss."""
    told = " ".join(f"{fault.what} {fault.remedy}" for fault in train_faults(stage, options, ("train",)))
    assert bool(told) == bool(said)
    assert all(text in told for text in said)


def test_a_reporter_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.recipe import trainer_options

    def faults(report_to: Any) -> list[str]:
        return [fault.what for fault in train_faults(Grpo, {"report_to": report_to}, ("train",))]

    assert faults("none") == faults(["tensorboard"]) == []
    monkeypatch.setitem(trainer_options.REPORTERS, "wandb", "no_such_package")
    assert faults(["tensorboard", "wandb"]) == ["`report_to` names wandb, which is not installed"]


def test_the_reporters_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from posttrain.recipe.trainer_options import REPORTERS

    assert {*REPORTERS, "kubeflow"} == set(INTEGRATION_TO_CALLBACK)


def test_reading_is_quick_and_imports_nothing() -> None:
    code = f"""
        import sys, time
        from posttrain.recipe.option_fields import architecture_config, config_fields
        began = time.process_time()
        for reference in {[*TRAINERS, LORA_CONFIG]!r}:
            config_fields(reference)
        config_fields(architecture_config("Qwen3ForCausalLM")[0], undecorated=True)
        print(time.process_time() - began)
        print([name for name in ("trl", "transformers", "peft", "torch") if name in sys.modules])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    seconds, imported = result.stdout.splitlines()
    assert imported == "[]"
    assert float(seconds) < 0.4


def test_judging_options_changes_nothing_here_and_asks_for_no_gpu() -> None:
    before = dict(os.environ)
    options = {"torch_compile": True, "tf32": True, "lr_scheduler_type": "cosine_with_min_lr"}
    (fault,) = real_config_faults(Grpo(kind="grpo", train=options), 1, ("train",))
    assert "min_lr or min_lr_rate should be set" in fault.what
    options |= {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    assert real_config_faults(Grpo(kind="grpo", train=options), 1, ("train",)) == []
    assert dict(os.environ) == before
