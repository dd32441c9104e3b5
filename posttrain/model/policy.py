"""The policy as a directory: built, loaded and saved in one place, whoever trains or scores it.

A policy's directory is what `transformers` and `vllm serve` load as they are: weights, configuration, tokenizer, chat
template, generation configuration (the family's sampling for its default mode; the other mode's beside it under
`sampling_per_mode`), and a model card that says where it came from.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.locations import looks_local
from posttrain.errors import PosttrainError, Problem
from posttrain.model.artifacts import read_json, write_json, write_text
from posttrain.templates.families import Family, get_family
from posttrain.templates.render import template_text

if TYPE_CHECKING:
    from posttrain.recipe.schema import Adapter, ModelSpec, TemplateSpec, TrainedTokenizer

log = logging.getLogger(__name__)

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words, single digits, punctuation and white space, as Qwen's own tokenizer splits them."""


def family_of(template: TemplateSpec) -> Family:
    """The recipe's template family, with the recipe's own stop-thinking text if it gives one."""
    family = get_family(template.family)
    if template.stop_thinking is not None:
        family = dataclasses.replace(family, stop_thinking=template.stop_thinking)
    return family


def _is_local(path: str) -> bool:
    return looks_local(path, Path())


def load_tokenizer(path: Path | str, *, revision: str | None = None) -> Any:
    """The tokenizer of a policy's directory, or of a hub id at a revision: padding on the left, a padding token set."""
    from transformers import AutoTokenizer

    options = {"revision": revision} if revision else {}
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=_is_local(str(path)), **options)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: Path | str, *, dtype: str = "float32", attention: str = "sdpa") -> Any:
    """The model of a policy's directory, in evaluation mode.

    Args:
        dtype: as in torch, or `auto`: the one it is stored in.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        attn_implementation=attention,
        local_files_only=_is_local(str(path)),
    )
    return model.eval()


def placed(model: Any, *, cpu: bool = False) -> Any:
    """The model where it computes: on the accelerator if there is one, unless `cpu` keeps it here."""
    import torch

    if cpu or not torch.accelerator.is_available():
        return model
    return model.to(torch.accelerator.current_accelerator())


def train_tokenizer(spec: TrainedTokenizer, texts: Iterable[str], family: Family) -> Any:
    """A byte-level BPE tokenizer with the family's special tokens and think markers, trained on `texts`.

    `spec.split` says what is merged at most: what its pattern does not match in one piece stays apart.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(spec.split or QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [family.end_of_text, family.message_start, family.message_end]
    roles = [f"{role}\n" for role in ("system", "user", "assistant")]
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size - 2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*roles * 50, *texts], trainer)
    tokenizer.add_tokens([family.think_open, family.think_close])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=family.message_end,
        pad_token=family.end_of_text,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_policy(spec: ModelSpec, family: Family, directory: Path, *, seed: int, texts: Iterable[str] = ()) -> None:
    """Write the directory of a model that the recipe names: fetched, copied, or built from its configuration.

    Args:
        texts: what a trained tokenizer reads; unused otherwise.

    Raises:
        PosttrainError: the path, the architecture or its configuration is wrong.
    """
    import torch
    import transformers

    try:
        tokenizer = _tokenizer_of(spec, family, texts)
    except PosttrainError:
        raise
    except Exception as error:  # whatever transformers makes of a file that is none of a tokenizer's
        what = f"the tokenizer of {spec.path or spec.architecture!r} could not be loaded: {type(error).__name__}: "
        remedy = "check `model.path` and `model.tokenizer`"
        raise PosttrainError(Problem(what + _first_line(error), remedy=remedy)) from error
    if spec.path is not None:
        model = _load_named(spec)
    else:
        cls = getattr(transformers, str(spec.architecture), None)
        if cls is None or not hasattr(cls, "config_class"):
            raise PosttrainError(
                Problem(
                    f"transformers {transformers.__version__} has no architecture {spec.architecture!r}",
                    remedy="write the model class's name, as Qwen3ForCausalLM",
                )
            )
        # Rounded up to 32: matrix kernels like it, and the flagship's own vocabulary is padded as well.
        sizes = {"vocab_size": -(-len(tokenizer) // 32) * 32}
        config = cls.config_class(**{**sizes, **spec.config})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(config)
    grown = _add_think_tokens(model, tokenizer, family)
    model.to(getattr(torch, spec.dtype))
    card = {"origin": spec.path or f"{spec.architecture} from its configuration", "added_tokens": grown}
    save_policy(model, tokenizer, family, directory, card=card)


def _tokenizer_of(spec: ModelSpec, family: Family, texts: Iterable[str]) -> Any:
    from posttrain.recipe.schema import TrainedTokenizer

    if isinstance(spec.tokenizer, TrainedTokenizer):
        return train_tokenizer(spec.tokenizer, texts, family)
    if spec.tokenizer is None and spec.gguf_file:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(spec.path), gguf_file=spec.gguf_file)
    if spec.tokenizer is None:
        return load_tokenizer(str(spec.path), revision=spec.revision)
    return load_tokenizer(spec.tokenizer)


def _load_named(spec: ModelSpec) -> Any:
    from transformers import AutoModelForCausalLM

    path = str(Path(str(spec.path)).expanduser()) if _is_local(str(spec.path)) else str(spec.path)
    options: dict[str, Any] = {"local_files_only": _is_local(path), "attn_implementation": spec.attention}
    if spec.revision:
        options["revision"] = spec.revision
    if spec.gguf_file:
        options["gguf_file"] = spec.gguf_file
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise PosttrainError(
            Problem(f"the model at {path!r} could not be loaded: {_first_line(error)}", remedy="check `model.path`")
        ) from error
    differs = {
        key: getattr(model.config, key, None)
        for key, value in spec.config.items()
        if getattr(model.config, key, None) != value
    }
    if differs:
        raise PosttrainError(
            Problem(
                f"the model at {path!r} is not of the shape that the recipe gives: {differs}",
                remedy="correct `model.config`, or leave it out: the model brings its own",
            )
        )
    return dequantised(model) if spec.gguf_file else model


def dequantised(model: Any) -> Any:
    """A model that was read from a GGUF file, as one that can be saved: it holds plain tensors, and says so."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _add_think_tokens(model: Any, tokenizer: Any, family: Family) -> list[str]:
    """Give a model the family's markers it lacks, and embeddings for them; say so."""
    missing = [token for token in family.markers if len(tokenizer(token, add_special_tokens=False).input_ids) != 1]
    if missing:
        tokenizer.add_tokens(missing)
        log.info("added to the vocabulary: %s", " ".join(missing))
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=32)
        log.info("embeddings resized to %d entries", model.get_input_embeddings().num_embeddings)
    return missing


