"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", arXiv 1904.00962, algorithm 2).

m = b1 m + (1 - b1) g        u = m^ / (sqrt(v^) + eps) + decay w
v = b2 v + (1 - b2) g^2      w = w - lr |w| / |u| u          norms of each whole tensor
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scaling.optim.layout import Vector
from scaling.optim.trust import TrustRatioOptimizer, batches, pieces_of, squared_norms

BiasCorrection = Literal["moments", "step", "none"]

# What published implementations do, as arguments of Lamb. Where they say nothing else, parameters without decay keep
# the ratio 1.
CONVENTIONS: Mapping[str, Mapping[str, Any]] = {
    # Algorithm 2, with biases and norms left out of decay and adaptation as in its authors' code.
    "paper": {"bias_correction": "moments", "eps": 1e-6, "weight_decay": 0.01},
    # The authors' code for BERT (google-research/albert, lamb_optimizer.py) has no bias correction.
    "google": {"bias_correction": "none", "eps": 1e-6, "weight_decay": 0.01},
    # NVIDIA's NVLAMB (apex FusedLAMB, use_nvlamb=True): also what does not decay is scaled by its ratio. Gradients are
    # normalised first; apex does it where their norm is above max_grad_norm, which is gradient_clipping.
    "nvlamb": {
        "bias_correction": "moments", "eps": 1e-6, "weight_decay": 0.01, "always_adapt": True,
        "normalize_gradients": True,
    },
    # DeepSpeed's FusedLamb (0.19.8, csrc/lamb/fused_lamb_cuda_kernel.cu): the correction scales the step, decay
    # included, and the ratio is held between min_coeff and max_coeff.
    "deepspeed": {
        "bias_correction": "step", "eps": 1e-8, "weight_decay": 0.0, "always_adapt": True, "trust_clip": (0.01, 10.0),
    },
}  # fmt: skip


class _Terms(NamedTuple):
    """u = factor (m / (sqrt(v) + eps) + decay w), and the step is lr x length x ratio x u / factor."""

    factor: float
    eps: float
    decay: float
    length: float


class Lamb(TrustRatioOptimizer):
    """LAMB, each tensor's trust ratio its own under ZeRO 0 to 3.

    `bias_correction` divides the "moments" by 1 - b^t, or scales the "step" by what that comes to without eps.
    `trust_clip` bounds the ratio. A parameter that does not decay has ratio 1 unless `always_adapt`.
    `normalize_gradients` divides the gradient by its global norm.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: BiasCorrection = "moments",
        trust_clip: tuple[float, float] | None = None,
        always_adapt: bool = False,
        normalize_gradients: bool = False,
        exclude: Collection[Tensor] = (),
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, exclude=exclude, normalize=normalize_gradients)
        self.bias_correction, self.trust_clip, self.always_adapt = bias_correction, trust_clip, always_adapt

    def measure(self, vector: Vector, group: dict[str, Any], gradient_scale: float) -> tuple[Tensor, _Terms]:
        master, state = vector.master, self.state[vector.master]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(master, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(master, memory_format=torch.contiguous_format)
        state["step"] += 1
        terms, (b1, b2) = self._terms(group, state["step"]), group["betas"]
        squares = torch.zeros(2, len(vector.pieces), dtype=torch.float64, device=master.device)
        rows = (pieces_of(vector, t) for t in (master, state["exp_avg"], state["exp_avg_sq"], master.grad))
        for numbers, (ws, ms, vs, gs) in batches(*rows):
            if gradient_scale != 1:
                gs = torch._foreach_mul(gs, gradient_scale)
            torch._foreach_lerp_(ms, gs, 1 - b1)
            torch._foreach_mul_(vs, b2)
            torch._foreach_addcmul_(vs, gs, gs, 1 - b2)
            updates = self._updates(vector, numbers, ws, ms, vs, terms)
            index = torch.tensor(numbers, device=squares.device)
            squares.index_add_(1, index, torch.stack([squared_norms(ws), squared_norms(updates)]))
        squares[1] *= terms.factor**2
        return squares, terms

    def ratios(self, weight_norms: Tensor, update_norms: Tensor) -> Tensor:
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
        if self.trust_clip is not None:
            ratios = ratios.clamp(*self.trust_clip)
        adapted = torch.tensor([decays or self.always_adapt for decays in self.decays], device=ratios.device)
        return torch.where(adapted, ratios, 1.0)

    def apply(self, vector: Vector, group: dict[str, Any], ratios: list[float], kept: _Terms) -> None:
        # The update is computed again: 16 bytes a parameter read, as many as keeping it would cost, and no memory.
        state = self.state[vector.master]
        rows = (pieces_of(vector, t) for t in (vector.master, state["exp_avg"], state["exp_avg_sq"]))
        for numbers, (ws, ms, vs) in batches(*rows):
            updates = self._updates(vector, numbers, ws, ms, vs, kept)
            torch._foreach_mul_(updates, [-group["lr"] * kept.length * ratios[number] for number in numbers])
            torch._foreach_add_(ws, updates)

    def _updates(
        self, vector: Vector, numbers: list[int], ws: list[Tensor], ms: list[Tensor], vs: list[Tensor], terms: _Terms
    ) -> list[Tensor]:
        """u / factor of each part."""
        roots = torch._foreach_sqrt(vs)
        torch._foreach_add_(roots, terms.eps)
        updates = list(torch._foreach_div(ms, roots))
        decaying = [i for i, number in enumerate(numbers) if self.decays[vector.pieces[number].parameter]]
        if decaying and terms.decay:
            torch._foreach_add_([updates[i] for i in decaying], [ws[i] for i in decaying], alpha=terms.decay)
        return updates

    def _terms(self, group: dict[str, Any], step: int) -> _Terms:
        """m^ / (sqrt(v^) + eps) = f m / (sqrt(v) + eps sqrt(1 - b2^t)), f = sqrt(1 - b2^t) / (1 - b1^t)."""
        b1, b2 = group["betas"]
        root = math.sqrt(1 - b2**step)
        factor = root / (1 - b1**step)
        eps, decay = group["eps"], group["weight_decay"]
        match self.bias_correction:
            case "moments":
                return _Terms(factor, eps * root, decay / factor, factor)
            case "step":
                return _Terms(1.0, eps, decay, factor)
            case "none":
                return _Terms(1.0, eps, decay, 1.0)
