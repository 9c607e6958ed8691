"""Which parallelisms run for which family, and at which sizes: the one table that planner, checks and runtime read.

A cell is empty where scale/train.py runs the family so, and says why not otherwise. tests/training/test_parallel.py
trains every empty cell and gets the losses of one rank.
"""

from dataclasses import dataclass

from scaling.family import FAMILIES
from scaling.shape import Shape
from scaling.strategy import Strategy

_NOT_YET = "is not built yet"


@dataclass(frozen=True, kw_only=True)
class Parallelisms:
    """Why a family is not split so; an empty string where it is."""

    tensor: str = _NOT_YET
    pipeline: str = _NOT_YET
    sequence: str = _NOT_YET
    expert: str = "needs experts, which its layers have none of"

    @property
    def runnable(self) -> frozenset[str]:
        return frozenset(kind for kind, reason in vars(self).items() if not reason)


PARALLELISMS: dict[str, Parallelisms] = {name: Parallelisms() for name in FAMILIES}


def unsplittable(shape: Shape, strategy: Strategy, seq_length: int) -> tuple[str, str]:
    """(why `shape` cannot be split as `strategy` asks, the sizes that work); empty strings where it can."""
    for kind, size in strategy.parallelism.items():
        if reason := getattr(PARALLELISMS[shape.family], kind):
            others = ", ".join(sorted(PARALLELISMS[shape.family].runnable)) or "data parallelism alone"
            return f"{kind} parallelism of a {shape.family} {reason}", f"{kind}_parallel_size 1; {others} works"
        if fitting := _sizes(kind, shape, seq_length):
            whole, what = fitting
            if whole % size:
                divisors = [str(n) for n in range(1, whole + 1) if whole % n == 0]
                return (
                    f"{kind}_parallel_size {size} does not divide {what} {whole}",
                    f"sizes that do: {', '.join(divisors)}",
                )
    return "", ""


def _sizes(kind: str, shape: Shape, seq_length: int) -> tuple[int, str] | None:
    """(what a size of this kind must divide, its name)."""
    return {
        "tensor": (shape.num_key_value_heads, "the key-value heads"),
        "pipeline": None,
        "sequence": (shape.num_key_value_heads, "the key-value heads"),
        "expert": (shape.num_experts, "the experts"),
    }[kind]
