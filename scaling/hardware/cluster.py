"""Clusters: equal nodes of equal accelerators, and which one a user means."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scaling.errors import InputError, did_you_mean
from scaling.hardware.accelerator import Accelerator
from scaling.hardware.machine import detected_gpus, host_memory_bytes, measured_cpu
from scaling.hardware.user_rows import key_of, known_accelerators
from scaling.units import GIB

DEFAULT_ACCELERATOR, DEFAULT_NUM_GPUS = "a100-80gb", 8
# What a node of such GPUs usually has (DGX A100: 1 or 2 TB); the planner says that it assumed it.
ASSUMED_HOST_MEMORY_BYTES = 1024 * GIB
# One PCIe 4.0 x4 drive: its link carries 7 GB/s, and writes are slower. ZeRO-Infinity (Rajbhandari et al. 2021,
# arXiv 2104.07857) had 25 GB/s from all drives of a DGX-2.
ASSUMED_NVME_GB_PER_S = 5.0
_MOST_GIB, _FASTEST_NVME_GB_PER_S = 2**24, 1000
_HIGHEST_PRICE = 1e6  # of a GPU-hour: not even in the smallest currency


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes of equal accelerators.

    `nvme_bytes` of each node may be filled at `nvme_path`, at `nvme_bytes_per_s` (read and write alike); 0 is none.
    """

    accelerator: Accelerator
    num_nodes: int
    gpus_per_node: int
    host_memory_bytes: int
    hostfile: str | None = None
    nvme_path: str | None = None
    nvme_bytes: int = 0
    nvme_bytes_per_s: float = ASSUMED_NVME_GB_PER_S * 1e9

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def is_cpu(self) -> bool:
        return self.accelerator.name == "cpu"

    def link_bytes_per_s(self, ranks: int) -> float:
        """What one of `ranks` devices of a node sends in a collective among them.

        Where every pair has its own wires there are as many rings as neighbours: an all-reduce over 2 of 8 MI300X
        ran at 48 GB/s, over all 8 at 313 (stas00/ml-engineering, network/README.md).
        """
        return self.accelerator.link_bytes_per_s * max(1, min(self.accelerator.mesh_links, ranks - 1))

    @property
    def linked_ranks(self) -> int:
        """Devices that the fast link joins: a node's, or a rack's where the link reaches so far."""
        return max(self.gpus_per_node, min(self.world_size, self.accelerator.linked_devices or 0))

    def __str__(self) -> str:
        return f"{self.num_nodes} x {self.gpus_per_node} {self.accelerator.name}"


def find_accelerator(name: str, *, cpu_ranks: int = 1, rows: Mapping[str, Accelerator] | None = None) -> Accelerator:
    """The row called `name`, of `rows` or of all known ones; "cpu" is measured here and shared by `cpu_ranks`."""
    key = key_of(name)
    if key == "cpu":
        return measured_cpu(cpu_ranks)
    rows = known_accelerators() if rows is None else rows
    if key not in rows:
        raise InputError("gpu", name, "is not a known accelerator", hint=did_you_mean(key, [*rows, "cpu"]))
    return rows[key]


def priced(cluster: Cluster, price_per_hour: float) -> Cluster:
    """`cluster` at a price per device and hour, in any currency. Raises InputError naming --price."""
    if not 0 < price_per_hour < _HIGHEST_PRICE:
        raise InputError("price", price_per_hour, "is not a price of a GPU-hour", hint="write a number such as 2.5")
    return replace(cluster, accelerator=replace(cluster.accelerator, price_per_hour=price_per_hour))


def with_nvme(
    cluster: Cluster, path: str | None, gib: float | None, gb_per_s: float | None
) -> tuple[Cluster, list[str]]:
    """`cluster` with `gib` of NVMe in each node at `path`, and what had to be assumed; as it is where none is given.

    Raises InputError where one of path and capacity is missing, or either cannot be.
    """
    if path is None and gib is None and gb_per_s is None:
        return cluster, []
    if cluster.is_cpu:
        raise InputError("nvme_path", path, "has no use on a CPU, which offloads nothing", hint="name a --gpu")
    if not path or not path.startswith("/") or not path.isprintable():
        raise InputError("nvme_path", path, "is not an absolute path", hint="name a folder on each node's NVMe drive, "
                         "such as --nvme-path /mnt/nvme --nvme-gib 1000")  # fmt: skip
    if gib is None or not 1 <= gib < _MOST_GIB:
        raise InputError("nvme_gib", gib, "is not a capacity", hint="say how much a node may hold, such as 1000")
    assumptions = []
    if gb_per_s is None:
        gb_per_s = ASSUMED_NVME_GB_PER_S
        assumptions.append(f"NVMe: {gb_per_s:g} GB/s per node (choose with --nvme-gb-per-s)")
    if not 0 < gb_per_s < _FASTEST_NVME_GB_PER_S:
        raise InputError("nvme_gb_per_s", gb_per_s, "is not a rate", hint="write a number such as 5, per node")
    return replace(cluster, nvme_path=path, nvme_bytes=int(gib * GIB), nvme_bytes_per_s=gb_per_s * 1e9), assumptions


