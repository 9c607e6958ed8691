"""Accelerators, links and clusters: data with a source for every row, and what this machine holds.

Rates are dense (no sparsity), per device and per direction, in FLOP/s and bytes/s.
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scaling.errors import InputError, did_you_mean
from scaling.units import GIB, MIB

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device as a planner sees it.

    `matmul_flops` is the largest 16-bit matmul rate that anyone measured (MAMF); where nobody did, 80 % of the peak
    stands in and `source` says so. `link_bytes_per_s` is to a neighbour in the node (NVLink, xGMI or PCIe),
    `network_bytes_per_s` is this device's share of the node's network.
    """

    name: str
    memory_bytes: int
    peak_flops_16bit: float
    peak_flops_fp32: float
    matmul_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    gpus_per_node: int
    supports_bf16: bool
    source: str

    def peak_flops(self, precision: Precision) -> float:
        return self.peak_flops_fp32 if precision == "fp32" else self.peak_flops_16bit

    @property
    def matmul_fraction(self) -> float:
        """The measured share of the peak that a large matmul reaches."""
        return self.matmul_flops / self.peak_flops_16bit


_STAS = "stas00/ml-engineering, compute/accelerator tables"
_V100 = f"{_STAS}; NVIDIA V100 datasheet"
_A10 = "NVIDIA A10 datasheet; lightning-fabric 2.6.6"
_L4 = "NVIDIA L4 datasheet; lightning-fabric 2.6.6"
_A6000 = "torchtitan tools/utils.py; NVIDIA RTX A6000 datasheet"
_UNMEASURED = "; no measured matmul ceiling, 80 % of the peak assumed"


def _gpu(
    name: str, gib: int, tflops: float, fp32: float, mamf: float | None, hbm: float, link: float, network: float,
    source: str, *, node: int = 8, bf16: bool = True,
) -> Accelerator:  # fmt: skip
    """A row in the units of the vendors' tables: GiB, TFLOP/s, TB/s, GB/s."""
    return Accelerator(
        name=name,
        memory_bytes=gib * GIB,
        peak_flops_16bit=tflops * 1e12,
        peak_flops_fp32=fp32 * 1e12,
        matmul_flops=(mamf or 0.8 * tflops) * 1e12,
        memory_bytes_per_s=hbm * 1e12,
        link_bytes_per_s=link * 1e9,
        network_bytes_per_s=network * 1e9,
        gpus_per_node=node,
        supports_bf16=bf16,
        source=source if mamf else source + _UNMEASURED,
    )


# PCIe 3.0 x16 moves about 13 GB/s one way, PCIe 4.0 x16 about 25, PCIe 5.0 x16 about 50. Network per GPU: DGX-1 4 x 100
# Gb/s, DGX A100 8 x 200 Gb/s, DGX H100 and later 8 x 400 Gb/s; a card in a PCIe server: 100 Gb/s for the node.
# fmt: off
_ROWS = (
    #    name             GiB   16bit   fp32   MAMF    TB/s   link  network
    _gpu("v100-16gb",      16,  125.0,  15.7,  None,   0.90,  150,   6.25, _V100, bf16=False),
    _gpu("v100-32gb",      32,  125.0,  15.7,  None,   0.90,  150,   6.25, _V100, bf16=False),
    _gpu("t4",             16,   65.0,   8.1,  None,   0.32,   13,   1.56, "NVIDIA T4 datasheet", node=4, bf16=False),
    _gpu("a10",            24,  125.0,  31.2,  None,   0.60,   25,   1.56, _A10),
    _gpu("l4",             24,  121.0,  30.3,  None,   0.30,   25,   1.56, _L4),
    _gpu("l40s",           48,  362.0,  91.6,  None,   0.86,   25,   1.56, f"{_STAS}; NVIDIA L40S datasheet"),
    _gpu("a6000",          48,  154.8,  38.7,  None,   0.768,  25,   1.56, _A6000),
    _gpu("rtx-4090",       24,  165.2,  82.6,  None,   1.008,  25,   1.56, "NVIDIA Ada whitepaper, fp32 accumulate"),
    _gpu("a100-40gb",      40,  312.0,  19.5,  271.2,  1.555, 300,  25.0,  _STAS),
    _gpu("a100-80gb",      80,  312.0,  19.5,  271.2,  2.039, 300,  25.0,  _STAS),
    _gpu("a100-80gb-pcie", 80,  312.0,  19.5,  252.9,  1.94,   25,   1.56, _STAS),
    _gpu("h100",           80,  989.0,  67.0,  794.5,  3.35,  450,  50.0,  _STAS),
    _gpu("h100-pcie",      80,  756.0,  51.0,  None,   2.0,    50,  12.5,  f"{_STAS}; torchtitan tools/utils.py"),
    _gpu("h200",          141,  989.0,  67.0,  794.5,  4.8,   450,  50.0,  _STAS),
    _gpu("b200",          180, 2250.0,  80.0, 1745.0,  8.0,   900,  50.0,  _STAS),
    _gpu("mi300x",        192, 1307.0, 163.4,  668.4,  5.3,    64,  50.0,  _STAS),
    _gpu("mi325x",        256, 1307.0, 163.4,  784.9,  6.0,    64,  50.0,  _STAS),
)
# fmt: on
ACCELERATORS: dict[str, Accelerator] = {row.name: row for row in _ROWS}
_ALIASES = {
    "h100-80gb": "h100", "h100-sxm": "h100", "a100-80gb-sxm": "a100-80gb", "a100-40gb-sxm": "a100-40gb",
    "4090": "rtx-4090", "rtx4090": "rtx-4090", "rtx-a6000": "a6000",
}  # fmt: skip

