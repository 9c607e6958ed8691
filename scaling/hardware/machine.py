"""What this machine holds: its GPUs by nvidia-smi, its memory, the speed of its cores."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scaling.errors import InputError
from scaling.hardware.accelerator import Accelerator
from scaling.hardware.user_rows import USER_ROWS_VARIABLE, known_accelerators
from scaling.units import MIB


class _Card(NamedTuple):
    """One line of nvidia-smi."""

    slot: int  # its index
    uuid: str
    name: str
    memory_mib: str  # "[N/A]" where memory is unified
    mig: str  # "Enabled", "Disabled", or "[N/A]" where the card has no such mode


def detected_gpus(rows: Mapping[str, Accelerator] | None = None) -> tuple[Accelerator, int] | None:
    """The GPUs here that CUDA programs see, as a row and their number; None where there are none.

    A card that the table does not know is refused rather than guessed at, and so are a mixture and MIG slices.
    """
    cards = _visible(_listed_cards())
    if not cards:
        return None
    if any(card.mig == "Enabled" for card in cards):
        raise InputError("gpu", cards[0].name, "is split into MIG slices, which have neither its memory nor its links",
                         hint="switch that off with `nvidia-smi -mig 0`, or name the closest with --gpu")  # fmt: skip
    kinds = sorted({f"{card.name}, {card.memory_mib}" for card in cards})
    if len(kinds) > 1:
        raise InputError("gpu", "; ".join(kinds), "mixes cards on this machine",
                         hint="name one with --gpu, or choose equal ones in CUDA_VISIBLE_DEVICES by UUID")  # fmt: skip
    accelerator = _row_of_card(cards[0], known_accelerators() if rows is None else rows)
    if accelerator is None:
        hint = f"name the closest with --gpu, or add its row in a file that {USER_ROWS_VARIABLE} names"
        raise InputError("gpu", kinds[0], "is on this machine but not in the table", hint=hint)
    return accelerator, len(cards)


def _listed_cards() -> list[_Card]:
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    lines = [[word.strip() for word in line.split(",")] for line in listing.splitlines()]
    # "No devices were found" comes with exit status 0
    return [_Card(int(line[0]), *line[1:]) for line in lines if len(line) == len(_Card._fields) and line[0].isdecimal()]


def _visible(cards: list[_Card]) -> list[_Card]:
    """Those of `cards` that CUDA_VISIBLE_DEVICES leaves: CUDA stops at the first entry that is no device, and sees
    none where one stands twice (CUDA programming guide, environment variables; torch/cuda/__init__.py)."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not cards:
        return cards
    chosen: list[_Card] = []
    for entry in (word.strip() for word in wanted.split(",")):
        if entry.startswith("MIG-"):
            raise InputError("CUDA_VISIBLE_DEVICES", wanted, "names a MIG slice, which the table does not know",
                             hint="name whole GPUs, or the closest with --gpu")  # fmt: skip
        if entry.startswith("GPU-"):
            found = [card for card in cards if card.uuid.startswith(entry)]
        else:
            found = [card for card in cards if str(card.slot) == entry]
        if len(found) != 1:
            break
        if found[0] in chosen:
            return []
        chosen += found
    by_index = not wanted.strip().startswith("GPU-") and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    if chosen and by_index and len({card.name for card in cards}) > 1:
        return cards  # CUDA counts the fastest first, nvidia-smi by slot: which ones these are is not known
    return chosen


# nvidia-smi reports less than the nominal memory where ECC takes its share (an L4's 24 GiB show as 22.5).
_NEAR_MEMORY = 0.08
# Words of a row's name that its card does not print, and words that make a card another one: RTX 3090 Ti, H200 NVL,
# H800 PCIe.
_NOT_PRINTED = {"16gb", "32gb", "40gb", "80gb", "144gb", "pcie", "rtx"}
_TELLS_APART = {"nvl", "ti", "super", "d", "laptop", "fhhl", "pcie"}


def _row_of_card(card: _Card, rows: Mapping[str, Accelerator]) -> Accelerator | None:
    """ "NVIDIA A100-SXM4-80GB", "81920" -> the a100-80gb row; None where no row has that chip and that much memory."""
    if not card.memory_mib.isdecimal():
        return None
    words, memory_bytes = set(re.split(r"[^a-z0-9]+", card.name.lower())), int(card.memory_mib) * MIB

    def misfit(row: Accelerator) -> tuple[float, bool]:
        return abs(memory_bytes / row.memory_bytes - 1), ("pcie" in row.name) != ("pcie" in words)

    def fits(row: Accelerator) -> bool:
        printed = set(row.name.split("-"))
        return printed - _NOT_PRINTED <= words and words & _TELLS_APART <= printed and misfit(row)[0] < _NEAR_MEMORY

    return min(filter(fits, rows.values()), key=misfit, default=None)


def host_memory_bytes() -> int:
    """Memory of this machine, or of the cgroup that holds this process where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limits)


def available_memory_bytes() -> int:
    """What this process and others may still take: of the machine, or of the cgroup where that is less."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            here = Path("/sys/fs/cgroup")
            available = min(available, int((here / limit).read_text()) - int((here / used).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return max(0, available)


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
        matmul_is_measured=True,
        memory_bytes_per_s=bandwidth / ranks,
        link="loopback",
        link_bytes_per_s=bandwidth / ranks / 4,  # gloo over loopback: copied in and out of a socket at each end
        network_bytes_per_s=1.25e9,
        gpus_per_node=ranks,
        system="this machine; assumed: 10 Gb/s for each rank",
        supports_bf16=True,
        source="timed on this machine with numpy",
    )
