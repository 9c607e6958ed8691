"""Which parallelisms run for which family, and at which sizes: the one table that planner, checks and runtime read.

A cell is empty where scale/train.py runs the family so, and says why not otherwise. tests/parallel gets the losses of
one rank there: in its long form (make soak) for every empty cell at every ZeRO stage.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import gcd
from typing import Protocol

from scaling.family import FAMILIES, Family
from scaling.shape import Shape

KINDS = ("tensor", "pipeline", "sequence", "expert")  # beside data parallelism


@dataclass(frozen=True, kw_only=True)
class Parallelisms:
    """Why a family is not split so; an empty string where it is."""

    tensor: str = ""
    pipeline: str = ""
    sequence: str = ""
    expert: str = "needs experts, of which its layers have none"

    @property
    def runnable(self) -> frozenset[str]:
        return frozenset(kind for kind, reason in vars(self).items() if not reason)


def _of(family: Family) -> Parallelisms:
    match family.kind:
        case "encoder-decoder":
            return Parallelisms(
                pipeline="would carry the encoder's output through every stage of the decoder, which is not built",
                sequence="is not built: its decoder attends to a second sequence",
            )
        case "vision":
            return Parallelisms(sequence="would cut a class token and a square of patches, which no size divides")
    return Parallelisms(expert="") if family.name == "mixtral" else Parallelisms()


PARALLELISMS: dict[str, Parallelisms] = {name: _of(family) for name, family in FAMILIES.items()}

# Why two kinds do not go together (deepspeed 0.19.8).
_APART: dict[frozenset[str], str] = {
    frozenset({"tensor", "pipeline"}): "AutoTP puts groups of data and tensor ranks in the place of the pipeline's "
    "(runtime/engine.py:957), which take stages for data parallel ranks, and the pipeline engine breaks off "
    "(runtime/pipe/engine.py:103)",
    frozenset({"tensor", "sequence"}): "AutoTP puts groups of data and tensor ranks in the place of Ulysses' "
    "(runtime/engine.py:957)",
    frozenset({"tensor", "expert"}): "experts are cut by tensor parallelism alone here",
    frozenset({"pipeline", "sequence"}): "a pipeline refuses the mpu that Ulysses needs (__init__.py:582)",
    frozenset({"pipeline", "expert"}): "AutoEP refuses a pipeline (module_inject/auto_ep_folding.py:203)",
    frozenset({"sequence", "expert"}): "AutoEP refuses sequence parallel ranks (runtime/engine.py:2220)",
}  # fmt: skip


class Split(Protocol):
    """A strategy, or as much of one as is chosen so far."""

    @property
    def zero_stage(self) -> int: ...
    @property
    def parallelism(self) -> dict[str, int]: ...


def not_run(shape: Shape, split: Split) -> str:
    """Why scale/train.py does not split a model of this family in these ways, whatever the sizes."""
    kinds = split.parallelism
    for kind in kinds:
        if reason := getattr(PARALLELISMS[shape.family], kind):
            return f"{kind} parallelism of a {shape.family} {reason}"
    for pair, reason in _APART.items():
        if pair <= set(kinds):
            return f"{' and '.join(sorted(pair))} parallelism do not go together: {reason}"
    return ""


def not_at_stage(split: Split) -> tuple[str, str]:
    """(why DeepSpeed does not split so at this ZeRO stage, the stages that work); empty strings where it does."""
    kinds, stage = split.parallelism, split.zero_stage
    if "pipeline" in kinds and stage > 1:  # runtime/pipe/engine.py:67 of DeepSpeed 0.19.8
        return f"DeepSpeed's pipeline does not run at ZeRO stage {stage}", "stages 0 and 1"
    return "", ""


def unsplittable(shape: Shape, split: Split, seq_divisor: int) -> tuple[str, str]:
    """(why `shape` cannot be split as asked, what works); empty strings where it can.

    `seq_divisor` is what the length of every sample is a multiple of.
    """
    if reason := not_run(shape, split):
        others = ", ".join(sorted(PARALLELISMS[shape.family].runnable)) or "none of the others"
        return reason, f"data parallelism works, and of the others one at a time: {others}"
    if (problem := not_at_stage(split))[0]:
        return problem
    for kind, size in split.parallelism.items():
        wrong, hint = indivisible(kind, size, shape, seq_divisor)
        if wrong:
            return f"{kind}_parallel_size {size} {wrong}", hint
    return "", ""


def indivisible(kind: str, size: int, shape: Shape, seq_divisor: int) -> tuple[str, str]:
    """(what the size does wrong, the sizes that work), run so or not; empty strings where nothing."""
    if kind == "pipeline" and size > shape.num_layers:
        return f"exceeds the {shape.num_layers} layers", f"1 to {shape.num_layers}"
    divided = _divided(kind, shape, seq_divisor)
    for what, whole in divided.items():
        if whole % size:
            hint = f"sizes that do: {', '.join(map(str, divisors(gcd(*divided.values()))))}"
            return f"does not divide {what} {whole}", hint
    return "", ""


def divisors(number: int) -> list[int]:
    """1 first."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _divided(kind: str, shape: Shape, seq_divisor: int) -> dict[str, int]:
    """What a size of this kind must divide, by name.

    Not the vocabulary: tensor ranks may have one token more or less. Nor the layers: stages may have one more or less.
    """
    heads = {"the key-value heads": shape.num_key_value_heads}
    return {
        "tensor": heads | {"the intermediate size": shape.intermediate_size},
        "pipeline": {},
        "sequence": heads | {"the sequence length": seq_divisor},
        "expert": {"the experts": shape.num_experts},
    }[kind]


def altered(optimizer: str, kinds: Collection[str]) -> str:
    """What of a recipe would not be itself under parallelism of these kinds, and why; an empty string where all is."""
    if "tensor" in kinds and optimizer in ("muon", "adafactor"):
        return f"optimizer: {optimizer} needs whole matrices, of which tensor parallelism gives each rank a part"
    if optimizer == "adafactor" and "expert" in kinds:
        return (
            "optimizer: adafactor takes all experts of a layer, gate and up, as one tensor, and these ranks have parts"
        )
    if optimizer == "muon" and {"sequence", "expert"} & set(kinds):
        return "optimizer: DeepSpeed's Muon wants gradients reduced whole, and these ranks theirs scattered"
    if optimizer == "muon" and "pipeline" in kinds:  # runtime/zero/muon/original_muon.py:279 of DeepSpeed 0.19.8
        return "optimizer: DeepSpeed's Muon takes all ranks' matrices for the same ones, and stages have others"
    return ""
