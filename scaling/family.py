"""The families of Transformers: what the models of one have in common, as data with a source each.

A family is an architecture of transformers' own: its row says how that architecture counts (norms, biases, positions)
and how its config.json spells a shape. Everything that differs between sizes is in Shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["decoder", "encoder", "encoder-decoder", "vision"]
Task = Literal["causal-lm", "masked-lm", "span-corruption", "image-classification"]
Norm = Literal["layer", "layer without bias", "rms"]
Positions = Literal["learned", "sinusoidal", "rotary", "relative"]
Biases = Literal["all", "query, key and value", "none"]
Setting = str | int | float | bool | None

TASK_OF: dict[Kind, Task] = {
    "decoder": "causal-lm",
    "encoder": "masked-lm",
    "encoder-decoder": "span-corruption",
    "vision": "image-classification",
}

# How a config.json spells the fields of Shape, where a family has no names of its own.
_NAMES: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "num_attention_heads": ("num_attention_heads",),
    "intermediate_size": ("intermediate_size",),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings",),
}
_GROUPED = {"num_key_value_heads": ("num_key_value_heads",)}
# Rotary positions, and Llama 3.1's way to stretch them (transformers 5.23.0, modeling_rope_utils.py).
_ROPE: dict[str, Setting] = {
    "rope_parameters.rope_type": "default",
    "rope_parameters.rope_theta": 10_000.0,
    "rope_parameters.factor": None,
    "rope_parameters.low_freq_factor": None,
    "rope_parameters.high_freq_factor": None,
    "rope_parameters.original_max_position_embeddings": None,
}
# Settings of which we know these values. NeoX's GELU is the exact one or, as "gelu_fast", tanh's.
CHOICES: dict[str, tuple[Setting, ...]] = {
    "hidden_act": ("gelu", "gelu_pytorch_tanh"),
    "rope_parameters.rope_type": ("default", "linear", "llama3"),
    "rope_parameters.full_attention.rope_type": ("default",),
    "rope_parameters.sliding_attention.rope_type": ("default",),
}
# What each way to stretch rotary positions needs to be told (transformers 5.23.0, modeling_rope_utils.py).
ROPE_FACTORS: dict[Setting, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_WINDOWLESS = {"use_sliding_window": False}
_HEAD_DIM = {"head_dim": ("head_dim",)}
_BART_NAMES = {
    "num_layers": ("encoder_layers",),
    "num_decoder_layers": ("decoder_layers",),
    "hidden_size": ("d_model",),
    "num_attention_heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "intermediate_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    `model_type` is transformers' name of it. `names` are the keys of config.json that hold a field of Shape (all of
    them, where several), `constants` the keys that are the same in every model of the family, `fixed` those of which
    we know one value only and which nobody has to write, `dropout_names` those that take a recipe's dropout.
    `settings` are the keys that change what a model computes but not how many parameters it has, with the value that
    they have unless a shape says otherwise; a dot leads into a mapping, and None leaves the key out. `silent` is what
    transformers takes where a config.json does not say, and that is another value. `ignored` is of no consequence:
    how others draw first weights, where we draw them as the paper does, or what nothing reads.

    `position_offset` positions stand before the first that a token takes (fairseq's padding index and one more).
    `token_types` embeddings tell segments apart. Sinusoidal positions stand in the weights and are not trained.
    """

    name: str
    model_type: str
    kind: Kind
    source: str
    norm: Norm = "layer"
    positions: Positions = "learned"
    position_offset: int = 0
    attention_biases: Biases = "all"
    mlp_biases: bool = True
    norms_queries: bool = False  # and keys, each head's alike
    gated_mlp: bool = False
    gate_is_optional: bool = False
    tied_embeddings: bool = True
    always_tied: bool = False
    token_types: int = 0
    norms_embeddings: bool = False
    norms_output: bool = True  # after the last layer; False where layers are post-norm
    mlm_head: bool = False  # dense, its norm and the decoder's own bias
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    silent: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    dropout_names: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        return TASK_OF[self.kind]

    @property
    def config_names(self) -> dict[str, tuple[str, ...]]:
        return {**_NAMES, **self.names}


_LLAMA_LIKE: dict[str, Any] = {
    "kind": "decoder", "norm": "rms", "positions": "rotary", "attention_biases": "none", "mlp_biases": False,
    "gated_mlp": True, "tied_embeddings": False, "names": {**_GROUPED, **_HEAD_DIM},
    "constants": {"hidden_act": "silu"}, "fixed": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    "settings": {"rms_norm_eps": 1e-6, "initializer_range": 0.02, **_ROPE}, "dropout_names": ("attention_dropout",),
}  # fmt: skip
_SLIDING = ("sliding_window", "max_window_layers")  # where use_sliding_window is False
_BERT_SETTINGS: dict[str, Setting] = {"layer_norm_eps": 1e-12, "initializer_range": 0.02}
_BART_FIXED = {
    "normalize_before": False, "add_final_layer_norm": False,
    "add_bias_logits": False, "static_position_embeddings": False, "normalize_embedding": True,
}  # fmt: skip
_BERT_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")

