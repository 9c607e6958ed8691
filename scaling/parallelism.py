"""Which parallelisms run for which family, and at which sizes: the one table that planner, checks and runtime read.

A cell is empty where scale/train.py runs the family so, and says why not otherwise. tests/parallel trains every
empty cell and gets the losses of one rank.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import gcd

from scaling.family import FAMILIES
from scaling.shape import Shape
from scaling.strategy import Strategy

_NOT_YET = "is not built yet"


@dataclass(frozen=True, kw_only=True)
class Parallelisms:
    """Why a family is not split so; an empty string where it is."""

    tensor: str = ""
    pipeline: str = _NOT_YET
    sequence: str = _NOT_YET
    expert: str = "needs experts, which its layers have none of"

    @property
    def runnable(self) -> frozenset[str]:
        return frozenset(kind for kind, reason in vars(self).items() if not reason)


PARALLELISMS: dict[str, Parallelisms] = {name: Parallelisms() for name in FAMILIES}


# Why two kinds do not go together (deepspeed 0.19.8).
_APART: dict[frozenset[str], str] = {
    frozenset({"tensor", "pipeline"}): "AutoTP puts groups of data and tensor ranks in the place of the pipeline's "
    "(runtime/engine.py:957), which take stages for data parallel ranks, and the pipeline engine breaks off "
    "(runtime/pipe/engine.py:103)",
    frozenset({"tensor", "sequence"}): "AutoTP puts groups of data and tensor ranks in the place of Ulysses' "
    "(runtime/engine.py:957)",
    frozenset({"tensor", "expert"}): "experts are cut by tensor parallelism alone here",
}  # fmt: skip


def apart(kinds: Collection[str]) -> str:
    """Why kinds of parallelism do not go together; an empty string where they do."""
    for pair, reason in _APART.items():
        if pair <= set(kinds):
            return f"{' and '.join(sorted(pair))} parallelism do not go together: {reason}"
    return ""


def unsplittable(shape: Shape, strategy: Strategy, seq_length: int) -> tuple[str, str]:
    """(why `shape` cannot be split as `strategy` asks, the sizes that work); empty strings where it can."""
    if reason := apart(strategy.parallelism):
        return reason, "one of the two"
    for kind, size in strategy.parallelism.items():
        if reason := getattr(PARALLELISMS[shape.family], kind):
            others = ", ".join(sorted(PARALLELISMS[shape.family].runnable)) or "data parallelism alone"
            return f"{kind} parallelism of a {shape.family} {reason}", f"{kind}_parallel_size 1; {others} works"
        divided = _divided(kind, shape, seq_length)
        for what, whole in divided.items():
            if whole % size:
                common = gcd(*divided.values())
                divisors = [str(n) for n in range(1, common + 1) if common % n == 0]
                return (
                    f"{kind}_parallel_size {size} does not divide {what} {whole}",
                    f"sizes that do: {', '.join(divisors)}",
                )
    return "", ""


def altered(optimizer: str, dropout: float, kinds: Collection[str]) -> str:
    """What of a recipe would not be itself under parallelism of these kinds, and why; an empty string where all is."""
    if "tensor" in kinds:
        if optimizer in ("muon", "adafactor"):
            return f"optimizer: {optimizer} needs whole matrices, of which tensor parallelism gives each rank a part"
        if dropout:
            return (
                f"dropout: {dropout:g} under tensor parallelism: what every rank computes needs the same mask on all, "
                "and heads that are cut different ones, but torch draws both from one generator; 0 works"
            )
    return ""


def _divided(kind: str, shape: Shape, seq_length: int) -> dict[str, int]:
    """What a size of this kind must divide, by name.

    Not the vocabulary: tensor ranks may have one token more or less.
    """
    heads = {"the key-value heads": shape.num_key_value_heads}
    return {
        "tensor": heads | {"the intermediate size": shape.intermediate_size},
        "pipeline": {},
        "sequence": heads,
        "expert": {"the experts": shape.num_experts},
    }[kind]