def added_tokens(directory: Path | str) -> list[str]:
    """The tokens that the model at the root of a policy's chain lacked and was given, as its directory says."""
    record = read_json(Path(directory) / "posttrain.json") or {}
    return list(record.get("added_tokens", []))


def adapter_config(adapter: Adapter, model: Any, tokenizer: Any, added: Sequence[str]) -> Any:
    """The adapter as PEFT's configuration. Tokens that the model was given are trained whole, row by row.

    Low-rank matrices beside the layers leave the embeddings frozen: a new marker's row would keep its random start,
    and the model could not tell it from its neighbour. Where the recipe trains embeddings itself, it is left to it.

    Args:
        added: the tokens (`added_tokens`); empty for a model that had all of them.
    """
    from peft import LoraConfig

    options = {"task_type": "CAUSAL_LM", **adapter.lora}
    names = {name: module for name, module in model.named_modules() if isinstance(name, str)}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [name.rpartition(".")[2] for name, module in names.items() if module is inputs]
    if not model.config.tie_word_embeddings:
        layers += [name.rpartition(".")[2] for name, module in names.items() if module is outputs]
    given = options.get("trainable_token_indices") is not None
    saved = set(options.get("modules_to_save") or []) | _listed(options.get("target_modules"))
    if added and not given and not saved & set(layers):
        ids = tokenizer.convert_tokens_to_ids(list(added))
        options["trainable_token_indices"] = {layer: ids for layer in layers}
        log.info("trained with the adapter, whole: %s", " ".join(added))
    return LoraConfig(**options)


def mend_trained_tokens(model: Any) -> None:
    """Give PEFT's wrapper of an output layer the `bias` that its layer has: none.

    The wrapper (peft 0.21) passes on `weight` alone, with the trained rows in it; TRL's fused output layer reads both.
    """
    from peft.utils.other import TrainableTokensWrapper

    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper) and getattr(module.original_module, "bias", None) is None:
            module.bias = None


def _listed(modules: Any) -> set[str]:
    return {modules} if isinstance(modules, str) else set(modules or [])


def save_policy(model: Any, tokenizer: Any, family: Family, directory: Path, *, card: dict[str, Any]) -> None:
    """Write a policy's directory. The caller seals it (`artifacts.seal`) when all of it is there."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.eos_token_id = tokenizer.convert_tokens_to_ids(family.message_end)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = None
    model.config.use_cache = True
    model.generation_config = generation_config(tokenizer, family)
    model.save_pretrained(str(directory))
    dress_policy(directory, tokenizer, family, card=card)


def dress_policy(directory: Path, tokenizer: Any, family: Family, *, card: dict[str, Any]) -> None:
    """Write what stands beside the weights: tokenizer, chat template, generation configuration, model card."""
    tokenizer.chat_template = template_text(family)
    tokenizer.save_pretrained(str(directory))
    generation_config(tokenizer, family).save_pretrained(str(directory))
    write_text(directory / "README.md", _model_card(card))
    write_json(directory / "posttrain.json", {"family": family.name, "stop_thinking": family.stop_thinking, **card})


def generation_config(tokenizer: Any, family: Family) -> Any:
    """The family's sampling for its default mode; every mode's under `sampling_per_mode` (readers ignore it)."""
    from transformers import GenerationConfig

    sampling = family.sampling[family.default_mode]
    ends = [tokenizer.convert_tokens_to_ids(family.message_end)]
    if family.end_of_text in tokenizer.get_vocab():
        ends.append(tokenizer.convert_tokens_to_ids(family.end_of_text))
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        eos_token_id=sorted(set(ends)),
        pad_token_id=tokenizer.pad_token_id,
        sampling_per_mode={mode: dataclasses.asdict(family.sampling[mode]) for mode in family.modes},
    )


def _model_card(card: dict[str, Any]) -> str:
    lines = ["---", "library_name: transformers", "tags: [posttrain]", "---", "", "# Model card", ""]
    for key, value in card.items():
        shown = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
        lines.append(f"- **{key.replace('_', ' ')}**: {shown}")
    return "\n".join(lines) + "\n"
