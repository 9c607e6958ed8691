"""What a price depends on beside the strategy and the cluster: a recipe, or somebody else's published run."""

from dataclasses import dataclass
from typing import Literal

from scaling.hardware import Precision
from scaling.recipe import Recipe
from scaling.shape import Shape

Attention = Literal["flash", "eager"]
Optimizer = Literal["adamw", "adamw8bit", "adafactor"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training job. `predicted_fraction` is the share of positions whose logits are computed.

    `attention` is "eager" where the T x T scores are kept, "flash" where they are made again tile by tile.
    `fused_loss` is True where the loss never holds all logits (Liger's fused linear cross-entropy).
    """

    shape: Shape
    seq_length: int
    precision: Precision
    optimizer: Optimizer = "adamw"
    dropout: float = 0.0
    predicted_fraction: float = 1.0
    causal: bool = True
    attention: Attention = "flash"
    fused_loss: bool = False
    num_steps: int = 1

    @classmethod
    def of(cls, recipe: Recipe) -> "Job":
        return cls(
            shape=recipe.shape,
            seq_length=recipe.data.seq_length,
            precision=recipe.precision,
            optimizer=recipe.optimizer.name,
            dropout=recipe.dropout,
            predicted_fraction=recipe.predicted_fraction,
            causal=recipe.task == "causal-lm",
            num_steps=recipe.num_steps,
        )
