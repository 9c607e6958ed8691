"""Which elements of which parameter a rank steps: the one file that knows where DeepSpeed 0.19.8 keeps them.

ZeRO hands an optimizer flat fp32 vectors with parameters cut at their ends or over all ranks, and padding between,
which may be uninitialised. Every parameter's working copy is a view into such a flat buffer, so its address says where
it is, whatever order and alignment DeepSpeed chose. (Its own map for checkpoints, `_hp_mapping`, is wrong under
round_robin_gradients.) Tensor parallelism cuts a parameter before ZeRO does, expert parallelism gives ranks different
ones, a pipeline stage has its own. What this file does not recognise it refuses; and all ranks count their elements,
so that a sum that is not the parameter's size is an error instead of another optimizer.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._common_utils import _is_fsdp_flattened
from torch.distributed.tensor import DTensor, Replicate, Shard

from scaling.errors import ScaleError


class Piece(NamedTuple):
    """Elements `start` to `stop` of a vector: of one parameter, from the `offset`th on that this rank's shard has.

    Which rows and columns they are is what a factored or a matrix optimizer asks.
    """

    parameter: int
    start: int
    stop: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Vector:
    """A tensor that step() is handed, and the model's copy of it where DeepSpeed keeps one.

    `columns` [pieces] are the places of the pieces' parameters in what the ranks sum, `counted` [pieces] is 0 for what
    another rank counts.
    """

    tensor: Tensor
    pieces: tuple[Piece, ...]
    working: Tensor | None
    columns: Tensor
    counted: Tensor

    @property
    def master(self) -> Tensor:
        """The elements that are on this rank."""
        return _local(self.tensor)

    def pieces_of(self, tensor: Tensor) -> list[Tensor]:
        """The parts of `tensor`, which is cut as this vector is, that the pieces mean."""
        flat = _local(tensor.detach()).view(-1)
        return [flat[piece.start : piece.stop] for piece in self.pieces]

    def gradients(self) -> list[Tensor]:
        """Those of the pieces."""
        gradient = self.tensor.grad.detach()
        if isinstance(gradient, DTensor) and gradient.placements != self.tensor.placements:
            gradient = gradient.redistribute(placements=self.tensor.placements)  # of SequenceParallel, a Partial one
        flat = _local(gradient).reshape(-1)
        return [flat[piece.start : piece.stop] for piece in self.pieces]

    def zeros(self) -> Tensor:
        """A state to be kept beside the tensor."""
        return torch.zeros_like(self.tensor, memory_format=torch.contiguous_format)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """This rank's vectors by id(tensor), and how ranks come to sums over whole parameters.

    `columns` [parameters] are each one's place in the `num_columns` of such a sum; `group` are the ranks that share
    them, None where this one has everything. `gradient_norm` reads the global norm that ZeRO has just computed; None:
    whoever has everything computes it. With `every_call` each step() is whole in itself, not the last of a step's.
    """

    vectors: dict[int, Vector]
    columns: list[int]
    num_columns: int
    group: Any = None
    gradient_norm: Callable[[], Any] | None = None
    every_call: bool = False

    def summed(self, entries: Sequence[tuple[list[Vector], Tensor]]) -> Tensor:
        """[k, num_columns] in fp64 of [k, pieces] each, over all ranks: one all-reduce, where NCCL can have it."""
        sums = entries[0][1].new_zeros(len(entries[0][1]), self.num_columns)
        for vectors, squares in entries:
            counted = squares * torch.cat([vector.counted for vector in vectors])
            sums.index_add_(1, torch.cat([vector.columns for vector in vectors]), counted)
        if self.group is None:
            return sums
        working = entries[0][0][0].working
        moved = sums if working is None else sums.to(working.device)
        dist.all_reduce(moved, group=self.group)
        return moved.to(sums.device)


class Held(NamedTuple):
    """A tensor that an optimizer steps, its pieces by the names of parameters, and the model's copy of it."""

    tensor: Tensor
    pieces: dict[str, Piece]
    working: Tensor | None


