"""LARS (You, Gitman & Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv 1708.03888, algorithm 1).

ratio = trust |w| / (|g| + decay |w|)     m = momentum m + lr ratio (g + decay w)     w = w - m
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from scaling.optim.layout import Vector
from scaling.optim.trust import TrustRatioOptimizer, batches, pieces_of, squared_norms


class Lars(TrustRatioOptimizer):
    """LARS, each tensor's ratio its own under ZeRO 0 to 3. What does not decay has ratio 1: SGD with momentum."""

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
        self._weight_decay = torch.tensor(
            [group["weight_decay"] for group in self.param_groups for _ in group["params"]]
        )

    def measure(self, vector: Vector, group: dict[str, Any], gradient_scale: float) -> tuple[Tensor, list[Tensor]]:
        master, state = vector.master, self.state[vector.master]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(master, memory_format=torch.contiguous_format)
        squares = torch.zeros(2, len(vector.pieces), dtype=torch.float64, device=master.device)
        gradients = pieces_of(vector, master.grad)
        for numbers, (ws, gs) in batches(pieces_of(vector, master), gradients):
            index = torch.tensor(numbers, device=squares.device)
            squares.index_add_(1, index, torch.stack([squared_norms(ws), squared_norms(gs)]))
        return squares, gradients  # ZeRO lets go of a gradient when its call returns

    def ratios(self, weight_norms: Tensor, update_norms: Tensor) -> Tensor:
        decays = torch.tensor(self.decays, device=weight_norms.device)
        decay = self._weight_decay.to(weight_norms) * decays
        ratios = self.trust_coefficient * weight_norms / (update_norms + decay * weight_norms)
        return torch.where(decays & (weight_norms > 0) & (update_norms > 0), ratios, 1.0)

    def apply(self, vector: Vector, group: dict[str, Any], ratios: list[float], kept: list[Tensor]) -> None:
        rows = pieces_of(vector, vector.master), pieces_of(vector, self.state[vector.master]["momentum_buffer"]), kept
        for numbers, (ws, ms, gs) in batches(*rows):
            decays = [group["weight_decay"] * self.decays[vector.pieces[number].parameter] for number in numbers]
            updates = torch._foreach_mul(ws, decays)
            torch._foreach_add_(updates, gs)
            torch._foreach_mul_(updates, [group["lr"] * ratios[number] for number in numbers])
            torch._foreach_mul_(ms, group["momentum"])
            torch._foreach_add_(ms, updates)
            torch._foreach_sub_(ws, ms)
