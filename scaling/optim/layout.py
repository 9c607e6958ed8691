"""Which elements of which parameter a rank steps: the one file that knows where DeepSpeed 0.19.8 keeps them.

ZeRO hands an optimizer flat fp32 vectors with parameters cut at their ends or over all ranks, and padding between,
which may be uninitialised. Every parameter's working copy is a view into such a flat buffer, so its address says where
it is, whatever order and alignment DeepSpeed chose. (Its own map for checkpoints, `_hp_mapping`, is wrong under
round_robin_gradients.) What this file does not recognise it refuses; `of` also has all ranks count their elements, and
a sum that is not the parameter's size is an error instead of another optimizer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from scaling.errors import ScaleError


class Piece(NamedTuple):
    """Elements `start` to `stop` of a vector; all are of one parameter, numbered alike on every rank."""

    parameter: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A tensor that step() is handed, in fp32, and the model's copy of it where DeepSpeed keeps one."""

    master: Tensor
    pieces: tuple[Piece, ...]
    working: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """This rank's vectors by id(master). `group` are the ranks that share the rest; None: each has everything.

    `gradient_norm` reads the global norm that ZeRO has just computed; None: whoever has everything computes it.
    """

    vectors: Mapping[int, Vector]
    group: Any = None
    gradient_norm: Callable[[], Any] | None = None

    def summed(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over the ranks, by one all-reduce where it goes: NCCL has no tensors on the host."""
        if self.group is None:
            return tensor
        device = next(iter(self.vectors.values())).working.device
        moved = tensor.to(device)
        dist.all_reduce(moved, group=self.group)
        return moved.to(tensor.device)


def whole(tensors: Sequence[Tensor]) -> Layout:
    """Every parameter is a vector of its own: plain torch, and ZeRO-0 in fp32."""
    vectors = (Vector(master=t, pieces=(Piece(n, 0, t.numel()),)) for n, t in enumerate(tensors))
    return Layout(vectors={id(vector.master): vector for vector in vectors})


def of(engine: Any, optimizer: Any, parameters: Sequence[Tensor], *, wants_norm: bool) -> Layout:
    """The layout in which `engine` steps `optimizer`, whose parameters these were. Raises ScaleError.

    `wants_norm`: the optimizer will ask for the norm of the gradient that it is given.
    """
    if engine.seq_dp_world_size != dist.get_world_size():
        raise _refusal("tensors split over model-parallel ranks")
    wrapper = engine.optimizer
    if wrapper is optimizer:
        return whole(parameters)
    read = _READERS.get(type(wrapper).__name__)
    if read is None or wrapper.optimizer is not optimizer:
        raise _refusal(f"the wrapper {type(wrapper).__name__}")
    layout = read(wrapper, {id(parameter): number for number, parameter in enumerate(parameters)})
    if wants_norm and layout.gradient_norm and wrapper.clip_grad > 0:
        raise _refusal("gradient_clipping before the gradient is normalised, which undoes it")
    _require_every_element(layout, parameters)
    return layout


def _unfused(wrapper: Any, numbers: Mapping[int, int]) -> Layout:
    """ZeRO-0 in 16 bit: each parameter has a whole fp32 copy."""
    pairs = [
        pair
        for group, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        for pair in zip(group, masters, strict=True)
    ]
    vectors = (Vector(master=m, pieces=(Piece(_number(p, numbers), 0, m.numel()),)) for p, m in pairs)
    return Layout(vectors={id(vector.master): vector for vector in vectors})


def _stage_1_and_2(wrapper: Any, numbers: Mapping[int, int]) -> Layout:
    masters = wrapper.single_partition_of_fp32_groups
    return _partitions(wrapper, numbers, masters, wrapper.bit16_groups, wrapper.bit16_groups_flat)


def _bf16(wrapper: Any, numbers: Mapping[int, int]) -> Layout:
    """BF16_Optimizer: ZeRO-1 in bf16 with gradients summed in fp32."""
    masters = wrapper.fp32_groups_flat_partition
    return _partitions(wrapper, numbers, masters, wrapper.bf16_groups, wrapper.bf16_groups_flat)


def _partitions(
    wrapper: Any, numbers: Mapping[int, int], masters: list[Tensor], groups: list[list[Tensor]], flats: list[Tensor]
) -> Layout:
    """Each group of parameters is one flat buffer, and a rank steps its share from `begin` to `end`."""
    vectors = []
    for master, group, flat, ranks in zip(masters, groups, flats, wrapper.real_dp_process_group, strict=True):
        if master.numel() * dist.get_world_size(ranks) != flat.numel():
            raise _refusal(f"a partition of {master.numel()} elements in a buffer of {flat.numel()}")
        begin = dist.get_rank(ranks) * master.numel()
        end = begin + master.numel()
        pieces = []
        for parameter in group:
            offset = _offset(parameter, flat)
            start, stop = max(offset, begin), min(offset + parameter.numel(), end)
            if start < stop:
                pieces.append(Piece(_number(parameter, numbers), start - begin, stop - begin))
        vectors.append(Vector(master=master, pieces=tuple(pieces), working=flat[begin:end]))
    return _sharded(wrapper, vectors, wrapper.real_dp_process_group)


def _stage_3(wrapper: Any, numbers: Mapping[int, int]) -> Layout:
    """Every parameter is cut over all ranks; the last ones' shards end in padding that nobody ever wrote."""
    if wrapper.swap_optimizer or wrapper.partial_offload != 1.0 or wrapper.zenflow:
        raise _refusal("NVMe offload, a part of the optimizer offloaded, or ZenFlow")
    vectors = []
    flats, groups = wrapper.fp16_partitioned_groups_flat, wrapper.fp16_groups
    ranks_of = wrapper.sub_group_process_groups
    for master, group, flat, ranks in zip(wrapper.fp32_partitioned_groups_flat, groups, flats, ranks_of, strict=True):
        pieces = []
        for parameter in group:
            start, shard = _offset(parameter.ds_tensor, flat), parameter.partition_numel()
            held = min(shard, parameter.ds_numel - dist.get_rank(ranks) * shard)
            if held > 0:
                pieces.append(Piece(_number(parameter, numbers), start, start + held))
        vectors.append(Vector(master=master, pieces=tuple(pieces), working=flat))
    return _sharded(wrapper, vectors, ranks_of)


# Everything DeepSpeed wraps an optimizer in, by the name of the class, and how to read it.
_READERS: dict[str, Callable[[Any, Mapping[int, int]], Layout]] = {
    "FP16_UnfusedOptimizer": _unfused,
    "DeepSpeedZeroOptimizer": _stage_1_and_2,
    "BF16_Optimizer": _bf16,
    "DeepSpeedZeroOptimizer_Stage3": _stage_3,
}


def allow_under_zero(optimizer: type) -> None:
    """Enters a class into ZeRO's list of optimizers, so that zero_allow_untested_optimizer can stay false."""
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if optimizer not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(optimizer)


def _sharded(wrapper: Any, vectors: list[Vector], groups: Sequence[Any]) -> Layout:
    if any(dist.get_world_size(ranks) != dist.get_world_size() for ranks in groups):
        raise _refusal("parameters sharded over some of the ranks, as experts are")
    return Layout(
        vectors={id(vector.master): vector for vector in vectors},
        group=groups[0],
        gradient_norm=lambda: wrapper._global_grad_norm,
    )


def _offset(view: Tensor, flat: Tensor) -> int:
    """Where `view` begins in `flat`, in elements."""
    offset, rest = divmod(view.data_ptr() - flat.data_ptr(), flat.element_size())
    if rest or not 0 <= offset <= flat.numel() - view.numel():
        raise _refusal("a parameter outside its flat buffer")
    return offset


def _number(parameter: Tensor, numbers: Mapping[int, int]) -> int:
    if id(parameter) not in numbers:
        raise _refusal("a parameter that the optimizer was not made with")
    return numbers[id(parameter)]


def _require_every_element(layout: Layout, parameters: Sequence[Tensor]) -> None:
    """Raises ScaleError unless the pieces of all ranks are every trained parameter, once."""
    counts = torch.zeros(len(parameters), dtype=torch.float64)
    for piece in _pieces(layout):
        counts[piece.parameter] += piece.stop - piece.start
    sizes = [getattr(p, "ds_numel", p.numel()) if p.requires_grad else 0 for p in parameters]
    wrong = [
        n for n, (held, size) in enumerate(zip(layout.summed(counts).tolist(), sizes, strict=True)) if held != size
    ]
    if wrong:
        raise _refusal(f"parameter {wrong[0]} and {len(wrong) - 1} others not there whole over the ranks")


def _pieces(layout: Layout) -> Iterator[Piece]:
    for vector in layout.vectors.values():
        yield from vector.pieces


def _refusal(what: str) -> ScaleError:
    return ScaleError(
        f"optimizer: an exact trust ratio is not available for {what}",
        hint="data parallelism with ZeRO 0 to 3, optimizer on the device or the CPU, DeepSpeed 0.19.8",
    )