def pieces_of(vectors: Sequence[Vector], tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts of the vectors' `tensors`, one for each, that all their pieces mean."""
    return [part for vector, tensor in zip(vectors, tensors, strict=True) for part in vector.pieces_of(tensor)]


def gradients_of(vectors: Sequence[Vector]) -> list[Tensor]:
    """The parts of the vectors' gradients that all their pieces mean."""
    return [part for vector in vectors for part in vector.gradients()]


def size(parameter: Tensor) -> int:
    """Elements of a parameter, also while ZeRO-3 has it in shards."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def of_engine(engine: Any, optimizer: Any, *, wants_norm: bool) -> Layout:
    """The layout in which a DeepSpeed engine steps `optimizer`. Raises ScaleError for one that is not known.

    `wants_norm`: the optimizer will ask for the norm of the gradient that it is given.
    """
    return _of(engine.optimizer, optimizer, engine.mpu, wants_norm=wants_norm)


def held(engine: Any, named: Mapping[str, Tensor]) -> list[Held]:
    """What any optimizer of a DeepSpeed engine steps on this rank, in the order of DeepSpeed's checkpoints.

    `named` are its trained parameters. Raises ScaleError where they are cut in a way that is not known.
    """
    wrapper, names = engine.optimizer, list(named)
    numbers = {id(parameter): number for number, parameter in enumerate(named.values())}
    read = _READERS.get(type(wrapper).__name__)
    if read is None:  # the optimizer itself
        stepped = [parameter for group in wrapper.param_groups for parameter in group["params"]]
        vectors = [_Found(p, (Piece(_number(p, numbers), 0, p.numel()),)) for p in stepped]
    else:
        vectors = read(wrapper, numbers).vectors
    return [Held(v.tensor, {names[piece.parameter]: piece for piece in v.pieces}, v.working) for v in vectors]


def of_caller(optimizer: Any, handed: Sequence[Tensor], *, wants_norm: bool) -> Layout:
    """The layout of the first step(), whose caller knows: an engine or wrapper of DeepSpeed's; else plain torch.

    Nothing that belongs to the optimizer refers to those, hence the look at the callers.
    """
    if any(isinstance(parameter, DTensor) for parameter in optimizer.parameters):
        if wants_norm:
            raise _refusal("gradients normalised as DTensors; clip_grad_norm_ can do it before the step")
        return _of_dtensors(optimizer.parameters)
    frame = sys._getframe(1)
    while frame := frame.f_back:
        caller = frame.f_locals.get("self")
        if getattr(caller, "optimizer", None) is optimizer:
            if type(caller).__name__ in _READERS:
                return _of(caller, optimizer, getattr(caller, "mpu", None) or _autotp(), wants_norm=wants_norm)
            if any(ancestor.__name__ == "DeepSpeedEngine" for ancestor in type(caller).__mro__):
                return of_engine(caller, optimizer, wants_norm=wants_norm)
    own = {id(parameter) for parameter in optimizer.parameters}
    if not all(id(tensor) in own for tensor in handed):
        raise _refusal("tensors that are not its parameters and come from no wrapper of DeepSpeed's")
    return _of(optimizer, optimizer, None, wants_norm=wants_norm)


def allow_under_zero(optimizer: type) -> None:
    """Enters a class into ZeRO's list of optimizers, so that zero_allow_untested_optimizer can stay false."""
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if optimizer not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(optimizer)


class _Found(NamedTuple):
    """A vector as a reader finds it."""

    tensor: Tensor
    pieces: tuple[Piece, ...]
    working: Tensor | None = None


class _Read(NamedTuple):
    """What a reader finds: vectors, the ranks over which each is cut, if any is, and whether one call has them all."""

    vectors: list[_Found]
    ranks: Sequence[Any]
    every_call: bool


def _of(wrapper: Any, optimizer: Any, mpu: Any, *, wants_norm: bool) -> Layout:
    parameters = optimizer.parameters
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    read = _whole if wrapper is optimizer else _READERS.get(type(wrapper).__name__)
    if read is None or (wrapper is not optimizer and wrapper.optimizer is not optimizer):
        raise _refusal(f"the wrapper {type(wrapper).__name__}")
    vectors, ranks, every_call = read(wrapper, numbers)
    split = _tensor_parallelism(mpu)
    columns, num_columns, expert_parallel_size = _columns(parameters)
    if expert_parallel_size > 1 and split.size > 1:
        raise _refusal("expert parallelism together with tensor parallelism")
    if wants_norm and not ranks and max(split.size, _pipeline_stages(mpu), expert_parallel_size) > 1:
        raise _refusal("gradients normalised at stage 0 with a part of the parameters on each rank")
    if wants_norm and ranks and wrapper.clip_grad > 0:
        raise _refusal("gradient_clipping before the gradient is normalised, which undoes it")
    cut = _cut_by_tensor_parallelism(optimizer, split)
    layout = _laid_out(
        vectors, columns, [each or split.rank == 0 for each in cut], num_columns=num_columns, every_call=every_call,
        group=_sharing(ranks, split), gradient_norm=(lambda: wrapper._global_grad_norm) if ranks else None,
    )  # fmt: skip
    _require_every_element(layout, optimizer, cut, split)
    return layout


def _laid_out(vectors: Iterable[_Found], columns: list[int], counted: Sequence[bool], **rest: Any) -> Layout:
    """The layout of `vectors`, by place and by whether this rank counts, of each parameter."""
    found = {}
    for tensor, pieces, working in vectors:
        device = _local(tensor).device
        if not _local(tensor).is_contiguous():
            raise _refusal(f"a parameter of shape {tuple(tensor.shape)} that is not contiguous in memory")
        found[id(tensor)] = Vector(
            tensor=tensor,
            pieces=pieces,
            working=working,
            columns=torch.tensor([columns[piece.parameter] for piece in pieces], dtype=torch.long, device=device),
            counted=torch.tensor([counted[piece.parameter] for piece in pieces], dtype=torch.float64, device=device),
        )
    return Layout(vectors=found, columns=columns, **rest)


# Data parallelism: who has which elements.


def _whole(optimizer: Any, numbers: dict[int, int]) -> _Read:
    """Plain torch, and ZeRO-0 in fp32: every parameter is a vector of its own."""
    if any(_is_fsdp_flattened(parameter) for parameter in optimizer.parameters):
        raise _refusal("FSDP's first version, whose parameters are shards; fully_shard's are DTensors")
    found = [_Found(t, _all_of(t, number)) for number, t in enumerate(optimizer.parameters)]
    return _Read(found, (), every_call=True)


def _unfused(wrapper: Any, numbers: dict[int, int]) -> _Read:
    """ZeRO-0 in 16 bit: each parameter has a whole fp32 copy."""
    pairs = [
        pair
        for group, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        for pair in zip(group, masters, strict=True)
    ]
    found = [_Found(master, (Piece(_number(p, numbers), 0, master.numel()),)) for p, master in pairs]
    return _Read(found, (), every_call=True)


def _stage_1_and_2(wrapper: Any, numbers: dict[int, int]) -> _Read:
    masters = wrapper.single_partition_of_fp32_groups
    found = _partitions(wrapper, numbers, masters, wrapper.bit16_groups, wrapper.bit16_groups_flat)
    return _Read(found, wrapper.real_dp_process_group, every_call=False)


def _bf16(wrapper: Any, numbers: dict[int, int]) -> _Read:
    """BF16_Optimizer: ZeRO-1 in bf16 with gradients summed in fp32."""
    masters = wrapper.fp32_groups_flat_partition
    found = _partitions(wrapper, numbers, masters, wrapper.bf16_groups, wrapper.bf16_groups_flat)
    return _Read(found, wrapper.real_dp_process_group, every_call=True)


def _partitions(
    wrapper: Any, numbers: dict[int, int], masters: list[Tensor], groups: list[list[Tensor]], flats: list[Tensor]
) -> list[_Found]:
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
                pieces.append(Piece(_number(parameter, numbers), start - begin, stop - begin, start - offset))
        vectors.append(_Found(master, tuple(pieces), flat[begin:end]))
    return vectors


def _stage_3(wrapper: Any, numbers: dict[int, int]) -> _Read:
    """Every parameter is cut over all ranks; the last ones' shards end in padding that nobody ever wrote."""
    if wrapper.partial_offload != 1.0 or wrapper.zenflow:
        raise _refusal("a part of the optimizer offloaded, or ZenFlow")
    vectors = []
    flats, groups = wrapper.fp16_partitioned_groups_flat, wrapper.fp16_groups
    ranks_of = wrapper.sub_group_process_groups
    for master, group, flat, ranks in zip(wrapper.fp32_partitioned_groups_flat, groups, flats, ranks_of, strict=True):
        pieces = []
        if flat is None:
            raise _refusal("parameters on NVMe")
        for parameter in group:
            start, shard = _offset(parameter.ds_tensor, flat), parameter.partition_numel()
            before = dist.get_rank(ranks) * shard
            held = min(shard, parameter.ds_numel - before)
            if held > 0:
                pieces.append(Piece(_number(parameter, numbers), start, start + held, before))
        vectors.append(_Found(master, tuple(pieces), flat))
    require_aligned_shards(wrapper)
    # From NVMe a sub-group is there for its own call only; no tensor is in two of them.
    return _Read(vectors, ranks_of, every_call=wrapper.swap_optimizer)


def require_aligned_shards(wrapper: Any) -> None:
    """Raises ScaleError where DeepSpeed 0.19.8 would mix up gradients on their way to NVMe and back.

    It cuts what does not fill whole blocks into two (runtime/swap_tensor/optimizer_utils.py:454) and puts them together
    wrongly: docs/upstream. What is too small for NVMe it keeps, and that is right.
    """
    if not getattr(wrapper, "swap_optimizer", False):
        return
    swapper = wrapper.optimizer_swapper
    for number, parameter in enumerate(p for group in wrapper.fp16_groups for p in group):
        shard = parameter.partition_numel()
        if swapper.is_swappable_tensor(numel=shard) and shard % swapper.numel_alignment:
            raise ScaleError(
                f"offload_optimizer: parameter {number} of shape {tuple(parameter.ds_shape)} has {shard} elements on a "
                f"rank, no multiple of {swapper.numel_alignment}; DeepSpeed 0.19.8 mixes up such gradients on NVMe",
                hint="another number of ranks, or offload to the CPU",
            )


# Everything DeepSpeed wraps an optimizer in, by the name of the class, and how to read it.
_READERS: dict[str, Callable[[Any, dict[int, int]], _Read]] = {
    "FP16_UnfusedOptimizer": _unfused,
    "DeepSpeedZeroOptimizer": _stage_1_and_2,
    "BF16_Optimizer": _bf16,
    "DeepSpeedZeroOptimizer_Stage3": _stage_3,
}


def _of_dtensors(parameters: Sequence[Tensor]) -> Layout:
    """FSDP2 and others that keep DTensors: what is replicated counts on the first of the ranks that have it."""
    meshes = {parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)}
    if len(meshes) != 1 or not all(isinstance(parameter, DTensor) for parameter in parameters):
        raise _refusal("DTensors on several meshes, or beside plain tensors")
    (mesh,) = meshes
    if mesh.ndim > 1 and mesh.size() != dist.get_world_size():
        raise _refusal(
            f"DTensors on a mesh of {mesh.size()} of {dist.get_world_size()} ranks in {mesh.ndim} dimensions"
        )
    counted = []
    for parameter in parameters:
        where = list(zip(parameter.placements, mesh.get_coordinate(), strict=True))
        if not all(isinstance(placement, Shard | Replicate) for placement, _ in where):
            raise _refusal(f"DTensors placed as {parameter.placements}")
        counted.append(all(place == 0 for placement, place in where if isinstance(placement, Replicate)))
    vectors = [_Found(p, _all_of(p, number)) for number, p in enumerate(parameters)]
    return _laid_out(
        vectors, list(range(len(parameters))), counted, num_columns=len(parameters), every_call=True,
        group=mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD,
    )  # fmt: skip


