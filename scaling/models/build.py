"""Shape -> a transformers model, initialised from a seed. transformers' classes, so that exports load anywhere."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from scaling.family import Kind
from scaling.models.initialise import initialise
from scaling.shape import Shape

HEADS: dict[Kind, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "vision": AutoModelForImageClassification,
}


def build(shape: Shape, *, dropout: float = 0.0, seed: int = 0, initialised: bool = True) -> PreTrainedModel:
    """The model of `shape` in fp32 on the CPU; the same seed gives the same weights on every rank.

    Initialisation is as each paper has it: scaling/models/initialise.py, docs/models.md. A model that is not
    `initialised` takes no memory until its weights are written: the operating system gives untouched pages none.
    """
    if not initialised:
        with no_init_weights():
            model = _untied(HEADS[shape.traits.kind].from_config(config_of(shape, dropout=dropout)), shape)
        model.tie_weights()  # which the context leaves out, too
        return model
    # Forking keeps the caller's random state: building a model must not shift anybody's dropout.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _untied(HEADS[shape.traits.kind].from_config(config_of(shape, dropout=dropout)), shape)
        initialise(model, shape)
    return model


def _untied(model: PreTrainedModel, shape: Shape) -> PreTrainedModel:
    """Gives T5 version 1.1 the head of its own that it has: T5Config ties all (5.23.0, configuration_t5.py:87).

    Saved so, it loads again: from_pretrained ties no weights of which it finds both, and they differ.
    """
    if shape.family == "t5" and not shape.tied_embeddings:
        model._tied_weights_keys = {key: of for key, of in model._tied_weights_keys.items() if key != "lm_head.weight"}
        model.all_tied_weights_keys.pop("lm_head.weight", None)
        head_VD = torch.empty_like(model.shared.weight)
        # mesh-tensorflow's and T5X's dense layers: variance 1 / fan-in.
        model.lm_head.weight = torch.nn.Parameter(torch.nn.init.normal_(head_VD, std=shape.hidden_size**-0.5))
    return model


def config_of(shape: Shape, *, dropout: float = 0.0) -> PreTrainedConfig:
    """transformers' configuration of `shape`, for training."""
    traits, fields = shape.traits, {}
    for field, keys in traits.config_names.items():
        value = getattr(shape, field)
        if field == "max_position_embeddings" and traits.kind != "vision":
            value += traits.position_offset if traits.model_type == "roberta" else 0  # the others add it themselves
        fields |= dict.fromkeys(keys, value)
    fields |= dict.fromkeys(traits.dropout_names, dropout) | dict(traits.constants) | _nested(shape.all_settings)
    if traits.kind == "vision":
        del fields["vocab_size"], fields["max_position_embeddings"]
        fields["num_labels"] = shape.vocab_size
    else:
        fields["tie_word_embeddings"] = shape.tied_embeddings
        fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": _padding(shape)}
    if traits.kind == "encoder-decoder":
        fields |= {"decoder_start_token_id": 0, "is_encoder_decoder": True, "forced_eos_token_id": None}
    fields["use_cache"] = False
    if shape.family == "t5":
        fields["feed_forward_proj"] = "gated-gelu" if shape.gated_mlp else "relu"
    return AutoConfig.for_model(traits.model_type, attn_implementation="sdpa", **fields)


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """{"rope_parameters.rope_theta": 1e4} -> {"rope_parameters": {"rope_theta": 1e4}}; None is left out."""
    fields: dict[str, Any] = {}
    for dotted, value in settings.items():
        *path, key = dotted.split(".")
        into = fields
        for name in path:
            into = into.setdefault(name, {})
        if value is not None:
            into[key] = value
    return fields


def _padding(shape: Shape) -> int | None:
    """RoBERTa and its kin number positions from the padding token's on, and need one."""
    return 1 if shape.traits.position_offset or shape.traits.kind == "encoder-decoder" else None


def prepare_for_use(model: PreTrainedModel, ids: dict[str, int | None]) -> None:
    """Sets what training leaves open and whoever loads the model relies on: the cache and the tokens with a meaning.

    `ids` are the tokenizer's "bos_token_id" and so on; none for images.
    """
    if model.config.model_type == "vit":
        return
    model.config.use_cache = True
    if not model.config.is_encoder_decoder:
        ids = {name: value for name, value in ids.items() if name != "decoder_start_token_id"}
    for name, value in ids.items():
        for config in (model.config, getattr(model, "generation_config", None)):
            if config is not None and value is not None:
                setattr(config, name, value)
