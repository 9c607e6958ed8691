"""A transformers config.json as a Shape, without transformers: the inverse of scaling/models/build.py's config_of.

Every key is a field of Shape, or a setting of it, or must have the one value that we build, or stands in a list of what
does not change training. Any other key, and any other value, is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from scaling.errors import InputError
from scaling.family import FAMILIES, Family
from scaling.shape import Shape

_FAMILY_OF = {family.model_type: family for family in FAMILIES.values()}

# Keys that say nothing about training: bookkeeping, tokens' ids (the data's business), inference, heads of other tasks.
_IGNORED = frozenset({
    "_name_or_path", "architectures", "dtype", "finetuning_task", "problem_type", "tokenizer_class", "torch_dtype",
    "torchscript", "transformers_version", "model_type", "_attn_implementation", "attn_implementation",
    "_attn_implementation_autoset", "chunk_size_feed_forward", "gradient_checkpointing", "output_attentions",
    "output_hidden_states", "return_dict", "use_cache", "use_return_dict",
    "bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "mask_token_id", "pad_token_id",
    "sep_token_id", "id2label", "label2id", "num_labels",
    "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length",
    "min_length", "n_ctx", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_past", "output_scores", "prefix", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "suppress_tokens", "begin_suppress_tokens", "task_specific_params", "temperature", "top_k", "top_p", "typical_p",
    "classifier_activation", "classifier_bias", "classifier_pooling", "summary_activation", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "extra_pos_embeddings", "save_step", "directionality", "pooler_fc_size",
    "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
})  # fmt: skip
# The recipe's own: how much is dropped in training.
_DROPOUTS = frozenset({
    "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classif_dropout",
    "classifier_dropout", "decoder_layerdrop", "dropout", "dropout_rate", "embd_pdrop", "embedding_dropout",
    "encoder_layerdrop", "hidden_dropout", "hidden_dropout_prob", "layerdrop", "mlp_dropout", "resid_pdrop",
    "summary_first_dropout",
})  # fmt: skip
# Keys of which anything but nothing would be another architecture.
_EMPTY = frozenset({
    "add_cross_attention", "cross_attention_hidden_size", "decoder", "is_decoder", "pruned_heads",
    "tie_encoder_decoder",
})  # fmt: skip
_ABSOLUTE = {"position_embedding_type": "absolute"}
# Names that transformers 5 still reads, and those it has now.
_RENAMED = {
    "rope_theta": "rope_parameters.rope_theta", "rotary_emb_base": "rope_parameters.rope_theta",
    "rotary_pct": "rope_parameters.partial_rotary_factor", "partial_rotary_factor":
    "rope_parameters.partial_rotary_factor", "global_rope_theta": "rope_parameters.full_attention.rope_theta",
    "local_rope_theta": "rope_parameters.sliding_attention.rope_theta",
}  # fmt: skip
# The same function in more kernels.
_TANH_GELU = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}


def shape_of(config: Mapping[str, Any], name: str = "model", field: str = "model") -> Shape:
    """The shape that `config`, the content of a config.json, describes.

    Raises InputError, on `field`.key, for a model type or a value that we do not build, and for an unknown key.
    """
    try:
        shape = _shape_of(config, name, field)
    except (TypeError, AttributeError, ZeroDivisionError) as error:  # a list for a number, a text for a mapping
        problem = f"has a value of another kind than a config.json's: {error}"
        raise InputError(field, name, problem, hint="a config.json that transformers wrote") from None
    shape.require_buildable()
    return shape


def _shape_of(config: Mapping[str, Any], name: str, field: str) -> Shape:
    model_type = config.get("model_type")
    if model_type not in _FAMILY_OF:
        known = ", ".join(sorted(_FAMILY_OF))
        raise InputError(f"{field}.model_type", model_type, "is not a model type that we build", hint=f"known: {known}")
    if config.get("auto_map"):
        problem = "names code of its own, which is not run here"
        hint = f"where transformers' own {model_type} is meant, leave auto_map out of the file"
        raise InputError(f"{field}.auto_map", config["auto_map"], problem, hint=hint)
    family = _FAMILY_OF[model_type]
    left = _flat(config)
    both = family.kind == "encoder-decoder"
    if (found := left.pop("is_encoder_decoder", both)) is not both:
        raise InputError(f"{field}.is_encoder_decoder", found, f"is not {both}, which a {model_type} is")
    fields = _fields(family, left, field)
    _require_constants(family, left, field)
    _require_pattern(family, left, fields["num_layers"], field)
    settings = []
    for key, usual in family.settings.items():
        value = left.pop(key, family.silent.get(key, usual))
        value = float(value) if isinstance(usual, float) and type(value) is int else value
        if value is not None:
            settings.append((key, value))
    for key in (*family.ignored, *_IGNORED, *_DROPOUTS):
        left.pop(key, None)
    for key, value in left.items():
        if key not in _EMPTY or value:
            problem = f"is not a key of a {model_type} that we know, and might change the model"
            raise InputError(f"{field}.{key}", value, problem)
    return Shape(name=name, family=family.name, settings=tuple(settings), **fields)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """With rotary positions as dotted keys, whichever way they were spelled, and one name for tanh's GELU."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("rope_parameters", "rope_scaling"):
            flat |= _dotted("rope_parameters", value or {})
        elif key in _RENAMED:
            flat.setdefault(_RENAMED[key], value)
        elif key in ("activation_function", "hidden_act", "hidden_activation"):
            flat[key] = _TANH_GELU.get(value, value)
        elif key != "auto_map":
            flat[key] = value
    return flat