# nvidia-smi reports less than the nominal memory where ECC takes its share (an L4's 24 GiB show as 22.5).
_NEAR_MEMORY = 0.08

DEFAULT_ACCELERATOR, DEFAULT_NUM_GPUS = "a100-80gb", 8
# What a node of such GPUs usually has (DGX A100: 1 or 2 TB); the planner says that it assumed it.
ASSUMED_HOST_MEMORY_BYTES = 1024 * GIB


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes of equal accelerators."""

    accelerator: Accelerator
    num_nodes: int
    gpus_per_node: int
    host_memory_bytes: int
    hostfile: str | None = None

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def is_cpu(self) -> bool:
        return self.accelerator.name == "cpu"

    @property
    def collective_bytes_per_s(self) -> float:
        """The slower of the links that a ring over all ranks crosses."""
        if self.num_nodes > 1:
            return min(self.accelerator.link_bytes_per_s, self.accelerator.network_bytes_per_s)
        return self.accelerator.link_bytes_per_s

    def __str__(self) -> str:
        return f"{self.num_nodes} x {self.gpus_per_node} {self.accelerator.name}"


def find_accelerator(name: str, *, cpu_ranks: int = 1) -> Accelerator:
    """The row called `name`; "cpu" is measured on this machine and shared by `cpu_ranks`."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = _ALIASES.get(key, key)
    if key == "cpu":
        return measured_cpu(cpu_ranks)
    if key not in ACCELERATORS:
        raise InputError("gpu", name, "is not a known accelerator", hint=did_you_mean(key, [*ACCELERATORS, "cpu"]))
    return ACCELERATORS[key]


def detected_gpus() -> tuple[Accelerator, int] | None:
    """The GPUs that nvidia-smi lists here, as a table row and their number; None where there are none.

    A card that the table does not know is refused rather than guessed at, and so is a mixture.
    """
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None
    cards = sorted({line.strip() for line in listing.splitlines() if "," in line})
    if not cards:  # "No devices were found" comes with exit status 0
        return None
    if len(cards) > 1:
        raise InputError("gpu", "; ".join(cards), "mixes cards on this machine", hint="name one with --gpu")
    accelerator = _row_of_card(cards[0])
    if accelerator is None:
        raise InputError("gpu", cards[0], "is on this machine but not in the table", hint="name the closest with --gpu")
    return accelerator, sum("," in line for line in listing.splitlines())


def _row_of_card(card: str) -> Accelerator | None:
    """ "NVIDIA A100-SXM4-80GB, 81920" -> the a100-80gb row; None where no row has that chip and that much memory."""
    name, _, mib = card.rpartition(",")
    if not mib.strip().isdecimal():
        return None
    words, memory_bytes = set(re.split(r"[^a-z0-9]+", name.lower())), int(mib) * MIB

    def chip(row: Accelerator) -> set[str]:
        return set(row.name.split("-")) - {"16gb", "32gb", "40gb", "80gb", "pcie", "rtx"}

    def misfit(row: Accelerator) -> tuple[float, bool]:
        return abs(row.memory_bytes / memory_bytes - 1), ("pcie" in row.name) != ("pcie" in words)

    rows = [row for row in _ROWS if chip(row) <= words and misfit(row)[0] < _NEAR_MEMORY]
    return min(rows, key=misfit, default=None)


