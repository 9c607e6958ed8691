"""The question turned round: the largest model for a cluster, the fewest GPUs for a model."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from scaling.errors import Infeasible, InputError
from scaling.hardware import Cluster
from scaling.plan.plan import Plan
from scaling.recipe import Recipe
from scaling.units import format_count

_SMALLEST_MODEL, _LARGEST_MODEL = 10_000_000, 10**14
_MOST_NODES = 4096
# The answer is this close to the true limit; the sizes that a family can have lie no closer.
_CLOSE_FRACTION = 0.02


def largest_model(planned: Callable[[int], Plan]) -> Plan:
    """The plan of the largest model that fits, where `planned` plans a model of so many parameters.

    Memory grows with size, so the limit is found by bisection. Raises Infeasible where not even a small model fits.
    """
    best = planned(_SMALLEST_MODEL)
    if not best.fits:
        raise Infeasible(f"not even {format_count(_SMALLEST_MODEL)} parameters fit", hint="; ".join(best.remedies))
    low, high = float(_SMALLEST_MODEL), float(_LARGEST_MODEL)
    while high / low > 1 + _CLOSE_FRACTION:
        middle = (low * high) ** 0.5
        plan = planned(round(middle))
        if plan.fits:
            low, best = middle, plan
        else:
            high = middle
    return best


def fewest_gpus(recipe: Recipe, cluster: Cluster, planned: Callable[[Recipe, Cluster], Plan]) -> Plan:
    """The plan on the fewest GPUs of the cluster's kind that hold `recipe`: 1, 2, 4, ... of a node, then nodes.

    Raises Infeasible where no number does.
    """
    last: Plan | None = None
    for grown in _growing(cluster):
        try:
            last = planned(recipe, grown)
        except InputError as error:
            if error.field != "global_batch_size":
                raise
            continue  # the batch does not divide by so many
        if last.fits:
            return last
    name = f"{recipe.shape.name} at a global batch of {recipe.global_batch_size}"
    raise Infeasible(
        f"no number of {cluster.accelerator.name} up to {_MOST_NODES} nodes holds {name}",
        hint=f"on {last.cluster}: {last.rejected[-1].reason}" if last else "choose a batch that more ranks divide",
    )


def _growing(cluster: Cluster) -> Iterator[Cluster]:
    gpus = 1
    while gpus < cluster.accelerator.gpus_per_node:
        yield replace(cluster, num_nodes=1, gpus_per_node=gpus, hostfile=None)
        gpus *= 2
    nodes = 1
    while nodes <= _MOST_NODES:
        yield replace(cluster, num_nodes=nodes, gpus_per_node=cluster.accelerator.gpus_per_node, hostfile=None)
        nodes *= 2
