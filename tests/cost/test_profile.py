"""Stack profiles: what a file may say, and the counted kernels against what torch really saves."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scaling import models
from scaling.cost import Job, memory
from scaling.cost.activations import activations
from scaling.cost.job import Adapter
from scaling.cost.profile import PROFILES, find_profile, load_profile
from scaling.errors import InputError
from scaling.family import FAMILIES
from scaling.shape import Shape
from scaling.strategy import Strategy
from scaling.units import GIB
from tests.parallel.families import shape_of

_B, _T = 2, 128
_TINY_LLAMA = Shape(
    name="tiny", family="llama", num_layers=1, hidden_size=256, num_attention_heads=8, num_key_value_heads=8,
    intermediate_size=704, vocab_size=64, max_position_embeddings=_T,
)  # fmt: skip


def _strategy(**changes):
    fields = {
        "zero_stage": 0, "offload_optimizer": "none", "data_parallel_size": 1, "micro_batch_size": _B,
        "gradient_accumulation_steps": 1, "activation_checkpointing": "none", "reduce_bucket_size": 1000,
        "allgather_bucket_size": 1000,
    }  # fmt: skip
    return Strategy(**{**fields, **changes})


def _model(shape, num_layers, attention):
    """transformers' own Llama or Mixtral of `shape` in bf16."""
    dimensions = dict(
        num_hidden_layers=num_layers, hidden_size=shape.hidden_size, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, max_position_embeddings=_T, attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    if shape.num_experts == 1:
        return LlamaForCausalLM(LlamaConfig(**dimensions)).to(torch.bfloat16)
    experts = dict(num_local_experts=shape.num_experts, num_experts_per_tok=shape.experts_per_token)
    config = MixtralConfig(**dimensions, **experts, experts_implementation="eager")
    return MixtralForCausalLM(config).to(torch.bfloat16)


def _saved_bytes(model, **inputs):
    """What autograd keeps of a forward of `model`, parameters apart; storages counted once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    inputs = inputs or {"input_ids": torch.arange(_B * _T).view(_B, _T) % model.config.vocab_size}
    kept = {}  # address -> the tensor, kept alive so that no address is given out twice

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters)


def _layer_bytes(shape, attention="sdpa", change=lambda model: None):
    """Two layers' saved bytes less one's, so that embedding, final norm and head fall away."""
    found = []
    for num_layers in (2, 1):
        torch.manual_seed(0)
        model = _model(shape, num_layers, attention)
        change(model)
        found.append(_saved_bytes(model))
    return found[0] - found[1]


@pytest.mark.parametrize(
    ("attention", "implementation", "kv_heads"), [("flash", "sdpa", 8), ("flash", "sdpa", 2), ("eager", "eager", 8)]
)
def test_the_counted_layer_of_transformers_is_what_torch_saves(attention, implementation, kv_heads):
    # "transformers-bf16: counted kernels". 1 % covers the norms' statistics and the log-sum-exp, which are left out.
    shape = replace(_TINY_LLAMA, num_key_value_heads=kv_heads)
    measured = _layer_bytes(shape, implementation)
    job = Job(shape=shape, seq_length=_T, precision="bf16", attention=attention)
    _, counted, _, _ = activations(job, _strategy(), PROFILES["transformers-bf16"])
    assert counted == pytest.approx(measured, rel=0.01)


def _counted(shape, profile=PROFILES["transformers-bf16"], **job):
    return activations(Job(shape=shape, seq_length=_T, precision="bf16", **job), _strategy(), profile)[1]


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_counted_mixture_of_experts_is_what_torch_saves_of_mixtral(top_k):
    # Each of a token's experts: the token's copy, gate and up, silu(gate), the product, the expert's output. 1 % covers
    # the router's probabilities and the tokens' indices besides. index_add, by which transformers sums them, keeps its
    # source as well, though for its shape only (torch 2, derivatives.yaml); fused kernels have no such copy.
    shape = replace(_TINY_LLAMA, num_experts=4, experts_per_token=top_k)
    sources = _B * _T * top_k * shape.hidden_size * 2
    assert _counted(shape) + sources == pytest.approx(_layer_bytes(shape), rel=0.01)


def test_keys_and_values_that_are_repeated_for_every_query_head_are_saved_so():
    # litgpt expands them before the kernel: model.py, CausalSelfAttention, `k = k.expand(*q.shape)`.
    def repeated(module, query, key, value, attention_mask, **_):
        key, value = (one.repeat_interleave(module.num_key_value_groups, dim=1) for one in (key, value))
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return found.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("repeated", repeated)
    shape = replace(_TINY_LLAMA, num_key_value_heads=2)
    measured = _layer_bytes(shape, "repeated")
    counted = _counted(shape, replace(PROFILES["transformers-bf16"], repeats_keys=True))
    assert counted == pytest.approx(measured, rel=0.01)
    assert counted - _counted(shape) == _B * _T * 2 * (256 - 64) * 2  # keys and values of 8 heads instead of 2


def _inputs(shape, dtype):
    if shape.traits.kind == "vision":
        size = shape.image_size
        return {"pixel_values": torch.ones(_B, shape.num_channels, size, size, dtype=dtype)}
    ids = torch.arange(_B * shape.max_position_embeddings).view(_B, -1)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if shape.num_decoder_layers else {})


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_dropout_keeps_on_a_cpu_is_what_torch_saves(family, precision):
    def kept(num_layers, dropout):
        """(counted, measured)"""
        shape = shape_of(family)
        layers = {name: num_layers for name in ("num_layers", "num_decoder_layers") if getattr(shape, name)}
        shape = replace(shape, **layers)
        length = shape.max_position_embeddings
        job = Job(shape=shape, seq_length=length, precision=precision, dropout=dropout, on_cpu=True)
        model = models.build(shape, dropout=dropout).to(torch.bfloat16 if precision == "bf16" else torch.float32)
        return activations(job, _strategy())[0], _saved_bytes(model, **_inputs(shape, model.dtype))

    # Of the second layer, so that embeddings and the head fall away; dropped, and not.
    kinds = zip(kept(2, 0.1), kept(1, 0.1), kept(2, 0.0), kept(1, 0.0), strict=True)
    counted, measured = (two_dropped - dropped - (two - one) for two_dropped, dropped, two, one in kinds)
    # 5 % is for ModernBERT, whose windows' masks go; of the others none is 3 % off.
    assert counted == pytest.approx(measured, rel=0.05)


def test_a_gated_t5_keeps_what_the_operations_of_its_gelu_make():
    def kept(num_layers):
        """(counted, measured)"""
        shape = shape_of("t5", gated_mlp=True, num_layers=num_layers, num_decoder_layers=num_layers)
        job = Job(shape=shape, seq_length=shape.max_position_embeddings, precision="bf16", on_cpu=True)
        model = models.build(shape).to(torch.bfloat16)
        return activations(job, _strategy())[0], _saved_bytes(model, **_inputs(shape, model.dtype))

    counted, measured = (two - one for two, one in zip(kept(2), kept(1), strict=True))
    assert counted == pytest.approx(measured, rel=0.03)


class _Lora(torch.nn.Module):
    """W x + B A dropout(x), W frozen (Hu et al. 2021, section 4.1), with the GPU's dropout, whose mask is a byte."""

    def __init__(self, frozen, rank, dropout):
        super().__init__()
        self.frozen, self.dropout = frozen, dropout
        self.a = torch.nn.Linear(frozen.in_features, rank, bias=False, dtype=torch.bfloat16)
        self.b = torch.nn.Linear(rank, frozen.out_features, bias=False, dtype=torch.bfloat16)

    def forward(self, x):
        dropped = torch.native_dropout(x, self.dropout, True)[0] if self.dropout else x
        return self.frozen(x) + self.b(self.a(dropped))


_PROJECTIONS = {
    "query": ["self_attn.q_proj"], "key": ["self_attn.k_proj"], "value": ["self_attn.v_proj"],
    "output": ["self_attn.o_proj"], "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
}  # fmt: skip


def _with_adapters(adapter):
    def change(model):
        model.requires_grad_(False)
        model.enable_input_require_grads()  # as any but the first layer's are
        for layer in model.model.layers:
            for target in adapter.targets:
                for path in _PROJECTIONS[target]:
                    frozen = layer.get_submodule(path)
                    layer.set_submodule(path, _Lora(frozen, adapter.rank, adapter.dropout))

    return change


_TARGETS = [("query",), ("query", "value"), ("output",), ("mlp",), ("query", "key", "value", "output", "mlp")]


@pytest.mark.parametrize("targets", _TARGETS, ids=lambda targets: "+".join(targets))
def test_a_frozen_layer_with_adapters_saves_what_torch_saves_of_it(targets):
    # 3 % covers what is left out: an adapter's own r elements a token and, of the norms, their statistics.
    adapter = Adapter(rank=1, targets=frozenset(targets))
    measured = _layer_bytes(_TINY_LLAMA, change=_with_adapters(adapter))
    assert _counted(_TINY_LLAMA, adapter=adapter) == pytest.approx(measured, rel=0.03)
    assert _counted(_TINY_LLAMA, adapter=adapter) < _counted(_TINY_LLAMA)


# With dropout query, key and value share theirs, as in litgpt, whose adapters know them as one matrix.
_SINGLE = [("query",), ("output",), ("mlp",), ("query", "output", "mlp")]


@pytest.mark.parametrize("targets", _SINGLE, ids=lambda targets: "+".join(targets))
def test_an_adapters_dropout_keeps_a_copy_of_its_input_and_a_mask(targets):
    adapter = Adapter(rank=1, targets=frozenset(targets), dropout=0.1)
    measured = _layer_bytes(_TINY_LLAMA, change=_with_adapters(adapter))
    assert _counted(_TINY_LLAMA, adapter=adapter) == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("targets", _TARGETS, ids=lambda targets: "+".join(targets))
def test_an_adapters_parameters_are_those_of_its_matrices(targets):
    adapter = Adapter(rank=4, targets=frozenset(targets))
    shape = replace(_TINY_LLAMA, num_layers=3, num_key_value_heads=2)
    model = _model(shape, 3, "sdpa")
    _with_adapters(adapter)(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter.params(shape) == trained


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_found_by_its_name_and_says_where_it_comes_from(name):
    assert find_profile(name).name == name
    assert len(PROFILES[name].provenance) > 20


def test_an_unknown_profile_is_an_error_with_the_closest_name():
    with pytest.raises(InputError, match="nanotorn") as caught:
        find_profile("nanotorn")
    assert caught.value.hint == "did you mean 'nanotron'?"


@pytest.mark.parametrize(
    ("name", "bytes_per_parameter"),
    [
        # Parameters + gradients + optimizer of a 16-bit run on one rank, one micro step.
        ("deepspeed", 16),  # Rajbhandari et al. 2020, section 3.1: 2 + 2 + 12
        ("megatron-core", 18),  # Megatron-LM README, "distributed optimizer": 18 with fp32 gradients
        ("torchtitan", 16),  # fp32 parameters, gradients and two moments
        ("llm-foundry", 16),
        ("torchtune", 8),  # all in bf16: 2 + 2 + 2 + 2
        ("litgpt", 8),
        ("transformers-amp", 18),  # Hugging Face, "Model training anatomy": 6 + 4 + 8
        ("transformers", 16),  # the same page in fp32: 4 + 4 + 8
    ],
)
def test_model_states_per_parameter_are_those_that_each_stack_documents(name, bytes_per_parameter, cluster_like):
    job = Job(shape=_TINY_LLAMA, seq_length=_T, precision="fp32" if name == "transformers" else "bf16")
    found = memory(job, _strategy(), cluster_like(gpus=1), PROFILES[name])
    states = found.parameters_bytes + found.optimizer_bytes
    # The gradients at the end of the backward, whichever moment the peak is.
    gradients = found.moments["optimizer_step"] - states - (PROFILES[name].constant_bytes)
    assert (states + gradients) / _TINY_LLAMA.num_params == pytest.approx(bytes_per_parameter, rel=1e-6)


_FITTED = ("cut", "uncut", "score_bytes", "logit_bytes", "constant_bytes")


@pytest.mark.parametrize("coefficient", _FITTED)
@pytest.mark.parametrize("name", PROFILES)
def test_every_coefficient_that_calibration_fits_moves_the_estimate(name, coefficient, cluster_like):
    # A long sequence and an eager layer, so that activations are the peak; many logits.
    shape = replace(_TINY_LLAMA, vocab_size=50_000, num_layers=8, max_position_embeddings=8192)
    job = Job(shape=shape, seq_length=8192, precision="bf16", attention="eager")
    profile = PROFILES[name]
    value = getattr(profile, coefficient)
    larger = replace(profile, **{coefficient: value + (GIB if coefficient == "constant_bytes" else 1.0)})

    def moment(of):
        return memory(job, _strategy(), cluster_like(gpus=1), of).moments["loss"]

    assert moment(larger) > moment(profile)


def _written(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_file_changes_the_named_coefficients_and_no_others(tmp_path):
    document = {"stack": "nanotron", "coefficients": {"cut": 1.5, "constant_bytes": 2**30}, "rows": 3}
    found = load_profile(_written(tmp_path / "profile.json", document))
    expected = replace(PROFILES["nanotron"], cut=1.5, constant_bytes=2**30, provenance=found.provenance)
    assert found == expected
    assert "profile.json" in found.provenance


def test_a_file_without_coefficients_is_the_shipped_profile(tmp_path):
    found = load_profile(_written(tmp_path / "profile.json", {"stack": "litgpt", "coefficients": {}}))
    assert replace(found, provenance="") == replace(PROFILES["litgpt"], provenance="")


def _with(**coefficients):
    return {"stack": "deepspeed", "coefficients": coefficients}


BROKEN = {
    "empty": "",
    "not JSON": "{cut: 1}",
    "a list": [],
    "a number": 3,
    "null": None,
    "no stack": {"coefficients": {}},
    "no coefficients": {"stack": "deepspeed"},
    "an unknown stack": {"stack": "deepsped", "coefficients": {}},
    "a stack that is no name": {"stack": ["deepspeed"], "coefficients": {}},
    "coefficients that are a list": {"stack": "deepspeed", "coefficients": []},
    "an unknown coefficient": _with(cutt=1.0),
    "a field that is no number": _with(name=1.0),
    "a negative coefficient": _with(cut=-0.1),
    "a string": _with(cut="1.0"),
    "null for a coefficient": _with(cut=None),
    "a list for a coefficient": _with(cut=[1.0]),
    "true for a coefficient": _with(cut=True),
    "NaN": '{"stack": "deepspeed", "coefficients": {"cut": NaN}}',
    "infinity": '{"stack": "deepspeed", "coefficients": {"cut": Infinity}}',
    "a number beyond floats": '{"stack": "deepspeed", "coefficients": {"logit_bytes": 1e999}}',
}


@pytest.mark.parametrize("document", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_is_an_input_error_that_names_profile(tmp_path, document):
    with pytest.raises(InputError) as caught:
        load_profile(_written(tmp_path / "profile.json", document))
    assert caught.value.field == "profile"


def test_all_impossible_coefficients_are_named(tmp_path):
    with pytest.raises(InputError) as caught:
        load_profile(_written(tmp_path / "profile.json", _with(cutt=1.0, uncut=-1.0, logit_bytes=3.0)))
    assert "cutt, uncut" in caught.value.message
    assert "logit_bytes" not in caught.value.message