def host_memory_bytes() -> int:
    """Memory of this machine, or of the cgroup that holds this process where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limits)


def measured_cpu(ranks: int) -> Accelerator:
    """This machine's cores, shared by `ranks` processes: matmul and copy rates timed here, in about 0.1 s.

    The 16-bit rate is the fp32 rate times what the instruction set adds: AMX 1024 multiply-adds a cycle against
    AVX-512's 64 (x16), AVX512_BF16 twice; without either bf16 is converted to fp32 (Intel 64 optimization manual).
    """
    import numpy as np

    def best_s(act: object, repeats: int = 5) -> float:
        times = []
        for _ in range(repeats):
            started_at = time.perf_counter()
            act()  # type: ignore[operator]
            times.append(time.perf_counter() - started_at)
        return min(times)

    a = np.ones((768, 768), dtype=np.float32)
    flops = 2 * 768**3 / best_s(lambda: a @ a)
    block = np.ones(32 * MIB // 4, dtype=np.float32)
    copied = np.empty_like(block)
    bandwidth = 2 * block.nbytes / best_s(lambda: np.copyto(copied, block), repeats=3)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    gain = 16 if "amx_bf16" in flags else 2 if "avx512_bf16" in flags else 1
    return Accelerator(
        name="cpu",
        memory_bytes=host_memory_bytes() // ranks,
        peak_flops_16bit=gain * flops / ranks,
        peak_flops_fp32=flops / ranks,
        matmul_flops=gain * flops / ranks,
        memory_bytes_per_s=bandwidth / ranks,
        link_bytes_per_s=bandwidth / ranks / 4,  # gloo over loopback: copied in and out of a socket at each end
        network_bytes_per_s=1.25e9,
        gpus_per_node=ranks,
        supports_bf16=True,
        source="timed on this machine with numpy",
    )


def cluster_of(
    gpu: str | None, gpus: int | None, nodes: int | None, hosts: list[tuple[str, int]] | None, hostfile: str | None
) -> tuple[Cluster, list[str]]:
    """The cluster that a user means, and what had to be assumed.

    `gpus` are GPUs per node. `hosts` are the (name, slots) of a hostfile, which then fix nodes and GPUs.
    Raises InputError when the two disagree or a count is not possible.
    """
    assumptions = []
    if hosts is not None:
        slots = {count for _, count in hosts}
        if len(slots) > 1:
            raise InputError("hostfile", hostfile, f"has hosts of different sizes: slots {sorted(slots)}",
                             hint="list equal hosts: a plan is for equal nodes")  # fmt: skip
        for field, asked, found in (("nodes", nodes, len(hosts)), ("gpus", gpus, min(slots))):
            if asked is not None and asked != found:
                raise InputError(field, asked, f"contradicts {hostfile}, which has {found}")
        nodes, gpus = len(hosts), min(slots)
    for field, count in (("nodes", nodes), ("gpus", gpus)):
        if count is not None and count < 1:
            raise InputError(field, count, "must be at least 1")

    host_memory = ASSUMED_HOST_MEMORY_BYTES
    if gpu is None:
        found_here = detected_gpus()
        if found_here:
            accelerator, count = found_here
            host_memory = host_memory_bytes()
            assumptions.append(f"gpu: {count} x {accelerator.name} found on this machine")
        else:
            accelerator, count = ACCELERATORS[DEFAULT_ACCELERATOR], DEFAULT_NUM_GPUS
            assumptions.append(f"gpu: none found here, so {count} x {accelerator.name} (choose with --gpu and --gpus)")
        gpus = gpus or count
    else:
        default = 2 if gpu.lower() == "cpu" else None
        accelerator = find_accelerator(gpu, cpu_ranks=gpus or default or 1)
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
    if accelerator.name == "cpu":
        host_memory = host_memory_bytes()
    elif host_memory == ASSUMED_HOST_MEMORY_BYTES:
        assumptions.append(f"host memory: {ASSUMED_HOST_MEMORY_BYTES // GIB} GiB per node")
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
