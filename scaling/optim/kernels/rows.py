"""What the sweeps work on: flat parts of tensors side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Elements that a sweep in torch's operators takes at once: on a CPU what a core's cache holds of w, g, m, v and u, on a
# GPU as many as keep each temporary to 64 MB.
_BATCH = {"cpu": 1 << 17}
_BATCH_OF_A_GPU = 1 << 24


class Terms(NamedTuple):
    """u = factor (m / (sqrt(v) + eps) + decay w), and the step is lr x length x ratio x u / factor."""

    betas: tuple[float, float]
    eps: float
    decay: float
    factor: float
    length: float


class Rows(NamedTuple):
    """Parts of weights, gradients (none in `apply`) and moments, and whether each decays."""

    ws: list[Tensor]
    gs: list[Tensor]
    ms: list[Tensor]
    vs: list[Tensor]
    decays: list[bool]


def batches(*rows: Sequence[Tensor]) -> Iterator[tuple[slice, list[list[Tensor]]]]:
    """`rows` of equally long tensors in runs that fit a cache: (which of the tensors, their parts by row)."""
    if not rows[0]:
        return
    room = limit = _BATCH.get(rows[0][0].device.type, _BATCH_OF_A_GPU)
    first = 0
    parts: list[list[Tensor]] = [[] for _ in rows]
    for number, tensors in enumerate(zip(*rows, strict=True)):
        start, length = 0, tensors[0].numel()
        while start < length:
            stop = min(length, start + room)
            first = first if parts[0] else number
            for row, tensor in zip(parts, tensors, strict=True):
                row.append(tensor[start:stop])
            room -= stop - start
            start = stop
            if not room:
                yield slice(first, number + 1), parts
                room, parts = limit, [[] for _ in rows]
    if parts[0]:
        yield slice(first, first + len(parts[0])), parts


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """Each tensor's sum of squares, summed in fp64."""
    if tensors[0].device.type == "cpu":  # three times as fast here as vector_norm with dtype=float64
        doubles = [tensor.double() for tensor in tensors]
        return torch.stack([torch.dot(double, double) for double in doubles])
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64)).square()


def move(ws: list[Tensor], us: list[Tensor], rates: Tensor) -> None:
    """w += rate u. On a GPU without reading the rates, which would wait for it; `us` are used up there."""
    if rates.device.type == "cpu":
        for w, u, rate in zip(ws, us, rates.tolist(), strict=True):
            w.add_(u, alpha=rate)
    else:
        torch._foreach_mul_(us, list(rates.unbind()))
        torch._foreach_add_(ws, us)
