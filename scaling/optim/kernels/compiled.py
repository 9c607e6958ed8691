"""LAMB's sweeps through torch.compile: fused kernels, compiled at the first step for every length.

The first sweep is two of them. Inductor (torch 2.13) does not put a reduction into the loop that writes what it
reduces: as one function it would read everything twice.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from scaling.optim.kernels import eager
from scaling.optim.kernels.rows import Rows, Terms

# Elements at a time, so that a temporary is no larger, and elements in a part that is not worth the calls.
_PART, _SMALL = 1 << 22, 1 << 14
# Elements that are summed in fp32, which a CPU does in 16 lanes; Inductor's sums in fp64 take twice as long.
_RUN = 1 << 12


def measure(rows: Rows, terms: Terms, gradient_scale: Tensor | None) -> Tensor:
    """[2, parts] in fp64: squares of w and u / factor."""
    small, large = _by_size(rows)
    like, (b1, b2) = rows.ws[0], terms.betas
    squares = torch.zeros(2, len(rows.ws), dtype=torch.float64, device=like.device)
    if small:
        squares[:, small] = eager.measure(_some(rows, small), terms, gradient_scale)
    scale = 1.0 if gradient_scale is None else gradient_scale
    rates, numbers = _packed([b1, 1 - b1, b2, 1 - b2, scale], like), _numbers(terms, like)
    for number, (w, g, m, v) in _parts(large, rows):
        _compiled(_advance)(g, m, v, rates)
        for run in _runs(w, m, v):
            squares[:, number] += _compiled(_square)(*run, numbers[rows.decays[number]])
    return squares


def apply(rows: Rows, terms: Terms, rates: Tensor) -> None:
    """w += rate u / factor, with a rate for each part."""
    small, large = _by_size(rows)
    if small:
        eager.apply(_some(rows, small), terms, rates[small])
    rates, numbers = rates.to(rows.ws[0].dtype), _numbers(terms, rows.ws[0])
    for number, (w, m, v) in _parts(large, rows._replace(gs=[])):
        _compiled(_apply)(w, m, v, numbers[rows.decays[number]], rates[number : number + 1])


def _advance(g: Tensor, m: Tensor, v: Tensor, rates: Tensor) -> None:
    g = g * rates[4]
    m.copy_(m * rates[0] + g * rates[1])
    v.copy_(v * rates[2] + g * g * rates[3])


def _square(w: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    u = _update(w, m, v, numbers)
    return torch.stack([(w * w).sum(1).double().sum(), (u * u).sum(1).double().sum()])


def _apply(w: Tensor, m: Tensor, v: Tensor, numbers: Tensor, rate: Tensor) -> None:
    w.add_(rate[0] * _update(w, m, v, numbers))


def _update(w: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
    eps, decay = numbers[0], numbers[1]
    return m / (v.sqrt() + eps) + decay * w


def _numbers(terms: Terms, like: Tensor) -> dict[bool, Tensor]:
    """eps and decay, by whether a part decays."""
    return {decays: _packed([terms.eps, terms.decay * decays], like) for decays in (False, True)}


def _packed(values: list[Any], like: Tensor) -> Tensor:
    """One tensor: a new float would have it compile again, and a tensor each is slower on a CPU by half.

    Filled, since to copy numbers to a GPU is to wait for it.
    """
    tensors = (value if isinstance(value, Tensor) else torch.full((), value, device=like.device) for value in values)
    return torch.stack([tensor.to(like.dtype) for tensor in tensors])


def _by_size(rows: Rows) -> tuple[list[int], list[int]]:
    """Which parts are small, and which are not."""
    numbers = range(len(rows.ws))
    small = [number for number in numbers if rows.ws[number].numel() < _SMALL]
    return small, [number for number in numbers if rows.ws[number].numel() >= _SMALL]


def _some(rows: Rows, numbers: list[int]) -> Rows:
    return Rows(*([row[number] for number in numbers] if row else [] for row in rows))


def _parts(numbers: list[int], rows: Rows) -> Iterator[tuple[int, list[Tensor]]]:
    tensors = [row for row in rows[:4] if row]
    for number in numbers:
        for pieces in zip(*(row[number].split(_PART) for row in tensors), strict=True):
            yield number, list(pieces)


def _runs(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors as runs side by side, and what is left as one."""
    whole = tensors[0].numel() // _RUN * _RUN
    if whole:
        yield [tensor[:whole].view(-1, _RUN) for tensor in tensors]
    if whole < tensors[0].numel():
        yield [tensor[whole:].view(1, -1) for tensor in tensors]


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True, fullgraph=True)
