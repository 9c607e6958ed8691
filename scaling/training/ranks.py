"""This process among the others: launcher's environment, process group, threads, and the few collectives we use.

Works under `deepspeed`, under torchrun, and alone.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from scaling.errors import ScaleError
from scaling.strategy import Strategy

# `deepspeed` and torchrun both set these; without them this is a run of one process.
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """`rank` of `world_size`; `device` is where this rank's tensors live."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` summed over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank; pickled."""
        everyones = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyones, value)
        return everyones

    def from_first(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function(*args)` returns on the first rank, which alone calls it; it must not raise."""
        found = [function(*args) if self.is_first else None]
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank stands in a strategy: its number along each kind of parallelism.

    Tensor ranks are neighbours, then sequence, data and pipeline ranks, as DeepSpeed numbers them (0.19.8,
    utils/groups.py and runtime/pipe/topology.py). Ranks that differ in the tensor, sequence or pipeline number alone
    are given the same samples.
    """

    data: int
    tensor: int
    sequence: int
    pipeline: int


def place_of(rank: int, strategy: Strategy) -> Place:
    """The place of `rank`, counted from 0."""
    rest, tensor = divmod(rank, strategy.tensor_parallel_size)
    rest, sequence = divmod(rest, strategy.sequence_parallel_size)
    pipeline, data = divmod(rest, strategy.data_parallel_size)
    return Place(data=data, tensor=tensor, sequence=sequence, pipeline=pipeline)


def join() -> Ranks:
    """Joins the process group of `complete_environment`, through DeepSpeed.

    On a CPU nothing is compiled: DeepSpeed's shared-memory all-reduce is switched off in the table that it asks
    before building (deepspeed 0.19.8, comm/torch.py:build_shm_op). Otherwise the first start compiles for a minute,
    a killed one leaves a lock on which every later start waits for ever, and under the deepspeed launcher each rank
    leaves 69 MB in /dev/shm.
    """
    import deepspeed
    import deepspeed.ops

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device, backend = torch.device("cuda", local_rank), "nccl"
    else:
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
        device, backend = torch.device("cpu"), "gloo"
        _share_cores()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return Ranks(
        rank=rank, world_size=world_size, local_rank=local_rank, local_world_size=local_world_size(), device=device
    )


def local_world_size() -> int:
    """Ranks on this node, as the launcher says: torchrun by the first name, DeepSpeed by the second."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def lost_another(error: BaseException) -> bool:
    """Whether `error` is a collective's, broken off because another rank is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def leave() -> None:
    """Ends the process group, so that nothing is left to the interpreter's shutdown order."""
    if dist.is_initialized():
        dist.destroy_process_group()


def complete_environment() -> None:
    """Makes a lone process a group of one. Raises ScaleError where a launcher's environment is cut short."""
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if len(missing) == len(_LAUNCHER_VARIABLES):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        os.environ.update(alone)
    elif missing:
        raise ScaleError(
            f"environment: {', '.join(missing)} not set, though other launcher variables are",
            hint=f"start with `deepspeed` or `torchrun`, or unset all of {', '.join(_LAUNCHER_VARIABLES)}",
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _share_cores() -> None:
    """Gives each rank of this node its share of the cores, unless the user said OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size()))