# Model parallelism: what a rank's parameter is a part of.


class _Split(NamedTuple):
    """This rank's place among those that tensor parallelism cuts parameters over."""

    rank: int = 0
    size: int = 1
    group: Any = None


def _tensor_parallelism(mpu: Any) -> _Split:
    if mpu is None:
        return _Split()
    from deepspeed.utils import bwc

    return _Split(
        bwc.bwc_tensor_model_parallel_rank(mpu),
        bwc.bwc_tensor_model_parallel_world_size(mpu),
        bwc.bwc_tensor_model_parallel_group(mpu),
    )


def _autotp() -> Any:
    """What stands for an mpu where DeepSpeed itself cuts tensors; ZeRO-3's wrapper keeps none."""
    from deepspeed.utils import groups

    return groups if groups._TENSOR_MODEL_PARALLEL_GROUP is not None else None


def _pipeline_stages(mpu: Any) -> int:
    if mpu is None:
        return 1
    from deepspeed.utils.bwc import bwc_pipeline_parallel_world_size

    return bwc_pipeline_parallel_world_size(mpu)


def _cut_by_tensor_parallelism(optimizer: Any, split: _Split) -> list[bool]:
    """Whether each parameter is: AutoTP makes it smaller than it was, Megatron's layers mark what they make."""
    cut = []
    for parameter, before in zip(optimizer.parameters, optimizer.sizes, strict=True):
        changed = size(parameter) != before
        if changed and split.size == 1:
            raise _refusal("parameters that are smaller than they were, unless attach(engine) says how")
        marked = any(getattr(parameter, name, False) for name in ("tensor_model_parallel", "model_parallel"))
        cut.append(changed or (marked and not getattr(parameter, "ds_is_replaced_module", False)))
    return cut


