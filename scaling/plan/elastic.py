"""One global batch for a range of GPUs, so that a run on any number of them has the same loss."""

import re
from collections.abc import Sequence
from dataclasses import replace
from math import lcm

from scaling.errors import InputError
from scaling.hardware import Cluster

_RANGE = re.compile(r"([0-9]{1,7})-([0-9]{1,7})", re.ASCII)
# How far from the batch asked for, in times, a common one may lie: beyond it the learning rate would be another.
_FURTHEST = 2


def sizes_of(text: str, cluster: Cluster) -> list[Cluster]:
    """The parts of `cluster` that "4-8" means: every number of GPUs within a node, whole nodes beyond it."""
    if cluster.is_cpu:
        raise InputError("elastic", text, "has no meaning on a CPU, whose ranks share one machine", hint="name a --gpu")
    match = _RANGE.fullmatch(text.strip())
    if not match:
        raise InputError("elastic", text, "is not a range of GPUs", hint="write 4-8")
    fewest, most = int(match[1]), int(match[2])
    if not 1 <= fewest <= most:
        raise InputError("elastic", text, "does not go from a number of GPUs to as many or more", hint="write 4-8")
    if most > cluster.world_size:
        raise InputError("elastic", text, f"goes beyond the {cluster.world_size} GPUs of {cluster}",
                         hint="give more with --gpus and --nodes")  # fmt: skip
    per_node = cluster.gpus_per_node
    within = [replace(cluster, num_nodes=1, gpus_per_node=gpus) for gpus in range(1, per_node)]
    whole = [replace(cluster, num_nodes=nodes) for nodes in range(1, cluster.num_nodes + 1)]
    sizes = [size for size in (*within, *whole) if fewest <= size.world_size <= most]
    if not sizes:
        hint = f"beyond a node only whole nodes of {per_node} count: {per_node}-{2 * per_node}"
        raise InputError("elastic", text, "holds no number of GPUs that this cluster can have", hint=hint)
    return sizes


def common_batch(asked: int, sizes: Sequence[Cluster], split: int = 1) -> int:
    """The global batch nearest to `asked` that the data parallel ranks of every size divide, where `split` ranks share
    their samples.

    Raises InputError where that is far away."""
    worlds = [size.world_size for size in sizes]
    ranks = [world // split for world in worlds]
    batch = _nearest(asked, ranks)
    if not _is_near(asked, batch):
        hint = f"--global-batch-size {batch}"
        for end in range(len(worlds) - 1, 0, -1):
            if _is_near(asked, served := _nearest(asked, ranks[:end])):
                hint += f"; or --elastic {worlds[0]}-{worlds[end - 1]}, where it is {served}"
                break
        problem = f"has no global batch within {_FURTHEST} x of {asked}: the nearest that all divide is {batch}"
        raise InputError("elastic", f"{worlds[0]}-{worlds[-1]}", problem, hint=hint)
    return batch


def _nearest(asked: int, worlds: Sequence[int]) -> int:
    multiple = lcm(*worlds)
    below = asked // multiple * multiple
    return below if below and asked - below < multiple / 2 else below + multiple


def _is_near(asked: int, batch: int) -> bool:
    return asked / _FURTHEST <= batch <= asked * _FURTHEST
