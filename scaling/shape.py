"""A model's dimensions, and everything that follows from them: parameters, FLOPs.

Alphabet: T sequence, D hidden, F intermediate, N heads, K key-value heads, H head dim, V vocabulary, P positions,
L layers, E experts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scaling.errors import InputError

Family = Literal["gpt2", "bert", "llama"]
FAMILIES: tuple[Family, ...] = ("gpt2", "bert", "llama")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions that fix a Transformer's parameters.

    Families: `gpt2`, a pre-norm decoder with learned positions (Radford et al. 2019), also GPT-3's and Megatron's GPT;
    `bert`, a post-norm encoder with a masked-LM head tied to its embedding (Devlin et al. 2018, no pooler);
    `llama`, a pre-norm decoder with RMSNorm, rotary positions and no biases (Touvron et al. 2023).
    The switches below are the family's own unless given. With `num_experts` every layer's MLP is that many experts of
    `intermediate_size`, of which a router picks `experts_per_token` (Mixtral, Jiang et al. 2024). Counts equal those
    of transformers' classes: tests/test_shape.py compares them.
    """

    name: str
    family: Family
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    num_key_value_heads: int = 0  # 0: as many as heads
    explicit_head_dim: int | None = None  # where it is not hidden_size / heads
    num_experts: int = 1
    experts_per_token: int = 1
    gated_mlp: bool | None = None  # three matrices of D x F instead of two
    tied_embeddings: bool | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError("model.family", self.family, f"is not one of {', '.join(FAMILIES)}")
        for field, value in (
            ("num_key_value_heads", self.num_key_value_heads or self.num_attention_heads),
            ("gated_mlp", self.family == "llama" if self.gated_mlp is None else self.gated_mlp),
            ("tied_embeddings", self.family != "llama" if self.tied_embeddings is None else self.tied_embeddings),
        ):
            object.__setattr__(self, field, value)
        for field in _DIMENSIONS:
            size = getattr(self, field)
            if size is not None and size < 1:
                raise InputError(f"model.{field}", size, "must be at least 1")
        if self.explicit_head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                "model.num_attention_heads",
                self.num_attention_heads,
                f"does not divide hidden_size {self.hidden_size}",
            )
        if self.experts_per_token > self.num_experts:
            raise InputError("model.experts_per_token", self.experts_per_token, f"exceeds {self.num_experts} experts")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                "model.num_key_value_heads",
                self.num_key_value_heads,
                f"does not divide num_attention_heads {self.num_attention_heads}",
            )

    @cached_property
    def head_dim(self) -> int:
        return self.explicit_head_dim or self.hidden_size // self.num_attention_heads

    @cached_property
    def query_size(self) -> int:
        """Elements of one token's queries: N H, which is D unless the head dim is given."""
        return self.num_attention_heads * self.head_dim

    @cached_property
    def key_value_size(self) -> int:
        """Elements of one token's keys, or values: K H, which is D without grouped queries."""
        return self.num_key_value_heads * self.head_dim

    @cached_property
    def attention_matmul_params(self) -> int:
        """Weights of one layer's attention: query and output 2 D N H, key and value 2 D K H."""
        return 2 * self.hidden_size * (self.query_size + self.key_value_size)

    @cached_property
    def expert_params(self) -> int:
        """Weights of one MLP, or of one expert, without biases: 2 or 3 D F."""
        return (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size

    @cached_property
    def layer_matmul_params(self) -> int:
        """Weights of one layer's large matrices, all experts included."""
        return self.attention_matmul_params + self.num_experts * self.expert_params

    @cached_property
    def active_matmul_params(self) -> int:
        """Those of them that one token meets."""
        return self.attention_matmul_params + self.experts_per_token * self.expert_params

    @cached_property
    def router_params(self) -> int:
        return self.hidden_size * self.num_experts if self.num_experts > 1 else 0

    @cached_property
    def layer_params(self) -> int:
        """One layer with its norms, biases and router: LayerNorms 4 D and biases, or RMSNorms 2 D."""
        D, F = self.hidden_size, self.intermediate_size
        params = self.layer_matmul_params + self.router_params
        if self.family == "llama":
            return params + 2 * D
        attention_biases = self.query_size + 2 * self.key_value_size + D
        mlp_biases = F * (2 if self.gated_mlp else 1) + D
        return params + attention_biases + self.num_experts * mlp_biases + 4 * D

    @cached_property
    def params_by_part(self) -> dict[str, int]:
        """Parameters by part; tied weights are counted once, under the embedding."""
        L, D, V, P = self.num_layers, self.hidden_size, self.vocab_size, self.max_position_embeddings
        parts = {"token_embedding": V * D, "layers": L * self.layer_params}
        if self.family == "llama":
            parts["final_norm"] = D
        elif self.family == "gpt2":
            parts |= {"position_embedding": P * D, "final_norm": 2 * D}
        else:
            parts |= {"position_embedding": P * D, "token_type_embedding": 2 * D, "embedding_norm": 2 * D}
            parts["mlm_head"] = D * D + D + 2 * D + V  # dense, its bias, LayerNorm, the decoder's own bias
        if not self.tied_embeddings:
            parts["head"] = V * D
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

        6 per matmul weight that a token meets and 12 L N H T for attention scores and values, the whole T x T square
        even under a causal mask: the convention of PaLM (Chowdhery et al. 2022, appendix B), so that MFU compares.
        `predicted_fraction` is the share of positions at which the head's logits are computed.
        """
        D, V = self.hidden_size, self.vocab_size
        head = V * D + (D * D if self.family == "bert" else 0)
        layer = self.active_matmul_params + self.router_params
        matmul = 6 * (self.num_layers * layer + predicted_fraction * head)
        attention = 12 * self.num_layers * self.query_size * seq_length
        return matmul + attention


_DIMENSIONS = (
    "num_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
    "num_key_value_heads", "num_experts", "experts_per_token", "explicit_head_dim",
)  # fmt: skip