def _columns(parameters: Sequence[Tensor]) -> tuple[list[int], int, int]:
    """(each parameter's place in a sum, how many places there are, the largest expert parallel size).

    Experts are numbered alike on ranks that have different ones, so those have places of their own.
    """
    experts = [p for p in parameters if getattr(p, "allreduce", True) is False]
    if not experts:
        return list(range(len(parameters))), len(parameters), 1
    from deepspeed.utils import groups

    columns, taken, largest = [], 0, 1
    for parameter in parameters:
        if getattr(parameter, "allreduce", True) is False:
            ranks = groups._get_expert_parallel_world_size(parameter.group_name)
            columns.append(taken + groups._get_expert_parallel_rank(parameter.group_name))
            taken, largest = taken + ranks, max(largest, ranks)
        else:
            columns.append(taken)
            taken += 1
    return columns, taken, largest


def _sharing(ranks: Sequence[Any], split: _Split) -> Any:
    """The group of all who have a part of this rank's parameters: the largest of `ranks`, for each tensor rank."""
    if not ranks:
        return split.group if split.size > 1 else None
    data = max(ranks, key=dist.get_world_size)
    if split.size == 1:
        return data
    if split.size * dist.get_world_size(data) == dist.get_world_size():
        return dist.group.WORLD
    mine = (dist.get_process_group_ranks(data), dist.get_process_group_ranks(split.group))
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    unions = {tuple(sorted({r for t in tensor for r in everyones[t][0]})) for _, tensor in everyones}
    made = {union: dist.new_group(list(union)) for union in sorted(unions)}
    return next(group for union, group in made.items() if dist.get_rank() in union)


