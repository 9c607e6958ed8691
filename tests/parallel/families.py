"""A tiny recipe of each family, and its losses in plain torch: what every layout has to repeat."""

from pathlib import Path
from typing import Any

from scaling.family import FAMILIES
from scaling.recipe import Recipe
from tests.training.runs import tiny_recipe

# Four layers, so that two pipeline stages have two each; heads and groups of keys that two and four ranks divide.
_SIZES = {
    "name": "tiny", "num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96,
    "vocab_size": 384, "max_position_embeddings": 32,
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tied_embeddings": True},
    "qwen3": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_experts": 4, "experts_per_token": 2},
    "vit": {
        "image_size": 16, "patch_size": 4, "num_channels": 3, "max_position_embeddings": 17, "vocab_size": 10,
    },
}  # fmt: skip


def recipe_of(family: str, folder: Path, **changes: Any) -> Recipe:
    """Eight samples a step, in fp32, clipped; `changes` are fields of the recipe."""
    model = {**_SIZES, "family": family, **_MORE.get(family, {})}
    return tiny_recipe(folder, **{"model": model, "task": FAMILIES[family].task, **changes})
