"""LARS (You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv 1708.03888, algorithm 1).

ratio = trust |w| / (|g| + decay |w|)     m = momentum m + lr ratio (g + decay w)     w = w - m
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from scaling.optim.kernels.rows import batches, move, squared_norms
from scaling.optim.layout import Vector, gradients_of, pieces_of
from scaling.optim.trust import Sweeps, TrustRatioOptimizer


class Lars(TrustRatioOptimizer):
    """LARS, each tensor's ratio its own however it is cut. What does not decay has ratio 1: SGD with momentum."""

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        exclude: Collection[Tensor] = (),
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, exclude=exclude)
        self.trust_coefficient = trust_coefficient

    def sweeps(self, vectors: list[Vector], group: dict[str, Any], gradient_scale: Tensor | None) -> Sweeps:
        states = self.states_of(vectors, "momentum_buffer")
        ws = pieces_of(vectors, (vector.tensor for vector in vectors))
        gs = gradients_of(vectors)
        ms = pieces_of(vectors, (state["momentum_buffer"] for state in states))
        squares = torch.zeros(2, len(ws), dtype=torch.float64, device=vectors[0].master.device)
        for which, (some_ws, some_gs) in batches(ws, gs):
            squares[:, which] += torch.stack([squared_norms(some_ws), squared_norms(some_gs)])
        whole = yield squares
        rates = group["lr"] * self.ratios(whole, self.weight_decay_of(vectors, group))
        weight_decay = [group["weight_decay"] * decays for decays in self.decays_of(vectors)]
        for which, (some_ws, some_ms, some_gs) in batches(ws, ms, gs):
            updates = torch._foreach_mul(some_ws, weight_decay[which])
            torch._foreach_add_(updates, some_gs)
            torch._foreach_mul_(some_ms, group["momentum"])
            move(some_ms, updates, rates[which].to(some_ms[0].dtype))
            torch._foreach_sub_(some_ws, some_ms)

    def ratios(self, squares: Tensor, weight_decay: Tensor) -> Tensor:
        weight_norms, gradient_norms = squares.sqrt()
        ratios = self.trust_coefficient * weight_norms / (gradient_norms + weight_decay * weight_norms)
        adapted = (weight_decay != 0) & (weight_norms > 0) & (gradient_norms > 0)
        return torch.where(adapted, ratios, 1.0)
