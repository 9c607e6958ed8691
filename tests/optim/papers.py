"""Independent transcriptions of the papers, in one process in float64: each formula as printed, on whole tensors."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from scaling.optim import Lamb, Lans, Lars


def trained_by_the_paper(
    model: nn.Module, losses: Callable[[nn.Module, int], Tensor], steps: int, make: type, arguments: dict[str, Any],
    *, clip: float = 0.0, without_decay: Collection[str] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """`model` in float64 after `steps` of `losses(model, step)`; vectors do not decay, or `without_decay` does not."""
    model = model.double()
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    rule, kept = _RULES[make], {name: Moments(p) for name, p in trained.items()}
    for step in range(steps):
        model.zero_grad()
        losses(model, step).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained.values()))
        scale = clip / (norm + 1e-6) if clip and norm > clip else 1.0
        if arguments.get("normalize_gradients"):
            scale = 1 / norm
        with torch.no_grad():
            for name, p in trained.items():
                decays = p.ndim >= 2 if without_decay is None else name not in without_decay
                rule(p, p.grad * scale, kept[name], step + 1, **{**arguments, "decays": decays})
    return {name: p.detach() for name, p in named.items()}


class Moments:
    def __init__(self, like: Tensor) -> None:
        self.m, self.v = torch.zeros_like(like), torch.zeros_like(like)


def lamb(
    x: Tensor, g: Tensor, kept: Moments, t: int, *, lr: float, weight_decay: float, decays: bool,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, bias_correction: str = "moments",
    trust_clip: tuple[float, float] | None = None, always_adapt: bool = False, normalize_gradients: bool = False,
) -> None:  # fmt: skip
    """You et al. 2020, algorithm 2."""
    b1, b2 = betas
    kept.m.copy_(b1 * kept.m + (1 - b1) * g)
    kept.v.copy_(b2 * kept.v + (1 - b2) * g * g)
    correct = bias_correction == "moments"
    r = (kept.m / (1 - b1**t) if correct else kept.m) / ((kept.v / (1 - b2**t) if correct else kept.v).sqrt() + eps)
    u = r + weight_decay * x if decays else r
    ratio = 1.0
    if (decays or always_adapt) and float(x.norm()) > 0 and float(u.norm()) > 0:
        ratio = float(x.norm() / u.norm())
    if (decays or always_adapt) and trust_clip:
        ratio = min(max(ratio, trust_clip[0]), trust_clip[1])
    length = math.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction == "step" else 1.0
    x -= lr * length * ratio * u


def lars(
    w: Tensor, g: Tensor, kept: Moments, t: int, *, lr: float, weight_decay: float, decays: bool,
    trust_coefficient: float, momentum: float = 0.9,
) -> None:  # fmt: skip
    """You, Gitman & Ginsburg 2017, algorithm 1."""
    beta = weight_decay if decays else 0.0
    rate = lr * trust_coefficient * w.norm() / (g.norm() + beta * w.norm()) if decays else lr
    kept.m.copy_(momentum * kept.m + rate * (g + beta * w))
    w -= kept.m


def lans(
    x: Tensor, g: Tensor, kept: Moments, t: int, *, lr: float, weight_decay: float, decays: bool,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
) -> None:  # fmt: skip
    """Zheng et al. 2020, algorithm 2; what does not decay is not scaled either, as in its authors' apex branch."""
    b1, b2 = betas
    g = g / g.norm()
    kept.m.copy_(b1 * kept.m + (1 - b1) * g)
    kept.v.copy_(b2 * kept.v + (1 - b2) * g * g)
    root = (kept.v / (1 - b2**t)).sqrt() + eps
    r, c = kept.m / (1 - b1**t) / root, g / root
    if not decays:
        x -= lr * (b1 * r + (1 - b1) * c)
        return
    r, c = r + weight_decay * x, c + weight_decay * x
    x -= lr * x.norm() * (b1 * r / r.norm() + (1 - b1) * c / c.norm())


_RULES = {Lamb: lamb, Lars: lars, Lans: lans}
