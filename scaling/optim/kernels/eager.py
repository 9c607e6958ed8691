"""LAMB's sweeps in torch's operators: no compiler, every device."""

import torch
from torch import Tensor

from scaling.optim.kernels.rows import Rows, Terms, batches, move, squared_norms

# torch's fused AdamW moves x by -lr m / (sqrt(v) + eps) and advances m and v as it goes. With lr -1 and x = decay w it
# is a sweep of LAMB that leaves u in x; at a step as late as this Adam's own bias corrections are 1.
_LATE = 1e9


def measure(rows: Rows, terms: Terms, gradient_scale: Tensor | None) -> Tensor:
    """[2, parts] in fp64: squares of w and u / factor."""
    device, (b1, b2) = rows.ws[0].device, terms.betas
    late = torch.full((), _LATE, dtype=torch.float32, device=device)
    squares = torch.zeros(2, len(rows.ws), dtype=torch.float64, device=device)
    for which, (ws, gs, ms, vs) in batches(*rows[:4]):
        if gradient_scale is not None:
            gs = torch._foreach_mul(gs, gradient_scale.to(gs[0].dtype))
        us = torch._foreach_mul(ws, [terms.decay * decays for decays in rows.decays[which]])
        torch._fused_adamw_(
            us, gs, ms, vs, [], [late] * len(us), lr=-1.0, beta1=b1, beta2=b2, weight_decay=0.0, eps=terms.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        squares[:, which] += torch.stack([squared_norms(ws), squared_norms(us)])
    return squares


def apply(rows: Rows, terms: Terms, rates: Tensor) -> None:
    """w += rate u / factor, with a rate for each part."""
    rates = rates.to(rows.ws[0].dtype)
    for which, (ws, ms, vs) in batches(rows.ws, rows.ms, rows.vs):
        roots = torch._foreach_sqrt(vs)
        torch._foreach_add_(roots, terms.eps)
        us = torch._foreach_div(ms, roots)
        decaying = [i for i, decays in enumerate(rows.decays[which]) if decays]
        if decaying and terms.decay:
            torch._foreach_add_([us[i] for i in decaying], [ws[i] for i in decaying], alpha=terms.decay)
        move(ws, us, rates[which])
