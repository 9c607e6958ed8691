"""Which parallelisms run for which family, and at which sizes: the one table that planner, checks and runtime read.

A cell is empty where scale/train.py runs the family so, and says why not otherwise. tests/training/test_parallel.py
trains every empty cell and gets the losses of one rank.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

from scaling.family import FAMILIES
from scaling.shape import Shape

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


_SEQUENCE = {
    "encoder-decoder": "is not built: its decoder attends to a second sequence",
    "vision": "would cut a class token and a square of patches, which no size divides",
}
PARALLELISMS: dict[str, Parallelisms] = {
    name: Parallelisms(sequence=_SEQUENCE.get(family.kind, "")) for name, family in FAMILIES.items()
}
PARALLELISMS["mixtral"] = replace(PARALLELISMS["mixtral"], expert="")


class Split(Protocol):
    """A strategy, or as much of one as is chosen so far."""

    @property
    def zero_stage(self) -> int: ...
    @property
    def parallelism(self) -> dict[str, int]: ...


def not_run(shape: Shape, split: Split) -> str:
    """Why scale/train.py does not split a model of this family in these ways, whatever the sizes."""
    kinds = list(split.parallelism)
    for kind in kinds:
        if reason := getattr(PARALLELISMS[shape.family], kind):
            return f"{kind} parallelism of a {shape.family} {reason}"
    if len(kinds) > 1:
        return f"{' and '.join(kinds)} parallelism do not go together"
    return ""


def unsplittable(shape: Shape, split: Split, seq_length: int) -> tuple[str, str]:
    """(why `shape` cannot be split as asked, what works); empty strings where it can."""
    if reason := not_run(shape, split):
        others = ", ".join(sorted(PARALLELISMS[shape.family].runnable)) or "none of the others"
        return reason, f"data parallelism works, and of the others: {others}"
    for kind, size in split.parallelism.items():
        wholes = _sizes(kind, shape, seq_length)
        for what, whole in wholes.items():
            if whole % size:
                common = math.gcd(*wholes.values())
                divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
                return f"{kind}_parallel_size {size} does not divide {what} {whole}", f"sizes that do: {divisors}"
    return "", ""


def _sizes(kind: str, shape: Shape, seq_length: int) -> dict[str, int]:
    """What a size of this kind must divide, by name."""
    return {
        "tensor": {"the key-value heads": shape.num_key_value_heads},
        "pipeline": {},
        "sequence": {"the key-value heads": shape.num_key_value_heads, "the sequence length": seq_length},
        "expert": {"the experts": shape.num_experts},
    }[kind]
