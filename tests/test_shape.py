"""Parameters and FLOPs of a shape, counted twice: here in closed form, there by transformers and torch."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from scaling.errors import InputError
from scaling.family import FAMILIES
from scaling.models.build import build
from scaling.registry import MODELS
from scaling.shape import TARGET_FRACTION, Shape


def _real_num_params(shape):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(shape).parameters())


@pytest.mark.parametrize("name", MODELS)
def test_num_params_is_that_of_the_transformers_model(name):
    assert MODELS[name].shape.num_params == _real_num_params(MODELS[name].shape)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vit"])
def test_num_params_is_that_of_the_transformers_model_when_no_two_dimensions_are_alike(family):
    # Every dimension its own prime factor, so that one taken for another shows; a rotary head is even.
    shape = Shape(
        name="odd", family=family, num_layers=3, hidden_size=70, num_attention_heads=5, intermediate_size=11,
        vocab_size=13, max_position_embeddings=17,
        num_decoder_layers=23 if FAMILIES[family].kind == "encoder-decoder" else None,
        num_experts=19 if family == "mixtral" else 1, experts_per_token=2 if family == "mixtral" else 1,
    )  # fmt: skip
    assert shape.num_params == _real_num_params(shape)
    assert shape.head_dim == 14


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # As transformers' classes count the checkpoints on the hub, tied weights once: GPT2LMHeadModel on
        # openai-community/gpt2*, BertForMaskedLM on google-bert/bert-*-uncased, and so on by the entries' sources.
        ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200),
        ("bert-base", 109_514_298), ("bert-large", 335_174_458),
        ("roberta-base", 124_697_433), ("roberta-large", 355_412_057),
        ("modernbert-base", 149_655_232), ("modernbert-large", 395_881_664),
        # Black et al. 2022, section 2: 20,554,567,680 parameters; Biderman et al. 2023, table 1.
        ("gpt-neox-20b", 20_554_567_680), ("pythia-70m", 70_426_624), ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016), ("pythia-1b", 1_011_781_632), ("pythia-1.4b", 1_414_647_808),
        ("pythia-2.8b", 2_775_208_960), ("pythia-6.9b", 6_857_302_016), ("pythia-12b", 11_846_072_320),
        ("opt-125m", 125_239_296), ("opt-1.3b", 1_315_758_080), ("opt-6.7b", 6_658_473_984),
        ("opt-30b", 29_974_540_288),
        ("llama-7b", 6_738_415_616), ("llama-13b", 13_015_864_320), ("llama-33b", 32_528_943_616),
        ("llama-65b", 65_285_660_672), ("llama-2-70b", 68_976_648_192), ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496), ("llama-3.1-405b", 405_853_388_800), ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824), ("tinyllama-1.1b", 1_100_048_384),
        ("mistral-7b-v0.3", 7_248_023_552), ("mixtral-8x7b", 46_702_792_704), ("mixtral-8x22b", 140_620_634_112),
        ("qwen2-0.5b", 494_032_768), ("qwen2-1.5b", 1_543_714_304), ("qwen2-7b", 7_615_616_512),
        ("qwen2-72b", 72_706_203_648), ("qwen2.5-3b", 3_085_938_688), ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352), ("qwen3-0.6b", 596_049_920), ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096), ("qwen3-8b", 8_190_735_360), ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("t5-small", 60_506_624), ("t5-base", 222_903_552), ("t5-large", 737_668_096), ("t5-3b", 2_851_598_336),
        ("t5-11b", 11_307_321_344), ("t5-v1.1-small", 76_961_152), ("t5-v1.1-base", 247_577_856),
        ("t5-v1.1-large", 783_150_080), ("t5-v1.1-xl", 2_849_757_184), ("t5-v1.1-xxl", 11_135_332_352),
        ("bart-base", 139_420_416), ("bart-large", 406_291_456),
        ("vit-base-16", 86_567_656), ("vit-large-16", 304_326_632), ("vit-huge-14", 632_045_800),
    ],
)  # fmt: skip
def test_num_params_is_the_published_count(name, published):
    assert MODELS[name].shape.num_params == published


def _llama(layers, hidden, heads, kv_heads, ffn, vocab, *, tied=False):
    return Shape(
        name="llama", family="llama", num_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=128,
        tied_embeddings=tied,
    )  # fmt: skip


def _llama_model(shape, **more):
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            intermediate_size=shape.intermediate_size,
            vocab_size=shape.vocab_size,
            max_position_embeddings=shape.max_position_embeddings,
            tie_word_embeddings=shape.tied_embeddings,
            use_cache=False,
            **more,
        )
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "dimensions",
    [
        (3, 42, 3, 3, 11, 13),  # every dimension its own prime factor, so that one taken for another shows
        (3, 70, 5, 1, 11, 13),  # one key-value head for all
        (2, 96, 6, 2, 40, 17),  # grouped queries
        (32, 4096, 32, 8, 14_336, 128_256),  # meta-llama/Meta-Llama-3-8B
        (16, 2048, 32, 8, 8192, 128_256),  # meta-llama/Llama-3.2-1B
    ],
)
def test_num_params_of_a_llama_is_that_of_the_transformers_model(dimensions, tied):
    shape = _llama(*dimensions, tied=tied)
    with torch.device("meta"):
        real = sum(parameter.numel() for parameter in _llama_model(shape).parameters())
    assert shape.num_params == sum(shape.params_by_part.values()) == real


@pytest.mark.parametrize(
    ("dimensions", "published"),
    [
        # The total of model.safetensors.index.json, halved (bf16), or as counted by transformers: meta-llama's
        # Meta-Llama-3-8B, Meta-Llama-3-70B and Llama-2-7b-hf; TinyLlama/TinyLlama-1.1B-Chat-v1.0.
        ((32, 4096, 32, 8, 14_336, 128_256), 8_030_261_248),
        ((80, 8192, 64, 8, 28_672, 128_256), 70_553_706_496),
        ((32, 4096, 32, 32, 11_008, 32_000), 6_738_415_616),
        ((22, 2048, 32, 4, 5632, 32_000), 1_100_048_384),
    ],
)
def test_num_params_of_a_llama_is_the_published_count(dimensions, published):
    assert _llama(*dimensions).num_params == published


def test_a_llama_without_key_value_heads_has_as_many_as_heads_an_untied_head_and_a_gated_mlp():
    # transformers' LlamaConfig: num_key_value_heads=None means num_attention_heads; tie_word_embeddings=False.
    shape = replace(_llama(2, 64, 4, 2, 96, 50), num_key_value_heads=0, gated_mlp=None, tied_embeddings=None)
    assert (shape.num_key_value_heads, shape.gated_mlp, shape.tied_embeddings) == (4, True, False)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_flops_per_token_of_a_llama_is_what_torch_counts_over_forward_and_backward(kv_heads):
    # As for gpt2 and bert below: to the last FLOP. Shared keys are expanded before the matmuls, so they cost as many.
    shape, batch, seq_length = _llama(2, 48, 4, kv_heads, 80, 50), 3, 32
    model = _llama_model(shape, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(batch, seq_length, dtype=torch.long)).logits.sum().backward()
    assert shape.flops_per_token(seq_length) * batch * seq_length == counter.get_total_flops()


def _mixture(layers, hidden, heads, kv_heads, ffn, vocab, experts, top_k):
    return replace(_llama(layers, hidden, heads, kv_heads, ffn, vocab), num_experts=experts, experts_per_token=top_k)


def _mixtral_model(shape, **more):
    return MixtralForCausalLM(
        MixtralConfig(
            num_hidden_layers=shape.num_layers,
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            intermediate_size=shape.intermediate_size,
            num_local_experts=shape.num_experts,
            num_experts_per_tok=shape.experts_per_token,
            vocab_size=shape.vocab_size,
            max_position_embeddings=shape.max_position_embeddings,
            use_cache=False,
            **more,
        )
    )


@pytest.mark.parametrize(
    "dimensions",
    [
        (3, 42, 3, 3, 11, 13, 5, 2),  # every dimension its own prime factor
        (2, 96, 6, 2, 40, 17, 8, 1),
        (32, 4096, 32, 8, 14_336, 32_000, 8, 2),  # mistralai/Mixtral-8x7B-v0.1
    ],
)
def test_a_mixture_of_experts_has_the_parameters_of_transformers_mixtral(dimensions):
    shape = _mixture(*dimensions)
    with torch.device("meta"):
        model = _mixtral_model(shape)
    layer = model.model.layers[0]
    assert shape.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer_params == sum(parameter.numel() for parameter in layer.parameters())
    experts = sum(parameter.numel() for parameter in layer.mlp.experts.parameters())
    assert shape.num_experts * shape.expert_params == experts
    assert shape.router_params == sum(parameter.numel() for parameter in layer.mlp.gate.parameters())


def test_mixtral_8x7b_has_the_published_sizes():
    # Jiang et al. 2024 (arXiv 2401.04088), section 2.1: 47B parameters, of which a token meets 13B.
    shape = _mixture(32, 4096, 32, 8, 14_336, 32_000, 8, 2)
    active = shape.num_params - shape.num_layers * (shape.num_experts - shape.experts_per_token) * shape.expert_params
    assert (round(shape.num_params / 1e9), round(active / 1e9)) == (47, 13)
    # Six FLOPs for each of them but the embedding, which is looked up.
    assert shape.flops_per_token(0) == pytest.approx(6 * (active - 32_000 * 4096), rel=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_flops_per_token_of_a_mixture_is_what_torch_counts_over_forward_and_backward(top_k):
    # To the last FLOP: every token goes to top_k experts, whichever they are, and each has its router's.
    shape, batch, seq_length = _mixture(2, 48, 4, 2, 80, 50, 4, top_k), 3, 32
    model = _mixtral_model(shape, attn_implementation="eager", experts_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(batch * seq_length).view(batch, -1) % 50).logits.sum().backward()
    assert shape.flops_per_token(seq_length) * batch * seq_length == counter.get_total_flops()


@pytest.mark.parametrize(
    ("dimensions", "head_dim"),
    [
        ((3, 42, 3, 3, 11, 13), 34),
        ((2, 96, 6, 2, 40, 17), 64),
        ((64, 5120, 64, 8, 25_600, 151_936), 128),  # Qwen/Qwen3-32B, its norms of queries and keys apart
    ],
)
def test_a_head_dim_of_its_own_is_that_of_the_transformers_model(dimensions, head_dim):
    shape = replace(_llama(*dimensions), explicit_head_dim=head_dim)
    with torch.device("meta"):
        model = _llama_model(shape, head_dim=head_dim)
    assert shape.head_dim == head_dim
    assert shape.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert shape.layer_params == sum(parameter.numel() for parameter in model.model.layers[0].parameters())


def test_flops_per_token_with_a_head_dim_of_its_own_is_what_torch_counts():
    shape, batch, seq_length = replace(_llama(2, 48, 4, 2, 80, 50), explicit_head_dim=20), 3, 32
    model = _llama_model(shape, attn_implementation="eager", head_dim=20)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(batch, seq_length, dtype=torch.long)).logits.sum().backward()
    assert shape.flops_per_token(seq_length) * batch * seq_length == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "billions"),
    # Brown et al. 2020, table 2.1, as printed, in billions.
    [
        ("gpt3-125m", 0.125), ("gpt3-350m", 0.350), ("gpt3-760m", 0.760), ("gpt3-1.3b", 1.3), ("gpt3-2.7b", 2.7),
        ("gpt3-6.7b", 6.7), ("gpt3-13b", 13.0), ("gpt3-175b", 175.0),
    ],
)  # fmt: skip
def test_a_gpt3_shape_has_the_size_that_the_paper_prints(name, billions):
    # The paper rounds to two or three digits; 2.7B is 2.65B here, the furthest.
    assert MODELS[name].shape.num_params / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_all_the_parameters_and_the_largest_module_is_one_of_them(name):
    shape = MODELS[name].shape
    assert sum(shape.params_by_part.values()) == shape.num_params
    layers = max(shape.layer_params, shape.decoder_layer_params if shape.num_decoder_layers else 0)
    assert shape.largest_layer_params == max(shape.vocab_size * shape.hidden_size, layers)
    without_a_norm = shape.hidden_size if shape.family == "modernbert" else 0  # in its first layer
    assert shape.layer_params * shape.num_layers - without_a_norm == shape.params_by_part["layers"]


@pytest.mark.parametrize("name", ["gpt-demo", "bert-demo"])
@pytest.mark.parametrize("seq_length", [32, 96])
def test_flops_per_token_is_what_torch_counts_over_forward_and_backward(name, seq_length):
    # Eager attention computes the whole T x T square, as the convention of PaLM counts it. torch counts matmuls only,
    # and this convention is all matmuls: the two agree to the last FLOP.
    shape = replace(MODELS[name].shape, num_layers=2, hidden_size=48, num_attention_heads=4, intermediate_size=80)
    model = build(shape)
    model.set_attn_implementation("eager")
    batch = 3
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(batch, seq_length, dtype=torch.long)).logits.sum().backward()
    assert shape.flops_per_token(seq_length) * batch * seq_length == counter.get_total_flops()


def _tiny(family):
    more = {
        "mixtral": {"num_key_value_heads": 2, "num_experts": 4, "experts_per_token": 2},
        "qwen3": {"num_key_value_heads": 2, "explicit_head_dim": 20},
        "t5": {"explicit_head_dim": 20},
        "vit": {"image_size": 28, "patch_size": 4, "num_channels": 3, "max_position_embeddings": 50},
    }.get(family, {})
    return Shape(**{
        "name": "tiny", "family": family, "num_layers": 2, "hidden_size": 48, "num_attention_heads": 4,
        "intermediate_size": 80, "vocab_size": 96, "max_position_embeddings": 64, **more,
    })  # fmt: skip


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2", "bert", "llama", "mixtral", "mistral"}))
def test_flops_per_token_of_every_family_is_what_torch_counts_over_forward_and_backward(family):
    # As above, to the last FLOP; the tokens are the encoder's, and the decoder has a quarter as many.
    shape, batch, seq_length = _tiny(family), 3, 32
    model = build(shape)
    model.set_attn_implementation("eager")
    inputs = {"input_ids": torch.ones(batch, seq_length, dtype=torch.long)}
    if shape.num_decoder_layers:
        inputs["decoder_input_ids"] = torch.ones(batch, int(seq_length * TARGET_FRACTION), dtype=torch.long)
    if shape.traits.kind == "vision":
        inputs, seq_length = {"pixel_values": torch.zeros(batch, 3, 28, 28)}, 50
    with FlopCounterMode(display=False) as counter:
        model(**inputs).logits.sum().backward()
    assert shape.flops_per_token(seq_length) * batch * seq_length == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_only_the_predicted_share_of_positions_pays_for_the_head():
    # BERT-base at 512 tokens: the head is D^2 + V D = 24.0M of 109.0M matmul weights (Devlin et al. 2018).
    shape = MODELS["bert-base"].shape
    whole, none = shape.flops_per_token(512), shape.flops_per_token(512, predicted_fraction=0.0)
    assert whole - none == 6 * (768 * 768 + 30_522 * 768)
    assert shape.flops_per_token(512, predicted_fraction=0.15) == pytest.approx(none + 0.15 * (whole - none))


_RIGHT = dict(
    name="x", family="gpt2", num_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=256,
    vocab_size=100, max_position_embeddings=32,
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "mamba"), ("num_layers", 0), ("hidden_size", 0), ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("num_attention_heads", 128), ("intermediate_size", -1), ("vocab_size", 0), ("max_position_embeddings", 0),
        ("num_key_value_heads", 3), ("num_key_value_heads", -1), ("num_experts", 0), ("experts_per_token", 0),
        ("experts_per_token", 2), ("explicit_head_dim", 0), ("explicit_head_dim", -8),
    ],
)  # fmt: skip
def test_a_shape_that_no_model_has_cannot_be_built(field, value):
    with pytest.raises(InputError) as caught:
        Shape(**{**_RIGHT, field: value})
    assert caught.value.field == f"model.{field}"
