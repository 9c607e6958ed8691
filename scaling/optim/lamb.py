"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", arXiv 1904.00962, algorithm 2).

m = b1 m + (1 - b1) g        u = m^ / (sqrt(v^) + eps) + decay w
v = b2 v + (1 - b2) g^2      w = w - lr |w| / |u| u          norms of each whole tensor
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from scaling.errors import InputError
from scaling.optim import kernels
from scaling.optim.kernels import KernelName, Rows, Terms
from scaling.optim.layout import Vector, gradients_of, pieces_of
from scaling.optim.trust import Sweeps, TrustRatioOptimizer

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


class Lamb(TrustRatioOptimizer):
    """LAMB, each tensor's trust ratio its own however ZeRO and model parallelism cut it.

    `bias_correction` divides the "moments" by 1 - b^t, or scales the "step" by what that comes to without eps.
    `trust_clip` bounds the ratio. A parameter that does not decay has ratio 1 unless `always_adapt`.
    `normalize_gradients` divides the gradient by its global norm. `kernel` is explained in scaling/optim/kernels.
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
        kernel: KernelName = "auto",
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        if bias_correction not in get_args(BiasCorrection):
            known = ", ".join(get_args(BiasCorrection))
            raise InputError("bias_correction", bias_correction, "is no convention", hint=known)
        self.bias_correction, self.trust_clip, self.always_adapt = bias_correction, trust_clip, always_adapt
        self.kernel: KernelName = kernel
        super().__init__(params, defaults, exclude=exclude, normalize=normalize_gradients)

    def sweeps(self, vectors: list[Vector], group: dict[str, Any], gradient_scale: Tensor | None) -> Sweeps:
        states = self.states_of(vectors, "exp_avg", "exp_avg_sq")
        terms, kernel = self._terms(group, states[0]["step"]), kernels.choose(self.kernel, vectors[0].master)
        rows = Rows(
            ws=pieces_of(vectors, (vector.tensor for vector in vectors)),
            gs=gradients_of(vectors),
            ms=pieces_of(vectors, (state["exp_avg"] for state in states)),
            vs=pieces_of(vectors, (state["exp_avg_sq"] for state in states)),
            decays=self.decays_of(vectors),
        )
        if not rows.ws:  # this rank has padding alone
            yield torch.zeros(2, 0, dtype=torch.float64, device=vectors[0].master.device)
            return
        squares = kernel.measure(rows, terms, gradient_scale)
        rows = rows._replace(gs=[])  # ZeRO may free them
        squares[1] *= terms.factor**2
        whole = yield squares
        ratios = self.ratios(whole, self.weight_decay_of(vectors, group))
        kernel.apply(rows, terms, -group["lr"] * terms.length * ratios)

    def ratios(self, squares: Tensor, weight_decay: Tensor) -> Tensor:
        weight_norms, update_norms = squares.sqrt()
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
        if self.trust_clip is not None:
            ratios = ratios.clamp(*self.trust_clip)
        return ratios if self.always_adapt else torch.where(weight_decay != 0, ratios, 1.0)

    def _terms(self, group: dict[str, Any], step: int) -> Terms:
        """m^ / (sqrt(v^) + eps) = f m / (sqrt(v) + eps sqrt(1 - b2^t)), f = sqrt(1 - b2^t) / (1 - b1^t)."""
        b1, b2 = betas = group["betas"]
        root = math.sqrt(1 - b2**step)
        factor = root / (1 - b1**step)
        eps, decay = group["eps"], group["weight_decay"]
        match self.bias_correction:
            case "moments":
                return Terms(betas, eps * root, decay / factor, factor, length=factor)
            case "step":
                return Terms(betas, eps, decay, 1.0, length=factor)
            case "none":
                return Terms(betas, eps, decay, 1.0, length=1.0)
