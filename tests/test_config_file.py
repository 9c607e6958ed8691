"""A config.json read without transformers means what transformers takes it to mean, or is refused by name."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from scaling.errors import InputError
from scaling.family import FAMILIES
from scaling.models.build import config_of
from scaling.registry import MODELS, find, shape_of

# One entry per family, and those with settings of their own.
_NAMES = [
    "gpt2-xl", "gpt-neox-20b", "pythia-12b", "opt-1.3b", "llama-3.1-8b", "llama-3.2-1b", "mistral-7b-v0.3",
    "qwen2.5-14b", "qwen3-8b", "mixtral-8x7b", "bert-base", "roberta-large", "modernbert-base", "t5-3b",
    "t5-v1.1-base", "transformer-big", "bart-base", "vit-huge-14",
]  # fmt: skip
_BOOKKEEPING = ("_name_or_path", "transformers_version", "dtype", "architectures")


@pytest.mark.parametrize("name", _NAMES)
def test_what_transformers_writes_of_a_model_is_read_back_as_its_shape(name):
    shape = MODELS[name].shape
    written = json.loads(json.dumps(config_of(shape).to_dict()))
    assert shape_of(written, name) == shape


def test_the_names_above_are_of_every_family():
    assert {MODELS[name].shape.family for name in _NAMES} == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_file_that_is_silent_means_transformers_own_defaults_or_is_refused(family):
    # What transformers makes of a file with the dimensions alone, written out in full, is what we make of it.
    row = FAMILIES[family]
    keys = {key for keys in row.config_names.values() for key in keys}
    usual = AutoConfig.for_model(row.model_type).to_dict()
    silent = {key: value for key, value in usual.items() if key in keys or key == "model_type"}
    if family == "transformer":
        silent["vocab_size"] = 80

    def read(config):
        try:
            return shape_of(config)
        except InputError as error:
            return error.field

    assert read(silent) == read(json.loads(json.dumps(AutoConfig.for_model(**silent).to_dict())))


# As the hub has them, abridged where a key repeats another model's: names that transformers has since changed.
HUB = {
    "pythia-70m": {  # EleutherAI/pythia-70m
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
    },
    "llama-3.1-8b": {  # meta-llama/Llama-3.1-8B
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    "modernbert-base": {  # answerdotai/ModernBERT-base
        "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 50281, "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
        "classifier_pooling": "mean", "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
        "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0, "gradient_checkpointing": False, "hidden_activation": "gelu",
        "hidden_size": 768, "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152,
        "layer_norm_eps": 1e-05, "local_attention": 128, "local_rope_theta": 10000.0,
        "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert",
        "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22,
        "pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282,
        "tie_word_embeddings": True, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0",
        "vocab_size": 50368,
    },
    "t5-v1.1-small": {  # google/t5-v1_1-small
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "output_past": True, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_a_file_of_the_hub_is_the_entry_of_the_registry_and_what_transformers_reads(name):
    shape = MODELS[name].shape
    assert shape_of(HUB[name], name) == shape
    # transformers' own reading, written in today's names, is the same shape.
    theirs = AutoConfig.for_model(**deepcopy(HUB[name]))  # which writes into what it is given
    assert shape_of(json.loads(json.dumps(theirs.to_dict())), name) == shape


_LLAMA = HUB["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_type": "mamba"}, "model_type"), ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"), ({"mlp_bias": True}, "mlp_bias"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.My"}}, "auto_map"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "settings.rope_parameters.rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0, "mscale": 2}}, "rope_parameters.mscale"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"), ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types"), ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"), ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_size": 4 * 10**400}, "hidden_size"), ({"num_hidden_layers": 10**20}, "num_layers"),
        ({"rms_norm_eps": float("nan")}, "settings.rms_norm_eps"), ({"rms_norm_eps": 0.0}, "settings.rms_norm_eps"),
        ({"initializer_range": -1}, "settings.initializer_range"),
        ({"rope_theta": float("inf")}, "settings.rope_parameters.rope_theta"),
        ({"rope_scaling": {**_LLAMA["rope_scaling"], "factor": 0}}, "settings.rope_parameters.factor"),
        ({"rope_scaling": {**_LLAMA["rope_scaling"], "low_freq_factor": 4.0}},
         "settings.rope_parameters.high_freq_factor"),
    ],
)  # fmt: skip
def test_what_would_be_another_model_is_refused_by_its_key(changes, field):
    with pytest.raises(InputError) as caught:
        shape_of({**_LLAMA, **changes})
    assert caught.value.field == f"model.{field}"


def test_a_window_and_another_head_are_refused_where_the_family_may_have_them():
    mistral = json.loads(json.dumps(config_of(MODELS["mistral-7b-v0.3"].shape).to_dict()))
    for changes, field in (({"sliding_window": 4096}, "sliding_window"),):
        with pytest.raises(InputError) as caught:
            shape_of({**mistral, **changes})
        assert caught.value.field == f"model.{field}"
    del mistral["sliding_window"]  # which transformers takes for 4096
    with pytest.raises(InputError, match="4096 is not None"):
        shape_of(mistral)


@pytest.mark.parametrize("missing", ["factor", "low_freq_factor", "high_freq_factor", None])
def test_stretched_positions_are_refused_exactly_where_transformers_lacks_a_factor(missing):
    stretched = {key: value for key, value in _LLAMA["rope_scaling"].items() if key != missing}
    fields = {**_LLAMA, "num_hidden_layers": 1, "rope_scaling": stretched}
    with torch.device("meta"):
        if missing is None:
            shape_of(fields)
            AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        else:
            with pytest.raises(InputError, match=f"'llama3' needs rope_parameters.{missing} beside it"):
                shape_of(fields)
            with pytest.raises(KeyError, match=missing):
                AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def test_what_transformers_4_wrote_beside_todays_keys_is_read_where_it_says_the_same():
    bart = json.loads(json.dumps(config_of(MODELS["bart-base"].shape).to_dict()))
    # facebook/bart-base's own file has both.
    assert shape_of({**bart, "num_hidden_layers": 6}, "bart-base") == MODELS["bart-base"].shape
    with pytest.raises(InputError, match="num_hidden_layers: 12 is not the encoder's 6"):
        shape_of({**bart, "num_hidden_layers": 12})
    opt = json.loads(json.dumps(config_of(MODELS["opt-125m"].shape).to_dict()))
    del opt["word_embed_proj_dim"]  # which transformers takes for hidden_size
    assert shape_of(opt, "opt-125m") == MODELS["opt-125m"].shape


def test_more_of_a_head_than_all_and_classes_that_are_no_number_are_refused():
    pythia = json.loads(json.dumps(config_of(MODELS["pythia-70m"].shape).to_dict()))
    with pytest.raises(InputError, match=r"partial_rotary_factor: 3\.0 is no part of a head"):
        shape_of({**pythia, "rope_parameters": {**pythia["rope_parameters"], "partial_rotary_factor": 3.0}})
    vit = json.loads(json.dumps(config_of(MODELS["vit-base-16"].shape).to_dict()))
    assert shape_of({**vit, "num_labels": None, "id2label": None}).vocab_size == 2
    for classes in (2.5, True, 0):
        with pytest.raises(InputError, match=r"model\.vocab_size"):
            shape_of({**vit, "num_labels": classes})


# --- Models of one's own


def test_a_transformers_directory_is_a_model_and_says_whether_it_has_weights(tmp_path, monkeypatch):
    folder = tmp_path / "my llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_LLAMA))
    entry = find(f"hf:{folder}")
    assert (entry.shape.name, entry.shape.num_params, entry.weights) == ("my-llama", 8_030_261_248, None)
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find("hf:my llama").weights == folder


def test_a_name_of_the_hub_is_found_in_the_cache_or_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        find("hf:meta-llama/Llama-3.1-8B")
    assert "hf download meta-llama/Llama-3.1-8B" in caught.value.hint
    copy = tmp_path / "models--meta-llama--Llama-3.1-8B"
    (copy / "snapshots" / "abc").mkdir(parents=True)
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("abc")
    (copy / "snapshots" / "abc" / "config.json").write_text(json.dumps(_LLAMA))
    assert find("hf:meta-llama/Llama-3.1-8B").shape.name == "Llama-3.1-8B"


_FILE = """\
from __future__ import annotations
import beside
from scaling.registry import find
from dataclasses import dataclass, replace
from transformers import GPT2Config