def _dotted(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _dotted(f"{path}.{'rope_type' if key == 'type' else key}", inner)
    return flat


def _fields(family: Family, left: dict[str, Any], field: str) -> dict[str, Any]:
    """The fields of Shape, taken out of `left`."""
    fields: dict[str, Any] = {}
    if family.name == "opt":  # whose embedding is as wide as its layers unless it says otherwise
        left.setdefault("word_embed_proj_dim", left.get("hidden_size"))
    for of, keys in family.config_names.items():
        if family.kind == "vision" and of in ("vocab_size", "max_position_embeddings"):
            continue
        found = [left.pop(key, family.silent.get(key)) for key in keys]
        if len({*found}) > 1:
            raise InputError(f"{field}.{keys[1]}", found[1], f"is not {keys[0]} {found[0]}, as we build it")
        if found[0] is None and of not in _OPTIONAL and (of, family.name) not in _OPTIONAL:
            raise InputError(f"{field}.{keys[0]}", None, "is missing", hint="a config.json that transformers wrote")
        if found[0] is not None and (type(found[0]) is not int or found[0] < 1):
            raise InputError(f"{field}.{keys[0]}", found[0], "is not a whole number of at least 1")
        fields[{"head_dim": "explicit_head_dim"}.get(of, of)] = found[0]
    if fields["intermediate_size"] is None:  # GPT-2's n_inner
        fields["intermediate_size"] = 4 * fields["hidden_size"]
    if "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = fields["num_key_value_heads"] or 0
    if family.kind == "vision":
        labels, classes = left.get("id2label") or {}, left.get("num_labels")
        fields["vocab_size"] = (len(labels) or 2) if classes is None else classes  # transformers' default is 2
        fields["max_position_embeddings"] = (fields["image_size"] // fields["patch_size"]) ** 2 + 1
        left.pop("tie_word_embeddings", None)
        return fields
    if family.kind == "encoder-decoder":  # transformers 4 wrote num_hidden_layers of a BART, too: the encoder's
        L = fields["num_layers"]
        if (found_L := left.pop("num_hidden_layers", L)) != L:
            raise InputError(f"{field}.num_hidden_layers", found_L, f"is not the encoder's {L}")
    if family.model_type == "roberta":
        fields["max_position_embeddings"] -= family.position_offset
    fields["tied_embeddings"] = _switch(left, "tie_word_embeddings", family.tied_embeddings, field)
    if family.name == "t5":
        if fields["max_position_embeddings"] is None:  # relative positions have no last one
            fields["max_position_embeddings"] = 512
        # transformers 5 writes tie_word_embeddings true for version 1.1 as well, and this beside it.
        fields["tied_embeddings"] = _switch(left, "scale_decoder_outputs", fields["tied_embeddings"], field)
        mlp = left.pop("feed_forward_proj", "relu")
        if mlp not in ("relu", "gated-gelu"):
            raise InputError(f"{field}.feed_forward_proj", mlp, "is neither relu nor gated-gelu")
        fields["gated_mlp"] = mlp == "gated-gelu"
        left.pop("dense_act_fn", None), left.pop("is_gated_act", None)  # of feed_forward_proj
    if family.name == "transformer" and (V := left.pop("decoder_vocab_size", None)) not in (None, fields["vocab_size"]):
        raise InputError(f"{field}.decoder_vocab_size", V, f"is not vocab_size {fields['vocab_size']}")
    return fields


def _switch(left: dict[str, Any], key: str, usual: bool, field: str) -> bool:
    value = left.pop(key, usual)
    if not isinstance(value, bool):
        raise InputError(f"{field}.{key}", value, "is neither true nor false")
    return value


_OPTIONAL = {
    "num_key_value_heads", "head_dim", "num_decoder_layers", ("intermediate_size", "gpt2"),
    ("max_position_embeddings", "t5"),
}  # fmt: skip


def _require_constants(family: Family, left: dict[str, Any], field: str) -> None:
    for key, value in {**family.constants, **family.fixed, **_ABSOLUTE}.items():
        if key in _IGNORED and key not in family.fixed:
            continue
        found = left.pop(key, _TANH_GELU.get(family.silent.get(key, value), family.silent.get(key, value)))
        if found != value:
            raise InputError(f"{field}.{key}", found, f"is not {value!r}, the only one that we build")


def _require_pattern(family: Family, left: dict[str, Any], num_layers: int, field: str) -> None:
    """Which layers attend to all, where a config.json lists them: all, or ModernBERT's every third."""
    every = 3 if family.name == "modernbert" else 1
    if (found := left.pop("layer_types", None)) is None:
        return
    if found != ["sliding_attention" if layer % every else "full_attention" for layer in range(num_layers)]:
        problem = "is not full attention in " + ("every third layer" if every == 3 else "every layer")
        raise InputError(f"{field}.layer_types", found, problem)
