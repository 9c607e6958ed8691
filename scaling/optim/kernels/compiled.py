"""LAMB's sweeps through torch.compile: a fused kernel each, compiled at the first step for every length."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from scaling.optim.kernels.rows import Rows, Terms

# Elements at a time. Inductor on a CPU sums squares in parallel lanes; this bounds the terms in each.
_PART = 1 << 20


def measure(rows: Rows, terms: Terms, gradient_scale: Tensor | None) -> Tensor:
    """[2, parts] in fp64: squares of w and u / factor."""
    like, sweep = rows.ws[0], _compiled(_measure)
    squares = torch.zeros(2, len(rows.ws), dtype=torch.float64, device=like.device)
    b1, b2 = terms.betas
    betas = tuple(_scalar(value, like) for value in (b1, 1 - b1, b2, 1 - b2))
    numbers = _numbers(terms, like)
    scale = _scalar(1.0, like) if gradient_scale is None else gradient_scale.to(like.dtype)
    for number, part in _parts(rows.ws):
        w, g, m, v = (tensors[number][part] for tensors in rows[:4])
        squares[:, number] += sweep(w, g, m, v, scale, betas, numbers[rows.decays[number]])
    return squares


def apply(rows: Rows, terms: Terms, rates: Tensor) -> None:
    """w += rate u / factor, with a rate for each part."""
    sweep, rates, numbers = _compiled(_apply), rates.to(rows.ws[0].dtype), _numbers(terms, rows.ws[0])
    for number, part in _parts(rows.ws):
        w, m, v = (tensors[number][part] for tensors in (rows.ws, rows.ms, rows.vs))
        sweep(w, m, v, rates[number], numbers[rows.decays[number]])


def _measure(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, scale: Tensor, betas: tuple[Tensor, ...], numbers: tuple[Tensor, ...]
) -> Tensor:
    g = g * scale
    m.copy_(m * betas[0] + g * betas[1])
    v.copy_(v * betas[2] + g * g * betas[3])
    u = _update(w, m, v, numbers)
    return torch.stack([w.double().square().sum(), u.double().square().sum()])


def _apply(w: Tensor, m: Tensor, v: Tensor, rate: Tensor, numbers: tuple[Tensor, ...]) -> None:
    w.add_(rate * _update(w, m, v, numbers))


def _update(w: Tensor, m: Tensor, v: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
    eps, decay = numbers
    return m / (v.sqrt() + eps) + decay * w


def _numbers(terms: Terms, like: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
    """eps and decay, by whether a part decays."""
    return {decays: (_scalar(terms.eps, like), _scalar(terms.decay * decays, like)) for decays in (False, True)}


def _scalar(value: float, like: Tensor) -> Tensor:
    """A tensor, because a new float would have it compile again; filled, because copying one waits for a GPU."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _parts(tensors: list[Tensor]) -> Iterator[tuple[int, slice]]:
    for number, tensor in enumerate(tensors):
        for start in range(0, tensor.numel(), _PART):
            yield number, slice(start, start + _PART)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True, fullgraph=True)