def _all_of(tensor: Tensor, number: int) -> tuple[Piece, ...]:
    """The one piece of a tensor that is a parameter or this rank's shard of one; none where that is empty."""
    size = _local(tensor).numel()
    return (Piece(number, 0, size),) if size else ()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _offset(view: Tensor, flat: Tensor) -> int:
    """Where `view` begins in `flat`, in elements."""
    offset, rest = divmod(view.data_ptr() - flat.data_ptr(), flat.element_size())
    if rest or not 0 <= offset <= flat.numel() - view.numel():
        raise _refusal("a parameter outside its flat buffer")
    return offset


def _number(parameter: Tensor, numbers: dict[int, int]) -> int:
    if id(parameter) not in numbers:
        raise _refusal("a parameter that the optimizer was not made with")
    return numbers[id(parameter)]


def _require_every_element(layout: Layout, optimizer: Any, cut: list[bool], split: _Split) -> None:
    """Raises ScaleError unless the pieces of all ranks are every trained parameter, once."""
    held = layout.summed([
        ([vector], vector.counted.new_tensor([[piece.stop - piece.start for piece in vector.pieces]]))
        for vector in layout.vectors.values()
    ])[0, layout.columns].tolist()  # fmt: skip
    for number, (parameter, before) in enumerate(zip(optimizer.parameters, optimizer.sizes, strict=True)):
        # What was cut before the optimizer was made is as long as it was.
        parts = split.size if cut[number] and size(parameter) == before else 1
        if parameter.requires_grad and held[number] != before * parts:
            raise _refusal(f"parameter {number}: the ranks have {held[number]:.0f} of {before * parts} elements")


def _refusal(what: str) -> ScaleError:
    return ScaleError(
        f"optimizer: an exact trust ratio is not available for {what}",
        hint="ZeRO 0 to 3 of DeepSpeed 0.19.8 with tensor, pipeline and expert parallelism, DTensors, plain torch",
    )
