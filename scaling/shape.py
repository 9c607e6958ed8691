"""A model's dimensions, and everything that follows from them: parameters, FLOPs.

Alphabet: T sequence, D hidden, F intermediate, N heads, K key-value heads, H head dim, V vocabulary, P positions,
L layers, E experts.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scaling.errors import InputError, did_you_mean
from scaling.family import CHOICES, FAMILIES, ROPE_FACTORS, Family, Setting

# Bucketed distances of T5's relative positions (Raffel et al. 2020, section 2.1), for each head of the first layer.
_RELATIVE_BUCKETS = 32
# Tokens of an encoder-decoder's target for each of its input, where no recipe says. T5's own spans make 114 for 512.
TARGET_FRACTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions that fix a Transformer's parameters.

    `family` is a row of scaling/family.py, and the switches below are the family's own unless given. With `num_experts`
    every layer's MLP is that many experts of `intermediate_size`, of which a router picks `experts_per_token`
    (Mixtral, Jiang et al. 2024). An encoder-decoder has `num_layers` in its encoder and `num_decoder_layers` in its
    decoder. A vision model has an `image_size` and a `patch_size` in pixels a side, `num_channels`, its classes as
    `vocab_size`, and a position for each patch and its class token. `settings` are those of the family (epsilons,
    rotary bases) that this model has otherwise; they count no parameters. Counts equal those of transformers' classes:
    tests/test_shape.py compares them.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    num_decoder_layers: int | None = None  # as many as num_layers, where there is a decoder beside an encoder
    num_key_value_heads: int = 0  # 0: as many as heads
    explicit_head_dim: int | None = None  # where it is not hidden_size / heads
    num_experts: int = 1
    experts_per_token: int = 1
    gated_mlp: bool | None = None  # three matrices of D x F instead of two
    tied_embeddings: bool | None = None
    image_size: int = 0
    patch_size: int = 0
    num_channels: int = 0
    settings: tuple[tuple[str, Setting], ...] = ()

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError("model.family", self.family, f"is not one of {', '.join(FAMILIES)}")
        traits = FAMILIES[self.family]
        for field, value in (
            ("num_key_value_heads", self.num_key_value_heads or self.num_attention_heads),
            ("gated_mlp", traits.gated_mlp if self.gated_mlp is None else self.gated_mlp),
            ("tied_embeddings", traits.tied_embeddings if self.tied_embeddings is None else self.tied_embeddings),
        ):
            object.__setattr__(self, field, value)
        if traits.kind == "encoder-decoder" and self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        for field in _DIMENSIONS:
            size = getattr(self, field)
            if size is None and field in ("explicit_head_dim", "num_decoder_layers"):
                continue
            if type(size) is not int or not 1 <= size <= _LARGEST:
                raise InputError(f"model.{field}", size, f"must be a whole number from 1 to {_LARGEST:,}")
        if self.explicit_head_dim and self.explicit_head_dim * self.num_attention_heads == self.hidden_size:
            object.__setattr__(self, "explicit_head_dim", None)  # one shape, one spelling
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
        self._require_of_its_kind(traits)
        self._require_settings(traits)

    def _require_settings(self, traits: Family) -> None:
        given = dict(self.settings)
        for key, value in given.items():
            if key not in traits.settings:
                hint = did_you_mean(key, traits.settings)
                raise InputError("model.settings", key, f"is no setting of a {self.family}", hint=hint)
            usual = traits.settings[key]
            kinds = (int, float) if usual is None or isinstance(usual, float) else (type(usual),)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise InputError(f"model.settings.{key}", value, f"is not a {kinds[-1].__name__}")
            if isinstance(value, int | float):
                most = 1 if key.endswith("partial_rotary_factor") else math.inf
                if not 0 < value <= most or value == math.inf:
                    problem = (
                        "is not a finite number above 0" if most > 1 else "is no part of a head, above 0 and at most 1"
                    )
                    raise InputError(f"model.settings.{key}", value, problem)
            if value not in (choices := CHOICES.get(key, (value,))):
                raise InputError(f"model.settings.{key}", value, f"is not one of {', '.join(map(str, choices))}")
        changed = ((key, given[key]) for key, usual in traits.settings.items() if given.get(key, usual) != usual)
        object.__setattr__(self, "settings", tuple(changed))

    @property
    def all_settings(self) -> dict[str, Setting]:
        """Every setting of the family, as it is here."""
        return {**self.traits.settings, **dict(self.settings)}

    def _require_of_its_kind(self, traits: Family) -> None:
        if self.num_decoder_layers is not None and traits.kind != "encoder-decoder":
            raise InputError("model.num_decoder_layers", self.num_decoder_layers, f"has no place in a {self.family}")
        for field in ("image_size", "patch_size", "num_channels"):
            value = getattr(self, field)
            if (value > 0) != (traits.kind == "vision"):
                problem = f"must be given in a {self.family}" if traits.kind == "vision" else "has no place in text"
                raise InputError(f"model.{field}", value, problem)
        if traits.kind == "vision":
            if self.image_size % self.patch_size:
                raise InputError("model.patch_size", self.patch_size, f"does not divide image_size {self.image_size}")
            positions = (self.image_size // self.patch_size) ** 2 + 1
            if self.max_position_embeddings != positions:
                problem = f"is not {positions}: one for each patch and one for the class token"
                raise InputError("model.max_position_embeddings", self.max_position_embeddings, problem)

    def require_buildable(self) -> None:
        """Raises InputError where no model of transformers' class for the family has these dimensions.

        There may be a Shape of them: others' published runs are priced, whose code has what transformers' has not.
        """
        traits, names = self.traits, self.traits.config_names
        usual: dict[str, tuple[Any, bool]] = {  # by field: what the class always has, unless it can have another
            "num_key_value_heads": (self.num_attention_heads, "num_key_value_heads" in names),
            "explicit_head_dim": (self.hidden_size // self.num_attention_heads, "head_dim" in names),
            "num_experts": (1, "num_experts" in names),
            "gated_mlp": (traits.gated_mlp, traits.gate_is_optional),
            "tied_embeddings": (traits.tied_embeddings, not traits.always_tied),
        }
        for field, (always, is_free) in usual.items():
            value = getattr(self, field)
            if not is_free and value not in (always, None):
                raise InputError(f"model.{field}", value, f"is not what a {self.family} has, {always}")
        if traits.positions == "rotary" and self.head_dim % 2:
            problem = "is odd, and rotary positions turn pairs"
            raise InputError("model.head_dim", self.head_dim, problem, hint="another number of heads")
        rope_type = self.all_settings.get("rope_parameters.rope_type")
        for factor in ROPE_FACTORS.get(rope_type, ()):
            if self.all_settings[f"rope_parameters.{factor}"] is None:
                problem = f"needs rope_parameters.{factor} beside it"
                raise InputError("model.settings.rope_parameters.rope_type", rope_type, problem)
        low, high = (self.all_settings.get(f"rope_parameters.{end}_freq_factor") for end in ("low", "high"))
        if rope_type == "llama3" and not low < high:  # type: ignore[operator]  # both are there
            problem = f"is not above low_freq_factor {low}"
            raise InputError("model.settings.rope_parameters.high_freq_factor", high, problem)

    @property
    def longest_sequence(self) -> int | None:
        """Tokens of a sequence at most; None where positions are relative, and have no end."""
        return None if self.traits.positions == "relative" else self.max_position_embeddings

    @property
    def traits(self) -> Family:
        return FAMILIES[self.family]

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
    def norm_params(self) -> int:
        """One norm over D: LayerNorm's weight and bias, or a weight alone."""
        return self.hidden_size * (2 if self.traits.norm == "layer" else 1)

    @cached_property
    def attention_params(self) -> int:
        """One attention with its biases and the norms of queries and keys."""
        biases = {
            "all": self.query_size + 2 * self.key_value_size + self.hidden_size,
            "query, key and value": self.query_size + 2 * self.key_value_size,
            "none": 0,
        }[self.traits.attention_biases]
        return self.attention_matmul_params + biases + (2 * self.head_dim if self.traits.norms_queries else 0)

    @cached_property
    def output_biases(self) -> int:
        """Of one layer's biases those of query, key, value and the MLP's first matrices: tensor ranks have parts."""
        attention = 0 if self.traits.attention_biases == "none" else self.query_size + 2 * self.key_value_size
        gate_and_up = self.intermediate_size * (2 if self.gated_mlp else 1)
        return attention + (gate_and_up * self.num_experts if self.traits.mlp_biases else 0)

    @cached_property
    def mlp_params(self) -> int:
        """One layer's MLP: its experts, their biases and their router."""
        biases = (
            self.intermediate_size * (2 if self.gated_mlp else 1) + self.hidden_size if self.traits.mlp_biases else 0
        )
        return self.num_experts * (self.expert_params + biases) + self.router_params

    @cached_property
    def layer_params(self) -> int:
        """One layer, of the encoder where there is a decoder too: attention, MLP and two norms."""
        return self.attention_params + self.mlp_params + 2 * self.norm_params

    @cached_property
    def decoder_layer_params(self) -> int:
        """One layer of a decoder beside an encoder, to which it attends: two attentions, MLP and three norms."""
        return 2 * self.attention_params + self.mlp_params + 3 * self.norm_params

    @cached_property
    def params_by_part(self) -> dict[str, int]:
        """Parameters by part; tied weights are counted once, under the embedding."""
        L, D, V, P = self.num_layers, self.hidden_size, self.vocab_size, self.max_position_embeddings
        traits, parts = self.traits, {}
        stacks = 2 if traits.kind == "encoder-decoder" else 1
        if traits.kind == "vision":
            parts["patch_embedding"] = self.num_channels * self.patch_size**2 * D + D + D  # and the class token
        else:
            parts["token_embedding"] = V * D
        parts["layers"] = L * self.layer_params
        if self.family == "modernbert":
            parts["layers"] -= self.norm_params  # the first layer takes the embeddings' norm for its own
        if self.num_decoder_layers:
            parts["decoder_layers"] = self.num_decoder_layers * self.decoder_layer_params
        match traits.positions:
            case "learned" | "sinusoidal":
                parts["position_embedding"] = stacks * (P + traits.position_offset) * D
            case "relative":
                parts["position_embedding"] = stacks * _RELATIVE_BUCKETS * self.num_attention_heads
        if traits.token_types:
            parts["token_type_embedding"] = traits.token_types * D
        if traits.norms_embeddings:
            parts["embedding_norm"] = stacks * self.norm_params
        if traits.norms_output:
            parts["final_norm"] = stacks * self.norm_params
        if traits.mlm_head:  # dense and its bias, where the family has any, a norm, the decoder's own bias
            parts["mlm_head"] = D * D + (D if traits.mlp_biases else 0) + self.norm_params + V
        if traits.kind == "vision":
            parts["head"] = V * D + V
        elif not self.tied_embeddings:
            parts["head"] = V * D
        return parts

    @cached_property
    def num_params(self) -> int:
        return sum(self.params_by_part.values())

    @cached_property
    def active_params(self) -> int:
        """Parameters that one token meets: all, but for the experts that it is not sent to."""
        return self.num_params - self.num_layers * (self.num_experts - self.experts_per_token) * self.expert_params

    @cached_property
    def largest_layer_params(self) -> int:
        """The largest module that ZeRO-3 gathers at once: a layer, or the embedding where that is larger."""
        decoder_layer = self.decoder_layer_params if self.num_decoder_layers else 0
        return max(self.layer_params, decoder_layer, self.vocab_size * self.hidden_size)

    @cached_property
    def untrained_params(self) -> int:
        """Of them those that take no gradient: sinusoidal positions."""
        return self.params_by_part["position_embedding"] if self.traits.positions == "sinusoidal" else 0

    def flops_per_token(
        self, seq_length: int, *, predicted_fraction: float | None = None, target_fraction: float = TARGET_FRACTION
    ) -> float:
        """Model FLOPs to train on one token, forward and backward, without recomputation.

        6 per matmul weight that a token meets and 12 L N H T for attention scores and values, the whole T x T square
        even under a causal mask or in a window: the convention of PaLM (Chowdhery et al. 2022, appendix B), so that
        MFU compares. `predicted_fraction` is the share of positions at which the head's logits are computed: by default
        all, or an image's one.

        A token of an encoder-decoder is one of its input; on it falls its share of the decoder, which has
        `target_fraction` tokens for each. A token of an image is a patch or the class token; a patch's own matrix costs
        4 and not 6, since pixels take no gradient.
        """
        D, V, L, T = self.hidden_size, self.vocab_size, self.num_layers, seq_length
        if predicted_fraction is None:
            predicted_fraction = 1 / self.max_position_embeddings if self.traits.kind == "vision" else 1.0
            predicted_fraction = target_fraction if self.num_decoder_layers else predicted_fraction
        head = V * D + (D * D if self.traits.mlm_head else 0)
        layer = self.active_matmul_params + self.router_params
        matmul: float = 6 * (L * layer + predicted_fraction * head)
        attention: float = 12 * L * self.query_size * T
        if self.num_decoder_layers:
            queries, keys = 2 * D * self.query_size, 2 * D * self.key_value_size  # of a cross attention
            matmul += 6 * self.num_decoder_layers * (target_fraction * (layer + queries) + keys)
            attention += 12 * self.num_decoder_layers * self.query_size * target_fraction * (target_fraction * T + T)
        if self.traits.kind == "vision":
            patches = 1 - 1 / self.max_position_embeddings
            matmul += 4 * patches * self.num_channels * self.patch_size**2 * D
        return matmul + attention


_LARGEST = 2**27  # of any dimension: a vocabulary or a context has it, some day
_DIMENSIONS = (
    "num_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
    "num_key_value_heads", "num_experts", "experts_per_token", "explicit_head_dim", "num_decoder_layers",
)  # fmt: skip