def cluster_of(
    gpu: str | None,
    gpus: int | None,
    nodes: int | None,
    hosts: list[tuple[str, int]] | None,
    hostfile: str | None,
    *,
    host_gib: float | None = None,
    rows: Mapping[str, Accelerator] | None = None,
) -> tuple[Cluster, list[str]]:
    """The cluster that a user means, and what had to be assumed.

    `gpus` are GPUs per node. `hosts` are the (name, slots) of a hostfile, which then fix nodes and GPUs; where slots
    differ `gpus` must say how many to use of each. `host_gib` is the memory of a node. `rows` are the accelerators
    that can be meant, all known ones by default.
    Raises InputError when the two disagree or a count is not possible.
    """
    assumptions = []
    if hosts is not None:
        slots = sorted({count for _, count in hosts})
        if nodes is not None and nodes != len(hosts):
            raise InputError("nodes", nodes, f"contradicts {hostfile}, which has {len(hosts)}")
        if len(slots) > 1 and gpus is None:
            raise InputError("hostfile", hostfile, f"has hosts of different sizes: slots {slots}",
                             hint=f"list equal hosts, or use as many of each with --gpus {slots[0]}")  # fmt: skip
        if gpus is not None and gpus != slots[0] and (len(slots) == 1 or gpus > slots[0]):
            problem = f"contradicts {hostfile}, which has {slots[0]}" + (" on its smallest host" if slots[1:] else "")
            raise InputError("gpus", gpus, problem, hint=f"--gpus {slots[0]}")
        if len(slots) > 1:
            assumptions.append(f"hosts: {gpus} slots of each; {hostfile} has hosts of {slots}, the rest stays idle")
        nodes, gpus = len(hosts), gpus or slots[0]
    for field, count in (("nodes", nodes), ("gpus", gpus)):
        if count is not None and count < 1:
            raise InputError(field, count, "must be at least 1")

    host_memory = ASSUMED_HOST_MEMORY_BYTES
    rows = known_accelerators() if rows is None else rows
    if gpu is None:
        found_here = detected_gpus(rows)
        if found_here:
            accelerator, count = found_here
            host_memory = host_memory_bytes()
            among = " in CUDA_VISIBLE_DEVICES" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
            assumptions.append(f"gpu: {count} x {accelerator.name} found on this machine{among}")
        else:
            accelerator, count = rows[DEFAULT_ACCELERATOR], DEFAULT_NUM_GPUS
            assumptions.append(f"gpu: none found here, so {count} x {accelerator.name} (choose with --gpu and --gpus)")
        gpus = gpus or count
    else:
        default = 2 if gpu.lower() == "cpu" else None
        accelerator = find_accelerator(gpu, cpu_ranks=gpus or default or 1, rows=rows)
        if gpus is None:
            gpus = accelerator.gpus_per_node
            assumptions.append(f"gpus: {gpus} per node (choose with --gpus)")
    per_node = accelerator.gpus_per_node
    if nodes is None and gpus > per_node:
        if gpus % per_node:
            raise InputError("gpus", gpus, f"is more than one node's {per_node} and not a multiple of it",
                             hint="give GPUs per node with --gpus and the number of nodes with --nodes")  # fmt: skip
        nodes, gpus = gpus // per_node, per_node
        assumptions.append(f"nodes: {nodes} of {per_node}, since one {accelerator.name} node holds {per_node}")
    if host_gib is not None:
        if accelerator.name == "cpu" or not 1 <= host_gib < _MOST_GIB:
            problem = "is measured on a CPU" if accelerator.name == "cpu" else "is not a capacity"
            raise InputError("host_gib", host_gib, problem, hint="give a node's memory, such as 2048, beside a --gpu")
        host_memory = int(host_gib * GIB)
    elif accelerator.name == "cpu":
        host_memory = host_memory_bytes()
    elif host_memory == ASSUMED_HOST_MEMORY_BYTES:
        assumptions.append(f"host memory: {ASSUMED_HOST_MEMORY_BYTES // GIB} GiB per node (choose with --host-gib)")
    return (
        Cluster(
            accelerator=replace(accelerator, gpus_per_node=gpus),
            num_nodes=nodes or 1,
            gpus_per_node=gpus,
            host_memory_bytes=host_memory,
            hostfile=hostfile,
        ),
        assumptions,
    )