print("to whom it may concern")

@dataclass
class Sizes:
    layers: int = beside.LAYERS

def shape():
    return replace(find("gpt-demo").shape, name="mine", num_layers=Sizes().layers)

def config():
    return GPT2Config(n_layer=2, n_embd=128, n_head=2, vocab_size=300)

def wrong():
    return 7

def breaks():
    raise RuntimeError("no")

class Config:
    def __init__(self):
        import os
        os.chdir("/")

    def to_dict(self):
        raise ValueError("not now")

def half():
    return replace(shape(), num_layers=2.5)
"""


def test_a_function_of_a_python_file_is_a_model(tmp_path, monkeypatch, capsys):
    path = tmp_path / "my_model.py"
    path.write_text(_FILE)
    (tmp_path / "beside.py").write_text("LAYERS = 6\n")
    monkeypatch.chdir(tmp_path)
    path = path.relative_to(tmp_path)
    assert (find(f"{path}:shape").shape.name, find(f"{path}:shape").shape.num_layers) == ("mine", 6)
    assert find(f"{path}:config").shape.hidden_size == 128
    for function, said in (
        ("wrong", "returned a int"), ("breaks", "no"), ("nothing", "no function"), ("shap", "no f"),
        ("Config", "not now"), ("half", r"num_layers: 2\.5 must be a whole number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            find(f"{path}:{function}")
        monkeypatch.chdir(tmp_path)  # from which Config went away
    with pytest.raises(InputError) as refused:
        find(str(path))
    assert refused.value.hint == f"write {path}:FUNCTION, the one that returns the model's shape"
    said = capsys.readouterr()
    assert (said.out, "to whom it may concern" in said.err) == ("", True)  # an answer may be JSON
    assert str(tmp_path) not in sys.path
    with pytest.raises(InputError, match="no file"):
        find(f"{tmp_path}/other.py:shape")


def test_an_installed_package_brings_models_by_an_entry_point(tmp_path, monkeypatch):
    # What pip would leave: a module, and its metadata.
    (tmp_path / "my_models.py").write_text(
        "from dataclasses import replace\nfrom scaling.registry import MODELS, Entry\n"
        "entry = Entry(shape=replace(MODELS['gpt-demo'].shape, name='my-gpt'), source='mine')\n"
        "again = Entry(shape=MODELS['gpt2'].shape, source='mine')\n"
    )
    metadata = tmp_path / "my_models-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-models\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[scaling.models]\nmine = my_models:entry\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("my-gpt").source == "mine"
    (metadata / "entry_points.txt").write_text("[scaling.models]\nmine = my_models:again\n")
    with pytest.raises(InputError, match="there is already"):
        find("my-gpt")


def test_a_recipe_names_ones_own_model_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch, planned_recipe):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_LLAMA))
    monkeypatch.chdir(tmp_path)
    recipe = planned_recipe(find("gpt-demo").shape, seq_length=64).model_dump() | {"model": "hf:mine"}
    from scaling.recipe import validated

    assert validated(recipe).model == f"hf:{Path(folder)}"
