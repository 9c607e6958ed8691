"""Parts of parameters: how tensor parallelism cuts them over the ranks of a group, and what is counted where."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Cut(NamedTuple):
    """How a parameter lies over the ranks of a group: `parts` equal matrices along `dim`, of each of them one piece.

    `transposed`: it is what transformers keeps with its two dimensions exchanged, as GPT-2's Conv1D does.
    """

    dim: int
    parts: int = 1
    transposed: bool = False


def cut_of(parameter: Tensor) -> Cut | None:
    """None for what every rank of the group has whole."""
    return getattr(parameter, "cut", None)


def counted_here(parameter: Tensor) -> bool:
    """Whether this rank is the one of its group that counts the parameter in a sum, or its part of it."""
    return _group() is None or cut_of(parameter) is not None or rank() == 0


def rank() -> int:
    """This rank's number in its tensor parallel group."""
    return 0 if _group() is None else dist.get_rank(_group())


def size() -> int:
    """The ranks of a tensor parallel group."""
    return 1 if _group() is None else dist.get_world_size(_group())


def part(whole: Tensor, cut: Cut | None, rank: int, size: int) -> Tensor:
    """What `rank` of `size` has of a parameter as transformers keeps it."""
    if cut is None:
        return whole
    matrices = (whole.mT if cut.transposed else whole).unflatten(cut.dim, (cut.parts, -1))
    lengths = [share(matrices.shape[cut.dim + 1], each, size) for each in range(size)]
    return matrices.split(lengths, cut.dim + 1)[rank].flatten(cut.dim, cut.dim + 1)


def joined(parts: Sequence[Tensor], cut: Cut | None) -> Tensor:
    """The parameter as transformers keeps it, from all ranks' parts of it."""
    if cut is None:
        return parts[0]
    pieces = [each.unflatten(cut.dim, (cut.parts, -1)) for each in parts]
    whole = torch.cat(pieces, cut.dim + 1).flatten(cut.dim, cut.dim + 1)
    return whole.mT if cut.transposed else whole


def whole(mine: Tensor) -> Tensor:
    """A tensor as transformers keeps it, from the parts of a group's ranks; a collective where it is cut."""
    if (cut := cut_of(mine)) is None:
        return mine
    everyones: list[Any] = [None] * size()
    dist.all_gather_object(everyones, mine.cpu(), group=_group())
    return joined(everyones, cut)


def share(length: int, rank: int, size: int) -> int:
    """What a rank gets of `length`: a vocabulary need not be a multiple of the ranks."""
    return length // size + (rank < length % size)


def _group() -> Any:
    """This rank's tensor parallel group; None where there is none."""
    from deepspeed.utils import groups  # here, because whoever reads a checkpoint needs no DeepSpeed

    return groups._TENSOR_MODEL_PARALLEL_GROUP
