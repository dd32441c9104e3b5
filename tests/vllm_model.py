"""A tiny Qwen3 with random weights, for engines that are run for real. It wanders: any id may come, and does."""

from __future__ import annotations

from pathlib import Path

TEXTS = [
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.",
    "Wait, let me think about this again. The answer is 12. So we stop here, and that is all there is to say.",
    "What is 7 plus 5? Enough of this; the user waits. 1 2 3 4 5 6 7 8 9 0 assistant system user think",
]


def write_tiny_model(
    directory: Path, *, family: str = "qwen3", spread: float = 0.6, positions: int = 2048, layers: int = 1
) -> Path:
    """Write the model's directory as `posttrain run` would, and return it.

    Args:
        spread: standard deviation of the weights: the larger, the more a token depends on those before it.
        positions: the longest sequence.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from posttrain.model.policy import build_policy, load_tokenizer
    from posttrain.recipe.schema import ModelSpec, TrainedTokenizer
    from posttrain.templates.families import get_family

    shape = {
        "hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "intermediate_size": 128, "max_position_embeddings": positions, "tie_word_embeddings": True,
    }  # fmt: skip
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM", config=shape, tokenizer=TrainedTokenizer(train_on=["texts"], vocab_size=480)
    )
    build_policy(spec, get_family(family), directory, seed=0, texts=TEXTS * 20)
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "norm" not in name:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * spread
    vocabulary = load_tokenizer(directory).get_vocab()
    markers = [vocabulary[marker] for marker in ("<think>", "</think>", "<|im_end|>")]
    tensors["model.embed_tokens.weight"][markers] *= 1.6  # their scores vary more, so they come more often
    save_file(tensors, weights, metadata={"format": "pt"})
    return directory
