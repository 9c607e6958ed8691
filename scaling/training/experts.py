"""Experts spread over ranks by AutoEP, in the names and places that transformers gives them whole.

transformers 5.23.0 stacks the experts of a layer: `gate_up_proj` [E, 2 F, D], the gate's rows before the other's, and
`down_proj` [E, D, F]. A rank of AutoEP (deepspeed 0.19.8, moe/ep_experts.py) has E / S of them, as `w1` and `w3`
[E / S, F, D] and `w2` [E / S, D, F].

Alphabet: E experts, S ranks that share them, F intermediate, D hidden.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

# The end of a parameter's name here and in transformers, which of how many parts of an expert it is there.
_NAMES = {
    ".experts.w1": (".experts.gate_up_proj", 0, 2),
    ".experts.w3": (".experts.gate_up_proj", 1, 2),
    ".experts.w2": (".experts.down_proj", 0, 1),
}
_ROUTER = (".router.gate.weight", ".gate.weight")


class Part(NamedTuple):
    """What a rank's parameter is of the whole one `name`: blocks of `size` elements, the first at `first`, then each
    `stride` on."""

    name: str
    shape: list[int]
    size: int
    first: int = 0
    stride: int = 0

    def places(self, start: int, stop: int, offset: int) -> Iterator[list[int]]:
        """[start, stop, offset in the whole] of each stretch of what begins at `offset` in this rank's parameter."""
        while start < stop:
            block, within = divmod(offset, self.size)
            taken = min(stop - start, self.size - within)
            yield [start, start + taken, self.first + block * self.stride + within]
            start, offset = start + taken, offset + taken


def part_of(name: str, parameter: Tensor) -> Part:
    """What `parameter`, called `name` by the engine, is of transformers' own."""
    shape = list(getattr(parameter, "ds_shape", parameter.shape))
    for ending, (theirs, number, parts) in _NAMES.items():
        if name.endswith(ending):
            experts, rows, columns = shape
            size, ranks, rank = rows * columns, *_ranks(parameter)
            return Part(
                name.removesuffix(ending) + theirs, [experts * ranks, rows * parts, columns], size,
                first=(rank * experts * parts + number) * size, stride=parts * size,
            )  # fmt: skip
    ours, theirs = _ROUTER
    return Part(name.removesuffix(ours) + theirs if name.endswith(ours) else name, shape, max(1, math.prod(shape)))


def _ranks(parameter: Any) -> tuple[int, int]:
    """(ranks that share the experts, this one's number among them)."""
    from deepspeed.utils import groups

    return (
        groups._get_expert_parallel_world_size(parameter.group_name),
        groups._get_expert_parallel_rank(parameter.group_name),
    )
