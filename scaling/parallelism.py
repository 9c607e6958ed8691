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


_BETWEEN_TWO = "would carry the encoder's output through every stage of the decoder, which is not built"
_PIPELINE = {
    name: _BETWEEN_TWO if traits.kind == "encoder-decoder" else "" for name, traits in FAMILIES.items()
}  # scaling/models/stages.py

PARALLELISMS: dict[str, Parallelisms] = {name: Parallelisms(pipeline=_PIPELINE[name]) for name in FAMILIES}


def unsplittable(shape: Shape, strategy: Strategy, seq_length: int) -> tuple[str, str]:
    """(why `shape` cannot be split as `strategy` asks, the sizes that work); empty strings where it can."""
    for kind, size in strategy.parallelism.items():
        if reason := getattr(PARALLELISMS[shape.family], kind):
            others = ", ".join(sorted(PARALLELISMS[shape.family].runnable)) or "data parallelism alone"
            return f"{kind} parallelism of a {shape.family} {reason}", f"{kind}_parallel_size 1; {others} works"
        if kind == "pipeline" and (problem := _no_pipeline(shape, strategy)):
            return problem
        if fitting := _sizes(kind, shape, seq_length):
            whole, what = fitting
            if whole % size:
                divisors = [str(n) for n in range(1, whole + 1) if whole % n == 0]
                return (
                    f"{kind}_parallel_size {size} does not divide {what} {whole}",
                    f"sizes that do: {', '.join(divisors)}",
                )
    return "", ""


def _no_pipeline(shape: Shape, strategy: Strategy) -> tuple[str, str] | None:
    """As above, of what a pipeline asks beside the family. Micro steps may be fewer than stages, which then wait."""
    size, stage = strategy.pipeline_parallel_size, strategy.zero_stage
    if size > shape.num_layers:
        return f"pipeline_parallel_size {size} exceeds the {shape.num_layers} layers", f"1 to {shape.num_layers}"
    if stage > 1:  # runtime/pipe/engine.py:67 of DeepSpeed 0.19.8
        return f"pipeline parallelism does not run at ZeRO stage {stage}", "stages 0 and 1"
    return None


def _sizes(kind: str, shape: Shape, seq_length: int) -> tuple[int, str] | None:
    """(what a size of this kind must divide, its name)."""
    return {
        "tensor": (shape.num_key_value_heads, "the key-value heads"),
        "pipeline": None,
        "sequence": (shape.num_key_value_heads, "the key-value heads"),
        "expert": (shape.num_experts, "the experts"),
    }[kind]
