"""A model's dimensions, and everything that follows from them: parameters, FLOPs.

Alphabet: B batch, T sequence, D hidden, F intermediate, N heads, V vocabulary, P positions, L layers.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from scaling.errors import InputError

Family = Literal["gpt2", "bert"]
FAMILIES: tuple[Family, ...] = ("gpt2", "bert")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions that fix a Transformer's parameters.

    Families: `gpt2`, a pre-norm decoder with learned positions and a tied head (Radford et al. 2019), also GPT-3's;
    `bert`, a post-norm encoder with a masked-LM head tied to its embedding (Devlin et al. 2018, no pooler).
    Counts equal those of transformers' GPT2LMHeadModel and BertForMaskedLM; tests/test_shape.py compares them.
    """

    name: str
    family: Family
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError("model.family", self.family, f"is not one of {', '.join(FAMILIES)}")
        for field in fields(self)[2:]:
            if getattr(self, field.name) < 1:
                raise InputError(f"model.{field.name}", getattr(self, field.name), "must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                "model.num_attention_heads",
                self.num_attention_heads,
                f"does not divide hidden_size {self.hidden_size}",
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @cached_property
    def layer_matmul_params(self) -> int:
        """Weights of one layer's matrices: query, key, value, output (4 D^2) and the MLP (2 D F)."""
        D, F = self.hidden_size, self.intermediate_size
        return 4 * D * D + 2 * D * F

    @cached_property
    def layer_params(self) -> int:
        """One layer with its biases (4 D + F + D) and two LayerNorms (4 D)."""
        D, F = self.hidden_size, self.intermediate_size
        return self.layer_matmul_params + 4 * D + F + D + 4 * D

    @cached_property
    def params_by_part(self) -> dict[str, int]:
        """Parameters by part; tied weights are counted once, under the embedding."""
        L, D, V, P = self.num_layers, self.hidden_size, self.vocab_size, self.max_position_embeddings
        parts = {"token_embedding": V * D, "position_embedding": P * D, "layers": L * self.layer_params}
        if self.family == "gpt2":
            parts["final_norm"] = 2 * D
        else:
            parts["token_type_embedding"] = 2 * D
            parts["embedding_norm"] = 2 * D
            parts["mlm_head"] = D * D + D + 2 * D + V  # dense, its bias, LayerNorm, the decoder's own bias
        return parts

    @cached_property
    def num_params(self) -> int:
        return sum(self.params_by_part.values())

    @cached_property
    def largest_layer_params(self) -> int:
        """The largest module that ZeRO-3 gathers at once: a layer, or the embedding where that is larger."""
        return max(self.layer_params, self.vocab_size * self.hidden_size)

    def flops_per_token(self, seq_length: int, *, predicted_fraction: float = 1.0) -> float:
        """Model FLOPs to train on one token, forward and backward, without recomputation.

        6 per matmul weight and 12 L D T for attention scores and values, the whole T x T square even under a
        causal mask: the convention of PaLM (Chowdhery et al. 2022, appendix B), so that MFU compares.
        `predicted_fraction` is the share of positions at which the head's logits are computed.
        """
        D, V = self.hidden_size, self.vocab_size
        head = V * D + (D * D if self.family == "bert" else 0)
        matmul = 6 * (self.num_layers * self.layer_matmul_params + predicted_fraction * head)
        attention = 12 * self.num_layers * D * seq_length
        return matmul + attention