_ROWS = (
    Family(
        name="gpt2", model_type="gpt2", kind="decoder",
        source="Radford et al. 2019, pre-norm with learned positions; also GPT-3's and Megatron's GPT",
        names={"num_layers": ("n_layer",), "hidden_size": ("n_embd",), "num_attention_heads": ("n_head",),
               "intermediate_size": ("n_inner",), "max_position_embeddings": ("n_positions",)},
        # GPT-2's tanh GELU in one kernel: "gelu_new" is the same function in five, each saving a tensor.
        constants={"activation_function": "gelu_pytorch_tanh"},
        fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
        settings={"layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
        silent={"activation_function": "gelu_new"},
        dropout_names=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    Family(
        name="gpt-neox", model_type="gpt_neox", kind="decoder",
        source="Black et al. 2022 (arXiv 2204.06745), attention and MLP side by side, rotary; Pythia, Biderman et al. "
        "2023 (arXiv 2304.01373)",
        positions="rotary", tied_embeddings=False,
        constants={"use_parallel_residual": True, "attention_bias": True},
        settings={"hidden_act": "gelu", "layer_norm_eps": 1e-5, **_ROPE,
                  "rope_parameters.partial_rotary_factor": 0.25},
        ignored=("initializer_range",),
        dropout_names=("attention_dropout", "hidden_dropout"),
    ),
    Family(
        name="opt", model_type="opt", kind="decoder", source="Zhang et al. 2022 (arXiv 2205.01068), ReLU",
        position_offset=2,
        names={"intermediate_size": ("ffn_dim",), "hidden_size": ("hidden_size", "word_embed_proj_dim")},
        constants={"do_layer_norm_before": True, "activation_function": "relu"},
        fixed={"enable_bias": True, "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
        settings={"init_std": 0.006}, silent={"init_std": 0.02},
        dropout_names=("dropout", "attention_dropout"),
    ),
    Family(
        name="llama", model_type="llama",
        source="Touvron et al. 2023 (arXiv 2302.13971), RMSNorm, rotary, SwiGLU, no biases",
        **_LLAMA_LIKE,
    ),
    Family(
        name="mistral", model_type="mistral", source="Jiang et al. 2023 (arXiv 2310.06825): Llama with grouped queries",
        **{**_LLAMA_LIKE, "constants": {"hidden_act": "silu", "sliding_window": None},
           "silent": {"sliding_window": 4096, "num_key_value_heads": 8}},
    ),
    Family(
        name="qwen2", model_type="qwen2",
        source="Yang et al. 2024 (arXiv 2407.10671): Llama with query, key and value biases",
        **{**_LLAMA_LIKE, "attention_biases": "query, key and value", "names": _GROUPED,
           "constants": {"hidden_act": "silu", **_WINDOWLESS}, "ignored": _SLIDING,
           "silent": {"num_key_value_heads": 32}},
    ),
    Family(
        name="qwen3", model_type="qwen3",
        source="Yang et al. 2025 (arXiv 2505.09388): Llama with normalised queries and keys",
        **{**_LLAMA_LIKE, "norms_queries": True, "constants": {"hidden_act": "silu", **_WINDOWLESS},
           "ignored": _SLIDING, "silent": {"num_key_value_heads": 32, "head_dim": 128}},
    ),
    Family(
        name="mixtral", model_type="mixtral", source="Jiang et al. 2024 (arXiv 2401.04088): Mistral with experts",
        **{**_LLAMA_LIKE,
           "names": {**_GROUPED, **_HEAD_DIM, "num_experts": ("num_local_experts",),
                     "experts_per_token": ("num_experts_per_tok",)},
           "constants": {"hidden_act": "silu", "sliding_window": None, "output_router_logits": False},
           "fixed": {**_LLAMA_LIKE["fixed"], "router_jitter_noise": 0.0}, "ignored": ("router_aux_loss_coef",),
           "settings": {**_LLAMA_LIKE["settings"], "rms_norm_eps": 1e-5, "rope_parameters.rope_theta": 1e6},
           "silent": {"num_key_value_heads": 8}},
    ),
    Family(
        name="bert", model_type="bert", kind="encoder",
        source="Devlin et al. 2018 (arXiv 1810.04805), post-norm, a masked-LM head tied to the embedding, no pooler",
        always_tied=True, token_types=2, norms_embeddings=True, norms_output=False, mlm_head=True,
        constants={"type_vocab_size": 2, "hidden_act": "gelu"}, settings=_BERT_SETTINGS,
        dropout_names=_BERT_DROPOUT,
    ),
    Family(
        name="roberta", model_type="roberta", kind="encoder",
        source="Liu et al. 2019 (arXiv 1907.11692): BERT without segments",
        position_offset=2, always_tied=True, token_types=1, norms_embeddings=True, norms_output=False, mlm_head=True,
        constants={"type_vocab_size": 1, "hidden_act": "gelu"}, fixed={"pad_token_id": 1},
        settings={**_BERT_SETTINGS, "layer_norm_eps": 1e-5}, silent={"type_vocab_size": 2, "layer_norm_eps": 1e-12},
        dropout_names=_BERT_DROPOUT,
    ),
    Family(
        name="modernbert", model_type="modernbert", kind="encoder",
        source="Warner et al. 2024 (arXiv 2412.13663): pre-norm, rotary, GeGLU, every third layer's attention global",
        norm="layer without bias", positions="rotary", attention_biases="none", mlp_biases=False, gated_mlp=True,
        norms_embeddings=True, mlm_head=True,
        constants={"cls_token_id": None, "sep_token_id": None, "hidden_activation": "gelu"},
        fixed={"norm_bias": False, "attention_bias": False, "mlp_bias": False, "decoder_bias": True,
               "global_attn_every_n_layers": 3},
        settings={"norm_eps": 1e-5, "initializer_range": 0.02, "initializer_cutoff_factor": 2.0,
                  "local_attention": 128, "rope_parameters.full_attention.rope_type": "default",
                  "rope_parameters.full_attention.rope_theta": 160_000.0,
                  "rope_parameters.sliding_attention.rope_type": "default",
                  "rope_parameters.sliding_attention.rope_theta": 10_000.0},
        ignored=("sparse_prediction", "sparse_pred_ignore_index", "deterministic_flash_attn", "reference_compile",
                 "repad_logits_with_grad", "layer_norm_eps"),
        dropout_names=("attention_dropout", "embedding_dropout", "mlp_dropout"),
    ),
    Family(
        name="t5", model_type="t5", kind="encoder-decoder",
        source="Raffel et al. 2020 (arXiv 1910.10683), pre-norm RMSNorm, relative positions; gated: version 1.1",
        norm="rms", positions="relative", attention_biases="none", mlp_biases=False, gate_is_optional=True,
        names={"num_decoder_layers": ("num_decoder_layers",), "num_layers": ("num_layers",),
               "hidden_size": ("d_model",), "num_attention_heads": ("num_heads",), "intermediate_size": ("d_ff",),
               "head_dim": ("d_kv",), "max_position_embeddings": ("n_positions",)},
        constants={"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
                settings={"layer_norm_epsilon": 1e-6, "initializer_factor": 1.0},
        dropout_names=("dropout_rate",),
    ),
    Family(
        name="transformer", model_type="marian", kind="encoder-decoder",
        source="Vaswani et al. 2017 (arXiv 1706.03762), post-norm, sinusoidal positions, ReLU; transformers' Marian, "
        "whose sines stand before its cosines",
        positions="sinusoidal", always_tied=True, norms_output=False, names=_BART_NAMES,
        constants={"activation_function": "relu", "scale_embedding": True, "share_encoder_decoder_embeddings": True},
        fixed=_BART_FIXED, ignored=("init_std",),
        silent={"activation_function": "gelu", "scale_embedding": False},
        dropout_names=("dropout",),
    ),
    Family(
        name="bart", model_type="bart", kind="encoder-decoder",
        source="Lewis et al. 2020 (arXiv 1910.13461), post-norm, learned positions, GELU",
        position_offset=2, always_tied=True, norms_embeddings=True, norms_output=False, names=_BART_NAMES,
        constants={"activation_function": "gelu", "scale_embedding": False},
        fixed=_BART_FIXED, settings={"init_std": 0.02},
        dropout_names=("dropout", "attention_dropout"),
    ),
    Family(
        name="vit", model_type="vit", kind="vision",
        source="Dosovitskiy et al. 2021 (arXiv 2010.11929), pre-norm, a class token and learned positions",
        tied_embeddings=False,
        names={"image_size": ("image_size",), "patch_size": ("patch_size",), "num_channels": ("num_channels",)},
        constants={"hidden_act": "gelu"}, fixed={"qkv_bias": True}, settings={"layer_norm_eps": 1e-12},
        ignored=("initializer_range", "encoder_stride", "pooler_output_size", "pooler_act"),
        dropout_names=_BERT_DROPOUT,
    ),
)  # fmt: skip
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}
