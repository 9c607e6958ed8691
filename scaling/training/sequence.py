"""Sequence parallelism: each rank has a slice of every sequence, and around attention trades it for some of the heads.

DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509), by DeepSpeed's own all-to-all. DeepSpeed's wrapper for
transformers (0.19.8, runtime/sequence_parallel/ulysses_sp.py) wants key-value heads in a configuration, position
ids at every attention, one micro batch size and no masks, which of our families those like Llama alone give; so the
attention is registered here.

Alphabet: B batch, T sequence, S the ranks that share one, N heads, K key-value heads, H head dim.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.sequence.layer import _dim_zero_all_to_all, register_all_to_all_group
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from scaling.strategy import Strategy
from scaling.training.ranks import place_of

_NAME = "ulysses"


def split(model: PreTrainedModel, strategy: Strategy) -> Any:
    """Has the attention of `model` see whole sequences; the mpu for deepspeed.initialize. All ranks call it.

    A rank is to be given its slice of each sequence, and the positions of that (`slice_of`).
    """
    group, mpu = _groups(strategy)
    register_all_to_all_group(group)
    AttentionInterface.register(_NAME, partial(_attention, group))
    AttentionMaskInterface.register(_NAME, partial(_whole_mask, strategy.sequence_parallel_size))
    model.config._attn_implementation = _NAME
    return mpu


def slice_of(batch: dict[str, torch.Tensor], rank: int, strategy: Strategy, family: str) -> dict[str, torch.Tensor]:
    """The part of a batch's sequences [B, T] that is `rank`'s, with the positions of its tokens [B, T / S]."""
    size, number, ids_BT = strategy.sequence_parallel_size, place_of(rank, strategy).sequence, batch["input_ids"]
    if family == "roberta":  # which counts what is not padding
        positions_BT = RobertaEmbeddings.create_position_ids_from_input_ids(ids_BT, padding_idx=1)
    else:
        positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    whole = batch | {"position_ids": positions_BT}
    return {name: tensor_BT.chunk(size, dim=1)[number].contiguous() for name, tensor_BT in whole.items()}


def _attention(
    group: Any, module: Any, query_BNTH: Any, key_BKTH: Any, value_BKTH: Any, attention_mask: Any, **rest: Any
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention: slices of T / S in and out, whole sequences of N / S heads in between."""
    whole = [_exchanged(group, tensor, cut=1, joined=2) for tensor in (query_BNTH, key_BKTH, value_BKTH)]
    out_BTNH, _ = sdpa_attention_forward(module, *whole, attention_mask, **rest)
    return _exchanged(group, out_BTNH, cut=1, joined=2), None


def _exchanged(group: Any, tensor: torch.Tensor, *, cut: int, joined: int) -> torch.Tensor:
    """`tensor` with dimension `cut` divided over the ranks of `group` and dimension `joined` put together from them."""
    parts = torch.stack(tensor.chunk(dist.get_world_size(group), dim=cut))
    return torch.cat(_dim_zero_all_to_all(group, parts).unbind(), dim=joined)


def _whole_mask(size: int, *, q_length: int, kv_length: int, **rest: Any) -> torch.Tensor | None:
    """transformers' mask for attention over `size` slices instead of the one that a rank has."""
    return sdpa_mask(q_length=q_length * size, kv_length=kv_length * size, **rest)


def _groups(strategy: Strategy) -> tuple[Any, Any]:
    """(this rank's sequence group, what DeepSpeed asks of an mpu).

    DeepSpeed's own mpu (0.19.8, runtime/sequence_parallel/parallel_state_sp.py) takes sequence for model parallel
    ranks, whose parameters differ: in bf16 its norm then breaks off. The mesh that it makes of a ds_config with
    data_parallel_size and sequence_parallel_size sums gradients over data ranks alone (utils/groups.py:916).
    """
    size, rank = strategy.sequence_parallel_size, dist.get_rank()
    mine, _ = dist.new_subgroups(size)
    alone, _ = dist.new_subgroups(1)
    whole = dist.group.WORLD
    parts = {
        # Whose parameters are the same: DeepSpeed's data parallel rank 0 writes what all have.
        "data_parallel": (whole, rank, strategy.data_parallel_size),
        "sequence_data_parallel": (whole, rank, strategy.shards),
        "sequence_parallel": (mine, dist.get_rank(mine), size),
        "model_parallel": (alone, 0, 1),
    }
    return mine, SimpleNamespace(**{
        f"get_{kind}_{what}": partial(_answer, value)
        for kind, answers in parts.items()
        for what, value in zip(("group", "rank", "world_size"), answers, strict=True)
    })  # fmt: skip


def _answer(value: Any) -> Any:
    return value
