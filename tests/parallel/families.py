"""A tiny recipe of each family, and its losses in plain torch: what every layout has to repeat."""

from pathlib import Path
from typing import Any

from scaling.family import FAMILIES
from scaling.recipe import EMBEDDED_IMAGES, Recipe
from scaling.shape import Shape
from tests.ranks import SOAK
from tests.training.runs import tiny_recipe

# `make soak` trains every family in every layout for ten steps; without it each in one or a few, for fewer.
NUM_STEPS = 10 if SOAK else 6

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


def model_of(family: str, **changes: Any) -> dict[str, Any]:
    """The dimensions of a tiny model, as a recipe spells them."""
    return {**_SIZES, "family": family, **_MORE.get(family, {}), **changes}


def shape_of(family: str, **changes: Any) -> Shape:
    return Shape(**model_of(family, **changes))


def recipe_of(family: str, folder: Path, **changes: Any) -> Recipe:
    """Eight samples a step, in fp32, clipped; `changes` are fields of the recipe."""
    fields: dict[str, Any] = {"model": model_of(family), "task": FAMILIES[family].task}
    if family == "vit":  # 16 patches and the class token
        fields["data"] = {"corpus": [EMBEDDED_IMAGES], "seq_length": 17, "validation_fraction": 0.01}
    return tiny_recipe(folder, **{**fields, **changes})
