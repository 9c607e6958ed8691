"""Stack profiles: what a file may say, and the counted kernels against what torch really saves."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scaling.cost import Job, memory
from scaling.cost.activations import activations
from scaling.cost.profile import PROFILES, find_profile, load_profile
from scaling.errors import InputError
from scaling.shape import Shape
from scaling.strategy import Strategy
from scaling.units import GIB

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


def _saved_bytes(shape, num_layers, attention):
    """What autograd keeps of a forward of transformers' own model in bf16, parameters apart; storages counted once."""
    config = LlamaConfig(
        num_hidden_layers=num_layers, hidden_size=shape.hidden_size, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, max_position_embeddings=_T, attn_implementation=attention, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}  # address -> the tensor, kept alive so that no address is given out twice

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.zeros(_B, _T, dtype=torch.long))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters)


@pytest.mark.parametrize(
    ("attention", "implementation", "kv_heads"), [("flash", "sdpa", 8), ("flash", "sdpa", 2), ("eager", "eager", 8)]
)
def test_the_counted_layer_of_transformers_is_what_torch_saves(attention, implementation, kv_heads):
    # "transformers-bf16: counted kernels". Two layers' saved bytes less one's, so that embedding, final norm and head
    # fall away; 1 % covers the norms' statistics and the log-sum-exp, which are left out.
    shape = replace(_TINY_LLAMA, num_key_value_heads=kv_heads)
    measured = _saved_bytes(shape, 2, implementation) - _saved_bytes(shape, 1, implementation)
    job = Job(shape=shape, seq_length=_T, precision="bf16", attention=attention)
    _, counted, _, _ = activations(job, _strategy(), PROFILES["transformers-bf16"])
    assert counted == pytest.approx(measured, rel=0.01)


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
