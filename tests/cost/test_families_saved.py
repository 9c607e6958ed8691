"""What a layer of each family keeps for its backward, counted here and saved there by torch, of transformers' class."""

from dataclasses import replace

import pytest
import torch

from scaling.cost.activations import activations
from scaling.cost.job import Job
from scaling.family import FAMILIES
from scaling.models import WithLoss, build
from scaling.shape import Shape
from scaling.strategy import Strategy

_B, _T = 2, 128
_STRATEGY = Strategy(
    zero_stage=0, offload_optimizer="none", data_parallel_size=1, micro_batch_size=_B, gradient_accumulation_steps=1,
    activation_checkpointing="none", reduce_bucket_size=1000, allgather_bucket_size=1000,
)  # fmt: skip
_MORE = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_experts": 4, "experts_per_token": 2},
    "vit": {"image_size": 60, "patch_size": 4, "num_channels": 3, "max_position_embeddings": 226},
}


def _shape(family, layers):
    return Shape(**{
        "name": "x", "family": family, "num_layers": layers, "hidden_size": 128, "num_attention_heads": 4,
        "intermediate_size": 416, "vocab_size": 384, "max_position_embeddings": 256, **_MORE.get(family, {}),
    })  # fmt: skip


def _saved_bytes(shape, dtype):
    """What autograd keeps of a forward with its loss, parameters apart; storages counted once."""
    model = WithLoss(build(shape).to(dtype))
    ids = torch.arange(_B * _T).view(_B, _T) % 300 + 3
    inputs = {"input_ids": ids, "labels": ids}
    if shape.traits.kind == "vision":
        inputs = {"pixel_values": torch.zeros(_B, 3, 60, 60, dtype=dtype), "labels": torch.zeros(_B, dtype=torch.long)}
    elif shape.num_decoder_layers:
        target = ids[:, : _T // 4].contiguous()
        inputs = {"input_ids": ids, "decoder_input_ids": target, "labels": target}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}  # address -> the tensor, kept alive so that no address is given out twice

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_layer_of_every_family_keeps_what_is_counted(family, precision):
    # Six layers more; 5 % covers norm statistics, log-sum-exps and a router's indices, which are left out.
    few, many = _shape(family, 2), _shape(family, 8)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    measured = _saved_bytes(many, dtype) - _saved_bytes(few, dtype)
    length = few.max_position_embeddings if few.traits.kind == "vision" else _T
    share = 0.25 if few.num_decoder_layers else 1.0
    job = Job(shape=few, seq_length=length, precision=precision, predicted_fraction=share)
    counted = [activations(replace(job, shape=shape), _STRATEGY)[0] for shape in (many, few)]
    assert counted[0] - counted[1] == pytest.approx(measured, rel=0.05)
