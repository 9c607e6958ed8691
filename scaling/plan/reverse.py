"""The question turned round: the largest model for a cluster, the fewest or the cheapest GPUs for a model."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from scaling.errors import Indivisible, Infeasible, InputError
from scaling.hardware import Cluster
from scaling.plan.explain import shortage
from scaling.plan.plan import TIE_FRACTION, Plan
from scaling.recipe import Recipe
from scaling.units import format_count

_SMALLEST_MODEL, _LARGEST_MODEL = 10_000_000, 10**14
_MOST_NODES = 4096
# The answer is this close to the true limit; the sizes that a family can have lie no closer.
_CLOSE_FRACTION = 0.02


def _smallest(planned: Callable[[int], Plan]) -> tuple[int, Plan]:
    """About the smallest size that a family has a shape of, beside its vocabulary, and its plan."""
    size = _SMALLEST_MODEL
    while True:
        try:
            return size, planned(size)
        except InputError as error:
            if not (isinstance(error, Indivisible) or error.field == "params") or size > _LARGEST_MODEL:
                raise
            size *= 2


def _from(planned: Callable[[int], Plan], size: int, below: float) -> tuple[int, Plan] | None:
    """The next size from `size` on whose shape the pinned sizes divide, and its plan; None where none lies below."""
    while size < below:
        try:
            return size, planned(size)
        except Indivisible:
            size = max(size + 1, round(size * (1 + _CLOSE_FRACTION)))
    return None


def largest_model(planned: Callable[[int], Plan]) -> Plan:
    """The plan of the largest model that fits, where `planned` plans a model of so many parameters.

    Memory grows with size, so the limit is found by bisection. Raises Infeasible where not even a small model fits.
    """
    smallest, best = _smallest(planned)
    if not best.fits:
        raise Infeasible(f"not even {format_count(smallest)} parameters fit", hint="; ".join(best.remedies))
    low, high = float(smallest), float(_LARGEST_MODEL)
    while high / low > 1 + _CLOSE_FRACTION:
        middle = (low * high) ** 0.5
        found = _from(planned, round(middle), high)
        if found and found[1].fits:
            low, best = found
        else:
            high = middle
    return best


def fewest_gpus(recipe: Recipe, cluster: Cluster, planned: Callable[[Recipe, Cluster], Plan]) -> Plan:
    """The plan on the fewest GPUs of the cluster's kind that hold `recipe`: 1, 2, 4, ... of a node, then nodes.

    Raises Infeasible where no number does.
    """
    last, undivided = None, None
    for grown in _growing(cluster, _MOST_NODES):
        try:
            last = planned(recipe, grown)
        except Indivisible as error:
            undivided = error
            continue
        if last.fits:
            return last
    if last is None and undivided:
        raise undivided
    name = f"{recipe.shape.name} at a global batch of {recipe.global_batch_size}"
    raise Infeasible(
        f"no number of {cluster.accelerator.name} up to {_MOST_NODES} nodes holds {name}",
        hint=f"on {last.cluster}: {shortage(last.strategy, last.chosen.memory)}" if last else "",
    )


def cheapest(
    recipe: Recipe, cluster: Cluster, planned: Callable[[Recipe, Cluster], Plan]
) -> tuple[Plan, tuple[Plan, ...]]:
    """The plan of the fewest GPU-hours on part of `cluster` or all of it, and the plan of every size looked at.

    Sizes are 1, 2, 4, ... GPUs of a node, then whole nodes, doubling, and `cluster` itself; those that do not divide
    the batch, or that pinned sizes do not divide, are left out. Of sizes whose GPU-hours tie, the soonest done wins.
    Where none fits, the plan is that of the whole cluster.
    """
    if cluster.is_cpu:
        raise InputError("objective", "cost", "has no meaning on a CPU, whose ranks share one machine", hint="time")
    plans: list[Plan] = []
    for size in _growing(cluster, cluster.num_nodes):
        if size.world_size < cluster.world_size:
            with suppress(Indivisible):
                plans.append(planned(recipe, size))
    plans.append(planned(recipe, cluster))
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return plans[-1], tuple(plans)
    fewest = min(plan.chosen.gpu_hours for plan in fitting)
    tied = [plan for plan in fitting if plan.chosen.gpu_hours <= fewest * (1 + TIE_FRACTION)]
    return min(tied, key=lambda plan: plan.chosen.time.train_days), tuple(plans)


def _growing(cluster: Cluster, most_nodes: int) -> Iterator[Cluster]:
    """1, 2, 4, ... GPUs of one of the cluster's nodes, then 1, 2, 4, ... whole nodes; its hostfile where it reaches."""
    gpus = 1
    while gpus < cluster.gpus_per_node:
        yield replace(cluster, num_nodes=1, gpus_per_node=gpus)
        gpus *= 2
    nodes = 1
    while nodes <= most_nodes:
        yield replace(cluster, num_nodes=nodes, hostfile=cluster.hostfile if nodes <= cluster.num_nodes else None)
        nodes *= 2
