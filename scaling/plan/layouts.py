"""What may be searched, and what can be run: legal combinations of stage, offload, checkpointing, parallel sizes.

scaling/parallelism.py says what scale/train.py can run; the search prices the rest too, and says what it would bring.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from scaling.hardware import Cluster
from scaling.optimizers import unsound
from scaling.parallelism import altered, divisors, indivisible, not_at_stage, not_run
from scaling.recipe import Recipe
from scaling.shape import Shape
from scaling.strategy import Checkpointing, Offload, family_name, parallelism


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A strategy without its batch split. `not_run` says why scale/train.py does not run it, where it does not."""

    zero_stage: int
    offload_optimizer: Offload
    offload_param: Offload
    activation_checkpointing: Checkpointing
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    sequence_parallel_size: int = 1
    expert_parallel_size: int = 1
    not_run: str = ""

    @property
    def split(self) -> int:
        """Ranks to one copy of the data."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.sequence_parallel_size

    @property
    def parallelism(self) -> dict[str, int]:
        """The kinds of parallelism beside data parallelism, each with its size."""
        sizes = (self.tensor_parallel_size, self.pipeline_parallel_size, self.sequence_parallel_size)
        return parallelism(*sizes, self.expert_parallel_size)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.parallelism)

    @property
    def runnable(self) -> bool:
        return not self.not_run

    def __str__(self) -> str:
        return family_name(self.zero_stage, self.offload_optimizer, self.offload_param, self.activation_checkpointing)


def layouts(recipe: Recipe, cluster: Cluster) -> Iterator[Layout]:
    """Every layout whose parallel sizes divide the model, the ranks and the batch, and whose offloads are obeyed."""
    places = offloads_on(cluster)
    machinery = [
        (stage, optimizer, param)
        for stage, optimizer, param in product(range(4), places, places)
        if not offload_ignored(stage, optimizer, param)
    ]
    checkpointings: tuple[Checkpointing, ...] = ("none", "full")
    for tp, pp, sp, ep in parallel_sizes(recipe.shape, recipe.seq_divisor, cluster):
        if recipe.batch_divisor % (cluster.world_size // (tp * pp * sp)):
            continue
        for (stage, optimizer, param), checkpointing in product(machinery, checkpointings):
            layout = Layout(
                zero_stage=stage,
                offload_optimizer=optimizer,
                offload_param=param,
                activation_checkpointing=checkpointing,
                tensor_parallel_size=tp,
                pipeline_parallel_size=pp,
                sequence_parallel_size=sp,
                expert_parallel_size=ep,
            )
            layout = replace(layout, not_run=not_run(recipe.shape, layout))
            if layout.not_run or not not_at_stage(layout)[0]:
                yield layout


def offloads_on(cluster: Cluster) -> tuple[Offload, ...]:
    """Where states may live: on a CPU, whose memory is the host's, only there; on NVMe where the cluster has one."""
    if cluster.is_cpu:
        return ("none",)
    return ("none", "cpu", "nvme") if cluster.nvme_bytes else ("none", "cpu")


class Sizes(NamedTuple):
    """Parallel sizes beside data parallelism. Experts are spread over ranks that do not share their data."""

    tensor: int = 1
    pipeline: int = 1
    sequence: int = 1
    expert: int = 1


def parallel_sizes(shape: Shape, seq_divisor: int, cluster: Cluster) -> Iterator[Sizes]:
    """Sizes that divide the ranks and the model; none of them first.

    Tensor and sequence parallel ranks stay within a node, where the links are fast. Of two kinds together only a
    pipeline of tensor parallel stages is priced, as other stacks train large models.
    """
    world, within = cluster.world_size, divisors(cluster.gpus_per_node)

    def sizes(kind: str, among: list[int]) -> list[int]:
        return [size for size in among if not indivisible(kind, size, shape, seq_divisor)[0]]

    for pp, tp in product(sizes("pipeline", divisors(world)), sizes("tensor", within)):
        if world % (tp * pp) == 0:
            yield Sizes(tensor=tp, pipeline=pp)
    for sp in sizes("sequence", within)[1:]:
        yield Sizes(sequence=sp)
    for ep in sizes("expert", divisors(world))[1:]:
        yield Sizes(expert=ep)


def offload_ignored(zero_stage: int, offload_optimizer: Offload, offload_param: Offload) -> str:
    """What DeepSpeed 0.19.8 would do instead of offloading as asked, at this stage; an empty string where it obeys."""
    if zero_stage == 0 and offload_optimizer != "none":
        return "DeepSpeed accepts optimizer offload at stage 0 and ignores it"
    if zero_stage < 3 and offload_param != "none":
        return "DeepSpeed offloads parameters at stage 3 only, and ignores it below"
    if zero_stage < 3 and offload_optimizer == "nvme":  # runtime/zero/stage_1_and_2.py:220
        return "DeepSpeed offloads the optimizer to NVMe at stage 3 only, and below it silently to the CPU"
    return ""


def illegal(recipe: Recipe, layout: Layout) -> str:
    """Why DeepSpeed 0.19.8 would refuse a layout or do something else than asked; an empty string where neither."""
    stage = layout.zero_stage
    if reason := unsound(recipe.optimizer.name, stage, layout.offload_optimizer):
        return reason
    if stage == 0 and recipe.precision != "fp32":
        return (
            f"DeepSpeed 0.19.8 takes an extra optimizer step at the start of a {recipe.precision} run at stage 0, "
            "so its loss would differ from every other stage's"
        )
    if reason := altered(recipe.optimizer.name, layout.kinds):
        return reason
    return not_at_stage(layout)[0]
