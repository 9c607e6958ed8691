"""LANS (Zheng et al. 2020, "Accelerated Large Batch Optimization of BERT Pretraining in 54 minutes", arXiv 2006.13484,
algorithm 2).

g = gradient / |gradient|         r = m^ / (sqrt(v^) + eps) + decay w       c = g / (sqrt(v^) + eps) + decay w
m = b1 m + (1 - b1) g             w = w - lr |w| (b1 r / |r| + (1 - b1) c / |c|)
v = b2 v + (1 - b2) g^2           norms of each whole tensor
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from scaling.optim.kernels.rows import batches, move, squared_norms
from scaling.optim.layout import Vector, gradients_of, pieces_of
from scaling.optim.trust import Sweeps, TrustRatioOptimizer


class Lans(TrustRatioOptimizer):
    """LANS, each tensor's norms its own however it is cut. What does not decay has ratios of 1.

    Two all-reduces a step: the moments need the norms of gradients, the step those of the moments.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        exclude: Collection[Tensor] = (),
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, exclude=exclude)

    def sweeps(self, vectors: list[Vector], group: dict[str, Any], gradient_scale: Tensor | None) -> Sweeps:
        states, (b1, b2) = self.states_of(vectors, "exp_avg", "exp_avg_sq"), group["betas"]
        ws = pieces_of(vectors, (vector.tensor for vector in vectors))
        gs = gradients_of(vectors)
        ms = pieces_of(vectors, (state["exp_avg"] for state in states))
        vs = pieces_of(vectors, (state["exp_avg_sq"] for state in states))
        device = vectors[0].master.device
        squares = torch.zeros(1, len(gs), dtype=torch.float64, device=device)
        for which, (some,) in batches(gs):
            squares[0, which] += squared_norms(some)
        norms = (yield squares)[0].sqrt()
        scales = torch.where(norms > 0, 1 / norms, 0.0)

        weight_decay, step = [group["weight_decay"] * decays for decays in self.decays_of(vectors)], states[0]["step"]

        def directions(which: slice, ws: list[Tensor], gs: list[Tensor], ms: list[Tensor], vs: list[Tensor]) -> Any:
            """r and c of some parts."""
            roots = torch._foreach_sqrt(vs)
            torch._foreach_div_(roots, math.sqrt(1 - b2**step))
            torch._foreach_add_(roots, group["eps"])
            decayed = torch._foreach_mul(ws, weight_decay[which])
            r, c = torch._foreach_div(ms, roots), torch._foreach_div(gs, roots)
            torch._foreach_div_(r, 1 - b1**step)
            torch._foreach_add_(r, decayed)
            torch._foreach_add_(c, decayed)
            return r, c

        squares = torch.zeros(3, len(ws), dtype=torch.float64, device=device)
        for which, (some_ws, some_gs, some_ms, some_vs) in batches(ws, gs, ms, vs):
            units = _scaled(some_gs, scales[which])
            torch._foreach_lerp_(some_ms, units, 1 - b1)
            torch._foreach_mul_(some_vs, b2)
            torch._foreach_addcmul_(some_vs, units, units, 1 - b2)
            r, c = directions(which, some_ws, units, some_ms, some_vs)
            squares[:, which] += torch.stack([squared_norms(some) for some in (some_ws, r, c)])
        whole = yield squares
        decay = self.weight_decay_of(vectors, group)
        r_rates, c_rates = (
            -group["lr"] * share * self._ratios(whole[0], whole[row], decay) for row, share in ((1, b1), (2, 1 - b1))
        )
        for which, (some_ws, some_gs, some_ms, some_vs) in batches(ws, gs, ms, vs):
            r, c = directions(which, some_ws, _scaled(some_gs, scales[which]), some_ms, some_vs)
            for updates, rates in ((r, r_rates), (c, c_rates)):
                move(some_ws, updates, rates[which].to(some_ws[0].dtype))

    def ratios(self, squares: Tensor, weight_decay: Tensor) -> Tensor:
        """That of the moments, |w| / |r|."""
        return self._ratios(squares[0], squares[1], weight_decay)

    def _ratios(self, weight_squares: Tensor, update_squares: Tensor, weight_decay: Tensor) -> Tensor:
        adapted = (weight_decay != 0) & (weight_squares > 0) & (update_squares > 0)
        return torch.where(adapted, (weight_squares / update_squares).sqrt(), 1.0)


def _scaled(tensors: list[Tensor], scales: Tensor) -> list[Tensor]:
    return list(torch._foreach_mul(tensors, list(scales.to(tensors[0].dtype).unbind())))
