"""What a price depends on beside the strategy and the cluster: a recipe, or somebody else's published run."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from scaling.hardware import MatmulPrecision, Precision
from scaling.optimizers import Name
from scaling.recipe import Recipe
from scaling.shape import Shape

Attention = Literal["flash", "eager"]
AdapterTarget = Literal["query", "key", "value", "output", "mlp"]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Low-rank adapters beside frozen matrices (LoRA, Hu et al. 2021): of each target, r (inputs + outputs) train.

    Every expert of a mixture has its own.
    """

    rank: int
    targets: frozenset[AdapterTarget]
    dropout: float = 0.0

    def params(self, shape: Shape) -> int:
        """Trainable parameters in a model of `shape`."""
        D, F = shape.hidden_size, shape.intermediate_size
        outputs = {"query": shape.query_size, "key": shape.key_value_size, "value": shape.key_value_size}
        sides = sum(D + size for name, size in outputs.items() if name in self.targets)
        sides += (shape.query_size + D) * ("output" in self.targets)
        sides += (D + F) * (3 if shape.gated_mlp else 2) * shape.num_experts * ("mlp" in self.targets)
        return shape.num_layers * self.rank * sides


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training job. `predicted_fraction` is the share of positions whose logits are computed; of an
    encoder-decoder, the decoder's tokens for each of the encoder's.

    `attention` is "eager" where the T x T scores are kept, "flash" where they are made again tile by tile.
    `matmul_precision` is what the layers' matmuls run in where that is narrower than `precision`.
    `fused_loss` is True where the loss never holds all logits (Liger's fused linear cross-entropy), `tiled_mlp` where
    an MLP's tensors exist for a tile of the sequence at a time (Snowflake's ALST), `step_in_backward` where each
    parameter is updated as soon as its gradient is there. `adapter`: all else is frozen. `on_cpu`: no kernel drops what
    it makes, so that dropout keeps noise as wide as that, and attention its scores.
    """

    shape: Shape
    seq_length: int
    precision: Precision
    matmul_precision: MatmulPrecision | None = None
    optimizer: Name = "adamw"
    adapter: Adapter | None = None
    dropout: float = 0.0
    on_cpu: bool = False
    predicted_fraction: float = 1.0
    causal: bool = True
    attention: Attention = "flash"
    fused_loss: bool = False
    tiled_mlp: bool = False
    step_in_backward: bool = False
    num_steps: int = 1

    @cached_property
    def flops_per_token(self) -> float:
        """Model FLOPs to train on one token: the shape's, less a frozen matrix's own gradient, 2 of 6."""
        matrices, scores, head = self.flops_by_part
        return (matrices + head) * (2 / 3 if self.adapter else 1) + scores

    @cached_property
    def flops_by_part(self) -> tuple[float, float, float]:
        """(the layers' matrices, attention's scores and values, the head): what a token costs with nothing frozen."""
        flops = partial(self.shape.flops_per_token, target_fraction=self.predicted_fraction)
        matrices = flops(0, predicted_fraction=0.0)
        scores = flops(self.seq_length, predicted_fraction=0.0) - matrices
        return matrices, scores, flops(0, predicted_fraction=self.predicted_fraction) - matrices

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
