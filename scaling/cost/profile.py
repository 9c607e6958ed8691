"""Stack profiles: the few coefficients in which code stacks differ, as data with provenance.

The structure (what is sharded, when it lives, how many elements a layer saves) is the same for all and is never
fitted. A profile scales it: how many copies of a tensor a stack's kernels keep, how wide its gradients are, what its
loss holds per logit.
"""

from dataclasses import dataclass

from scaling.units import GIB


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes per parameter on a rank before sharding; `passing` gradients live within one micro step's backward."""

    parameter: int
    passing: int
    gradient: int
    master: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """`cut` scales the saved tensors that tensor parallelism divides, `uncut` those that it does not.

    `gated_tensors` of F elements are saved by a gated MLP: gate, up and their product are 3, the activated gate a 4th
    where kernels are not fused. `score_bytes` are kept per attention score by eager attention, `logit_bytes` per logit
    at the loss. `selective_fraction` of a layer's saved tensors remain under selective recomputation, `logit_peak`
    where the logits' moment has its own. `gathered_layers` of parameters stand whole beside a fully sharded model.
    """

    name: str
    cut: float
    uncut: float
    gated_tensors: int
    score_bytes: float
    logit_bytes: float
    selective_fraction: float
    constant_bytes: int
    gathered_layers: float
    reserved_over_allocated: float
    widths: dict[str, Widths]
    provenance: str


_MIXED = Widths(parameter=2, passing=2, gradient=4, master=4)  # 16-bit weights, fp32 sums and master copy
_FP32 = Widths(parameter=4, passing=0, gradient=4, master=0)
_PURE = Widths(parameter=2, passing=0, gradient=2, master=0)
