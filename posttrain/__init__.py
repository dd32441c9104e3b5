"""posttrain: one recipe from a base model to a Qwen3-style family of hybrid thinking models."""

__version__ = "0.1.0"
