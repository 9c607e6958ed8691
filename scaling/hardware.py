"""Accelerators, links and clusters: data with a source for every row, what a user adds, and what this machine holds.

Rates are dense (no sparsity), per device and per direction, in FLOP/s and bytes/s.
"""

import math
import os
import re
import reprlib
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scaling.errors import FileProblems, InputError, did_you_mean
from scaling.files import read_text
from scaling.units import BITS_PER_BYTE, GIB, MIB

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device as a planner sees it: what one rank gets. None is a figure that nobody published.

    `peak_flops_fp32` is without tensor cores, `peak_flops_16bit` bf16 and fp16 with fp32 accumulation. `matmul_flops`
    is the largest 16-bit matmul rate that anyone measured (MAMF); where nobody did, 80 % of the peak stands in,
    `source` says so and `matmul_is_measured` is False.

    `link_bytes_per_s` is to one neighbour in the node. Where each pair has its own wires (xGMI, Gaudi's Ethernet) a
    collective of the whole node drives `mesh_links` of them at once. `linked_devices` is how far the link reaches
    where that is beyond a node (72 in an NVL72 rack). `network_bytes_per_s` is this device's share of the network of
    `system`.
    """

    name: str
    memory_bytes: int  # nominal
    peak_flops_16bit: float
    peak_flops_fp32: float | None
    matmul_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    gpus_per_node: int
    supports_bf16: bool
    source: str
    peak_flops_tf32: float | None = None
    peak_flops_fp8: float | None = None
    peak_flops_fp4: float | None = None
    matmul_is_measured: bool = False
    matmul_flops_fp8: float | None = None
    reported_memory_bytes: int | None = None  # what nvidia-smi prints as memory.total
    link: str = ""
    mesh_links: int = 1
    linked_devices: int | None = None
    system: str = ""
    power_w: float | None = None
    note: str = ""

    def peak_flops(self, precision: Precision) -> float:
        if precision != "fp32":
            return self.peak_flops_16bit
        if self.peak_flops_fp32 is None:
            raise InputError("precision", precision, f"has no published rate on {self.name}",
                             hint="use bf16, or give peak_fp32_tflops in a hardware file")  # fmt: skip
        return self.peak_flops_fp32

    @property
    def matmul_fraction(self) -> float:
        """The share of the peak that a large matmul reaches."""
        return self.matmul_flops / self.peak_flops_16bit

    @property
    def usable_memory_bytes(self) -> int:
        """What the driver shows of the memory: less than the nominal size where ECC takes its share."""
        return self.reported_memory_bytes or self.memory_bytes


class Field(NamedTuple):
    """One figure of a row as people write it: the key of a hardware file, whose unit ends the key."""

    key: str
    attribute: str
    kind: Literal["number", "bytes", "count", "flag", "text"]
    scale: float  # key's unit in the attribute's
    about: str
    required: bool = False


FIELDS = (
    Field("memory_gib", "memory_bytes", "bytes", GIB, "nominal memory", required=True),
    Field("reported_memory_mib", "reported_memory_bytes", "bytes", MIB, "memory.total of nvidia-smi"),
    Field("memory_tb_per_s", "memory_bytes_per_s", "number", 1e12, "memory bandwidth", required=True),
    Field("peak_fp32_tflops", "peak_flops_fp32", "number", 1e12, "dense peak, fp32 without tensor cores"),
    Field("peak_tf32_tflops", "peak_flops_tf32", "number", 1e12, "dense peak, tf32"),
    Field("peak_16bit_tflops", "peak_flops_16bit", "number", 1e12, "dense peak, bf16/fp16, fp32 accumulation", True),
    Field("peak_fp8_tflops", "peak_flops_fp8", "number", 1e12, "dense peak, fp8"),
    Field("peak_fp4_tflops", "peak_flops_fp4", "number", 1e12, "dense peak, fp4"),
    Field("matmul_16bit_tflops", "matmul_flops", "number", 1e12, "largest 16-bit matmul rate"),
    Field("matmul_fp8_tflops", "matmul_flops_fp8", "number", 1e12, "largest fp8 matmul rate"),
    Field("supports_bf16", "supports_bf16", "flag", 1, "bf16 arithmetic in hardware", required=True),
    Field("link", "link", "text", 1, "to a neighbour in the node"),
    Field("link_gb_per_s", "link_bytes_per_s", "number", 1e9, "to one neighbour, one way", required=True),
    Field("mesh_links", "mesh_links", "count", 1, "such links at once in a collective of the node"),
    Field("linked_devices", "linked_devices", "count", 1, "reach of the link, where beyond a node"),
    Field("network_gb_per_s", "network_bytes_per_s", "number", 1e9, "share of the node's network", required=True),
    Field("gpus_per_node", "gpus_per_node", "count", 1, "devices in a node", required=True),
    Field("system", "system", "text", 1, "the node that network and gpus_per_node are of"),
    Field("power_w", "power_w", "number", 1, "power limit"),
    Field("source", "source", "text", 1, "where the figures stand"),
    Field("note", "note", "text", 1, "where sources disagree, and traps"),
)

_ASSUMED_MATMUL_FRACTION = 0.8
_UNMEASURED = "; no measured matmul ceiling, 80 % of the peak assumed"


class _Link(NamedTuple):
    name: str
    gb_per_s: float  # one way, to one neighbour
    mesh_links: int = 1
    devices: int | None = None


class _System(NamedTuple):
    name: str
    devices: int
    gbit_per_s: float  # network, per device


# PCIe x16 as it delivers, about 80 % of the nominal 15.75, 31.5 and 63 GB/s. NVLink and xGMI as specified
# (stas00/ml-engineering network/README.md); a switch gives any pair all of a device's NVLinks.
_PCIE_3, _PCIE_4, _PCIE_5 = _Link("PCIe 3.0", 13), _Link("PCIe 4.0", 25), _Link("PCIe 5.0", 50)
_NVLINK_1, _NVLINK_2, _NVLINK_3 = _Link("NVLink 1", 80), _Link("NVLink 2", 150), _Link("NVLink 3", 300)
_NVLINK_4, _NVLINK_5 = _Link("NVLink 4", 450), _Link("NVLink 5", 900)
_NVL72 = _Link("NVLink 5", 900, devices=72)
_XGMI_2, _XGMI_3, _XGMI_4 = _Link("xGMI", 50), _Link("xGMI", 64, mesh_links=7), _Link("xGMI", 76.5, mesh_links=7)
# docs.habana.ai, Intel Gaudi Network Configuration: 21 ports to the seven others, 3 to each, and 3 out of the node.
_ROCE_100, _ROCE_200 = _Link("3 x 100 GbE", 37.5, mesh_links=7), _Link("3 x 200 GbE", 75, mesh_links=7)

_DGX_1 = _System("DGX-1: 4 x 100 Gb/s for 8", 8, 50)
_DGX_A100 = _System("DGX A100: 8 x 200 Gb/s", 8, 200)
_DGX_H100 = _System("DGX H100: 8 x 400 Gb/s", 8, 400)
_DGX_B200 = _System("DGX B200: 8 x 400 Gb/s", 8, 400)
_DGX_B300 = _System("DGX B300: 8 x 800 Gb/s", 8, 800)
_DGX_GB200 = _System("a compute tray of DGX GB200: 4 x 400 Gb/s", 4, 400)
_ALPS = _System("CSCS Alps and JUPITER: 4 superchips, 200 Gb/s each", 4, 200)
_FRONTIER = _System("OLCF Frontier: 4 x 200 Gb/s for 4 modules, 8 dies", 8, 100)
_OAM = _System("Azure ND MI300X v5 and its like: 8 x 400 Gb/s", 8, 400)
_HLS_2 = _System("HLS-Gaudi2: 3 x 100 Gb/s each", 8, 300)
_HLS_3 = _System("HLS-Gaudi3: 3 x 200 Gb/s each", 8, 600)
_G4DN = _System("AWS g4dn.12xlarge: 50 Gb/s for 4", 4, 12.5)
_G5 = _System("AWS g5.48xlarge: 100 Gb/s for 8", 8, 12.5)
_G6 = _System("AWS g6.48xlarge: 100 Gb/s for 8", 8, 12.5)
_G6E = _System("AWS g6e.48xlarge: 400 Gb/s for 8", 8, 50)
_ERA = _System("NVIDIA Enterprise Reference Architecture 2-8-5-200: 200 Gb/s each", 8, 200)
_SERVER = _System("assumed: a PCIe server, 100 Gb/s for 8", 8, 12.5)

__ = None  # not published, or the chip has none
# fmt: off
_CHIPS: dict[str, tuple[float | None, ...]] = {
    # dense TFLOP/s   fp32    tf32   16bit     fp8     fp4  | largest matmul measured: 16bit, fp8
    "p100":         ( 10.6,     __,   10.6,     __,     __,     __,     __),
    "p100-pcie":    (  9.3,     __,    9.3,     __,     __,     __,     __),
    "v100":         ( 15.7,     __,  125.0,     __,     __,     __,     __),
    "v100-pcie":    ( 14.0,     __,  112.0,     __,     __,     __,     __),
    "t4":           (  8.1,     __,   65.0,     __,     __,     __,     __),
    "a10":          ( 31.2,   62.5,  125.0,     __,     __,     __,     __),
    "a10g":         ( 35.0,   35.0,   70.0,     __,     __,     __,     __),
    "l4":           ( 30.3,   60.0,  121.0,  242.5,     __,     __,     __),
    "l40s":         ( 91.6,  183.0,  362.0,  733.0,     __,     __,     __),
    "a6000":        ( 38.7,   77.4,  154.8,     __,     __,     __,     __),
    "rtx-3090":     ( 35.6,   35.6,   71.0,     __,     __,     __,     __),
    "rtx-4090":     ( 82.6,   82.6,  165.2,  330.3,     __,     __,     __),
    "rtx-5090":     (104.8,  104.8,  209.5,  419.0, 1676.0,     __,     __),
    "a100":         ( 19.5,  156.0,  312.0,     __,     __,  271.2,     __),
    "a100-pcie":    ( 19.5,  156.0,  312.0,     __,     __,  252.9,     __),
    "h100":         ( 67.0,  494.5,  989.0, 1979.0,     __,  794.5, 1402.6),
    "h100-pcie":    ( 51.0,  378.0,  756.0, 1513.0,     __,     __,     __),
    "h100-nvl":     ( 60.0,  417.5,  835.5, 1670.5,     __,     __,     __),
    "h200":         ( 67.0,  494.5,  989.0, 1979.0,     __,  794.5, 1453.4),
    "gh200":        ( 67.0,  494.5,  989.0, 1979.0,     __,  821.0,     __),
    "gh200-144gb":  ( 67.0,  494.5,  989.0, 1979.0,     __,  828.6, 1535.0),
    "b200":         ( 80.0, 1125.0, 2250.0, 4500.0, 9000.0, 1745.0, 3432.5),
    "b300":         ( 80.0, 1125.0, 2250.0, 4500.0, 13500., 1769.0, 3353.3),
    "gb200":        ( 80.0, 1250.0, 2500.0, 5000.0, 10000., 1822.0, 3615.6),
    "mi250x-gcd":   (23.95,     __,  191.5,     __,     __,     __,     __),
    "mi300x":       (163.4,  653.7, 1307.4, 2614.9,     __,  668.4,     __),
    "mi325x":       (163.4,  653.7, 1307.4, 2614.9,     __,  784.9,     __),
    "mi355x":       (157.3,     __, 2500.0, 5000.0, 10100., 1565.0,     __),
    "gaudi2":       (   __,     __,  432.0,  865.0,     __,  418.7,  826.5),
    "gaudi3":       (229.0,  459.0, 1677.0, 1677.0,     __, 1243.0, 1289.5),
}
_ROWS: tuple[tuple[str, str, int, int | None, float, _Link, _System, float | None], ...] = (
    # name             chip          GiB     MiB   TB/s  link         node          W
    ("p100",           "p100",        16,  16384, 0.732, _NVLINK_1,   _DGX_1,      300),
    ("p100-pcie",      "p100-pcie",   16,  16384, 0.732, _PCIE_3,     _SERVER,     250),
    ("v100-16gb",      "v100",        16,  16384, 0.900, _NVLINK_2,   _DGX_1,      300),
    ("v100-32gb",      "v100",        32,  32768, 0.900, _NVLINK_2,   _DGX_1,      300),
    ("v100-16gb-pcie", "v100-pcie",   16,  16384, 0.900, _PCIE_3,     _SERVER,     250),
    ("v100-32gb-pcie", "v100-pcie",   32,  32768, 0.900, _PCIE_3,     _SERVER,     250),
    ("t4",             "t4",          16,  15360, 0.320, _PCIE_3,     _G4DN,        70),
    ("a10",            "a10",         24,  23028, 0.600, _PCIE_4,     _SERVER,     150),
    ("a10g",           "a10g",        24,  23028, 0.600, _PCIE_4,     _G5,         300),
    ("l4",             "l4",          24,  23034, 0.300, _PCIE_4,     _G6,          72),
    ("l40s",           "l40s",        48,  46068, 0.864, _PCIE_4,     _G6E,        350),
    ("a6000",          "a6000",       48,  49140, 0.768, _PCIE_4,     _SERVER,     300),
    ("rtx-3090",       "rtx-3090",    24,  24576, 0.936, _PCIE_4,     _SERVER,     350),
    ("rtx-4090",       "rtx-4090",    24,  24564, 1.008, _PCIE_4,     _SERVER,     450),
    ("rtx-5090",       "rtx-5090",    32,  32607, 1.792, _PCIE_5,     _SERVER,     575),
    ("a100-40gb",      "a100",        40,  40960, 1.555, _NVLINK_3,   _DGX_A100,   400),
    ("a100-80gb",      "a100",        80,  81920, 2.039, _NVLINK_3,   _DGX_A100,   400),
    ("a100-40gb-pcie", "a100-pcie",   40,  40960, 1.555, _PCIE_4,     _SERVER,     250),
    ("a100-80gb-pcie", "a100-pcie",   80,  81920, 1.940, _PCIE_4,     _SERVER,     300),
    ("h100",           "h100",        80,  81559, 3.350, _NVLINK_4,   _DGX_H100,   700),
    ("h100-pcie",      "h100-pcie",   80,  81559, 2.000, _PCIE_5,     _ERA,        350),
    ("h100-nvl",       "h100-nvl",    94,  95830, 3.900, _PCIE_5,     _ERA,        400),
    ("h200",           "h200",       141, 143771, 4.800, _NVLINK_4,   _DGX_H100,   700),
    ("gh200",          "gh200",       96,  97871, 4.000, _NVLINK_4,   _ALPS,        __),
    ("gh200-144gb",    "gh200-144gb", 144, 146831, 4.800, _NVLINK_4,  _ALPS,        __),
    ("b200",           "b200",       180, 183359, 8.000, _NVLINK_5,   _DGX_B200,  1000),
    ("b300",           "b300",       288, 275040, 8.000, _NVLINK_5,   _DGX_B300,  1000),
    ("gb200",          "gb200",      186, 189471, 8.000, _NVL72,      _DGX_GB200, 1200),
    ("mi250x-gcd",     "mi250x-gcd",  64,     __, 1.640, _XGMI_2,     _FRONTIER,   280),
    ("mi300x",         "mi300x",     192,     __, 5.300, _XGMI_3,     _OAM,        750),
    ("mi325x",         "mi325x",     256,     __, 6.000, _XGMI_3,     _OAM,       1000),
    ("mi355x",         "mi355x",     288,     __, 8.000, _XGMI_4,     _OAM,       1400),
    ("gaudi2",         "gaudi2",      96,     __, 2.460, _ROCE_100,   _HLS_2,      600),
    ("gaudi3",         "gaudi3",     128,     __, 3.700, _ROCE_200,   _HLS_3,      900),
)
# fmt: on

_STAS = "stas00/ml-engineering compute/accelerator/README.md (2026-08)"
_GA102 = "NVIDIA GA102 whitepaper v2, fp32 accumulation"
_TITAN = "torchtitan tools/utils.py"
_SOURCES = {  # by chip; memory in MiB as nvidia-smi prints it
    "p100": "NVIDIA Tesla P100 datasheet",
    "p100-pcie": "NVIDIA Tesla P100 datasheet",
    "v100": "NVIDIA V100 datasheet; cli99/llm-analysis gpu_configs",
    "v100-pcie": "NVIDIA V100 datasheet; cli99/llm-analysis gpu_configs",
    "t4": "NVIDIA T4 datasheet; lightning-fabric 2.6.6 throughput.py",
    "a10": "NVIDIA A10 datasheet; lightning-fabric 2.6.6 throughput.py",
    "a10g": "NVIDIA A10G for AWS datasheet (2022-02-17); cli99/llm-analysis gpu_configs",
    "l4": "NVIDIA L4 datasheet; lightning-fabric 2.6.6 throughput.py",
    "l40s": f"{_STAS}; NVIDIA L40S datasheet",
    "a6000": f"NVIDIA RTX A6000 datasheet; {_GA102}; {_TITAN}",
    "rtx-3090": _GA102,
    "rtx-4090": "NVIDIA Ada whitepaper v2, fp32 accumulation",
    "rtx-5090": "NVIDIA RTX Blackwell whitepaper, fp32 accumulation",
    "a100": f"{_STAS}; NVIDIA A100 datasheet",
    "a100-pcie": f"{_STAS}; NVIDIA A100 datasheet",
    "h100": f"{_STAS}; NVIDIA H100 datasheet",
    "h100-pcie": f"{_STAS}; NVIDIA H100 datasheet; {_TITAN}",
    "h100-nvl": f"NVIDIA H100 datasheet; lightning-fabric throughput.py; {_TITAN}",
    "h200": f"{_STAS}; NVIDIA H200 datasheet",
    "gh200": f"{_STAS}; its pull request 60 for the matmul ceiling",
    "gh200-144gb": _STAS,
    "b200": f"{_STAS}; NVIDIA DGX B200 datasheet",
    "b300": f"{_STAS}; NVIDIA DGX B300 datasheet",
    "gb200": f"{_STAS}; NVIDIA GB200 NVL72 page",
    "mi250x-gcd": f"{_STAS}, its MI250X halved; {_TITAN}",
    "mi300x": f"{_STAS}; AMD MI300X data sheet",
    "mi325x": f"{_STAS}; AMD MI325X data sheet",
    "mi355x": f"{_STAS}; AMD MI355X page",
    "gaudi2": f"{_STAS}; Intel Gaudi 2 white paper; docs.habana.ai",
    "gaudi3": f"{_STAS}; Intel Gaudi 3 white paper; docs.habana.ai",
}
_P100_FP16 = "the datasheet's fp16 rate is twice this and accumulates in fp16; without tensor cores fp32 accumulation "
_GEFORCE = "figures of twice the 16-bit rate accumulate in fp16"
_NOTES = {
    "p100": f"{_P100_FP16}runs at the fp32 rate",
    "p100-pcie": f"{_P100_FP16}runs at the fp32 rate",
    "v100": "a plain matmul reached 95 TFLOP/s (mli/transformers-benchmarks, which has 230 for an A100); "
    "the links are a DGX-1's six together, of which a pair has one or two",
    "a10": "llm-analysis lists 28 GB; the A10G of AWS is another card with 70 TFLOP/s",
    "a10g": "lightning-fabric lists the A10's 125 TFLOP/s under this name",
    "a6000": "lightning-fabric lists the non-tensor 38.7 TFLOP/s, torchtitan's first entry was the sparse 309.7; a "
    "plain matmul reached 95 (mli/transformers-benchmarks); an NVLink bridge gives a pair 56 GB/s; ECC takes 3 GiB",
    "rtx-3090": f"{_GEFORCE}, lightning-fabric's 35.6 is non-tensor; an NVLink bridge gives a pair 56 GB/s",
    "rtx-4090": f"{_GEFORCE}, lightning-fabric's 82.6 is non-tensor; fp8 likewise with fp32 accumulation",
    "rtx-5090": f"{_GEFORCE}; fp8 likewise with fp32 accumulation",
    "a100-80gb": "sources print 2.0 or 2.039 TB/s",
    "a100-pcie": "an NVLink bridge gives a pair 300 GB/s",
    "h100": "lightning-fabric has 989.5, half of the datasheet's sparse 1979",
    "h100-pcie": "an NVLink bridge gives a pair 300 GB/s; lightning-fabric has 51.2 TFLOP/s fp32",
    "h100-nvl": "per card, while NVIDIA also prints pairs; an NVLink bridge gives a pair 300 GB/s",
    "h200": "matmul ceiling as the H100's (stas); lightning-fabric 2.6.6 listed the sparse 1979 TFLOP/s for bf16",
    "gh200": "a pair in a quad node has a third of the NVLinks; the CPU shares the power, 450 to 1000 W",
    "gh200-144gb": "stas lists 141 GB; NVIDIA prints 4.9 TB/s; matmul ceilings at 900 W; as gh200 otherwise",
    "b200": "NVIDIA's HGX B200 figures are 75 TFLOP/s fp32, 7.7 TB/s and 192 GB in places",
    "b300": "stas prints 12600 TFLOP/s fp4 and 15000 for NVFP4; the driver shows 269 of 288 GB and 1100 W",
    "gb200": "per GPU, two to a superchip; NVLink joins the 72 of a rack",
    "mi250x-gcd": "one of the two dies of a module: what torch calls a device. A module has 383 TFLOP/s and 128 GB",
    "mi300x": "stas prints 1300 TFLOP/s; the ceiling is torch 2.5.1's with ROCm 6.3, 51 % of the peak",
    "mi325x": "stas prints 1300 TFLOP/s",
    "mi355x": "2400 MHz make 2516.6 TFLOP/s; the ceiling was measured against a stated 2300, an MI350X's peak",
    "gaudi3": "1600 MHz; the white paper's 1835 TFLOP/s are for 1750 MHz, as are fp32 and tf32 here. fp16 runs at 459",
}


def _row(
    name: str, chip: str, gib: int, mib: int | None, tb_per_s: float, link: _Link, system: _System, watts: float | None
) -> Accelerator:  # fmt: skip
    fp32, tf32, half, fp8, fp4, matmul, matmul_fp8 = (rate and rate * 1e12 for rate in _CHIPS[chip])
    assert half
    return Accelerator(
        name=name,
        memory_bytes=gib * GIB,
        reported_memory_bytes=mib and mib * MIB,
        memory_bytes_per_s=tb_per_s * 1e12,
        peak_flops_fp32=fp32,
        peak_flops_tf32=tf32,
        peak_flops_16bit=half,
        peak_flops_fp8=fp8,
        peak_flops_fp4=fp4,
        matmul_flops=matmul or _ASSUMED_MATMUL_FRACTION * half,
        matmul_is_measured=matmul is not None,
        matmul_flops_fp8=matmul_fp8,
        supports_bf16=chip.split("-")[0] not in ("p100", "v100", "t4"),
        link=link.name,
        link_bytes_per_s=link.gb_per_s * 1e9,
        mesh_links=link.mesh_links,
        linked_devices=link.devices,
        network_bytes_per_s=system.gbit_per_s * 1e9 / BITS_PER_BYTE,
        gpus_per_node=system.devices,
        system=system.name,
        power_w=watts,
        source=_SOURCES[chip] + ("" if matmul else _UNMEASURED),
        note=_NOTES.get(name) or _NOTES.get(chip, ""),
    )


ACCELERATORS: dict[str, Accelerator] = {row[0]: _row(*row) for row in _ROWS}
_ALIASES = {
    "h100-80gb": "h100", "h100-sxm": "h100", "a100-80gb-sxm": "a100-80gb", "a100-40gb-sxm": "a100-40gb",
    "4090": "rtx-4090", "rtx4090": "rtx-4090", "rtx-a6000": "a6000", "3090": "rtx-3090", "rtx3090": "rtx-3090",
    "5090": "rtx-5090", "rtx5090": "rtx-5090", "gh200-96gb": "gh200", "mi250x": "mi250x-gcd",
    "gaudi-2": "gaudi2", "gaudi-3": "gaudi3",
}  # fmt: skip

DEFAULT_ACCELERATOR, DEFAULT_NUM_GPUS = "a100-80gb", 8
# What a node of such GPUs usually has (DGX A100: 1 or 2 TB); the planner says that it assumed it.
ASSUMED_HOST_MEMORY_BYTES = 1024 * GIB
USER_ROWS_VARIABLE = "SCALE_HARDWARE"


def find_accelerator(name: str, *, cpu_ranks: int = 1, rows: Mapping[str, Accelerator] | None = None) -> Accelerator:
    """The row called `name`, of `rows` or of all known ones; "cpu" is measured here and shared by `cpu_ranks`."""
    key = _key_of(name)
    if key == "cpu":
        return measured_cpu(cpu_ranks)
    rows = known_accelerators() if rows is None else rows
    if key not in rows:
        raise InputError("gpu", name, "is not a known accelerator", hint=did_you_mean(key, [*rows, "cpu"]))
    return rows[key]


def _key_of(name: str) -> str:
    """A name as people write it, as the table does: " RTX 4090 " -> "rtx-4090"."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    return _ALIASES.get(key, key)


def known_accelerators(path: str | Path | None = None) -> dict[str, Accelerator]:
    """The shipped rows, and over them those of the hardware file `path`, else of the one that SCALE_HARDWARE names."""
    if path is not None:
        return ACCELERATORS | load_user_rows(path)
    if named := os.environ.get(USER_ROWS_VARIABLE):
        return ACCELERATORS | load_user_rows(named, USER_ROWS_VARIABLE)
    return ACCELERATORS


_EXAMPLE = "write the name of an accelerator, and its figures indented below: `h100-96gb:`, `  like: h100`, ..."
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_BY_KEY = {field.key: field for field in FIELDS}
_LARGEST = 1e6  # of any figure in its key's unit: beyond it the unit is wrong
_LONGEST_TEXT = 500  # characters


def load_user_rows(path: str | Path, field: str = "hardware") -> dict[str, Accelerator]:
    """The rows of a YAML file: new accelerators, and other figures for known ones.

        h100:                         # the shipped row, but for what stands here
          matmul_16bit_tflops: 650
          source: our nodes, capped at 500 W
        h100-96gb:
          like: h100                  # or else every required key of FIELDS
          memory_gib: 96

    `field` names the file in errors: InputError where it cannot be read, FileProblems with all that is wrong in it.
    """
    import yaml  # 10 ms, which a command without a hardware file need not pay

    text = read_text(path, field)
    try:
        document: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # the last three are PyYAML's own
        mark = getattr(error, "problem_mark", None)
        problem = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise FileProblems(f"{path}:{mark.line + 1}" if mark else str(path), [problem]) from None
    if document is None or document.id != "mapping":
        raise FileProblems(str(path), ["not a hardware file"], hint=_EXAMPLE)

    rows: dict[str, Accelerator] = {}
    problems: list[str] = []
    for key, entries in document.value:
        name = _key_of(_word(key))
        at = f"line {key.start_mark.line + 1}: {name}"
        if key.id != "scalar" or not _NAME.fullmatch(name):
            problems.append(f"{at}: is not a name of letters, digits, - and .")
        elif name == "cpu":
            problems.append(f"{at}: is measured on each machine and cannot be written down")
        elif name in rows:
            problems.append(f"{at}: stands here twice")
        elif entries.id != "mapping":
            problems.append(f"{at}: has no figures; {_EXAMPLE}")
        else:
            row, wrong = _user_row(name, at, entries.value, ACCELERATORS | rows, str(path))
            problems += wrong
            if row:
                rows[name] = row
    if problems:
        raise FileProblems(str(path), problems)
    return rows


def _user_row(
    name: str, at: str, entries: list[Any], known: Mapping[str, Accelerator], path: str
) -> tuple[Accelerator | None, list[str]]:
    """One row of a hardware file from its (key, value) nodes, and what is wrong with it."""
    given: dict[str, Any] = {}
    problems = []
    like = name if name in known else ""
    for key, value in entries:
        word = _word(key)
        try:
            if word in given:
                raise ValueError("stands here twice")
            if word == "like":
                like = given[word] = _key_of(_user_value(value, "text"))
                if like not in known:
                    raise ValueError(f"{_shown(value)} is not a known accelerator; {did_you_mean(like, known)}")
            elif word in _BY_KEY:
                given[word] = _user_value(value, _BY_KEY[word].kind)
            else:
                raise ValueError(f"unknown key; {did_you_mean(word, [*_BY_KEY, 'like'])}")
        except ValueError as error:
            given.setdefault(word, None)
            problems.append(f"line {key.start_mark.line + 1}: {name}.{word}: {error}")
    base = known.get(like)
    missing = [field.key for field in FIELDS if field.required and field.key not in given]
    if missing and not like:
        problems.append(f"{at}: needs {', '.join(missing)}; or `like:` a known accelerator, and what differs")
    if problems:
        return base, problems

    figures: dict[str, Any] = dict(vars(base)) if base else {"peak_flops_fp32": None}
    if "memory_gib" in given:
        figures["reported_memory_bytes"] = None  # the base's is of another size
    if given.keys() & {"network_gb_per_s", "gpus_per_node"}:
        figures["system"] = ""  # and its node another one
    if base and base.name != name:
        figures["note"] = ""
    for field in FIELDS:
        if field.key in given:
            figures[field.attribute] = _in_base_units(given[field.key], field)
    measured = "matmul_16bit_tflops" in given or (base is not None and base.matmul_is_measured)
    if not measured:
        figures["matmul_flops"] = _ASSUMED_MATMUL_FRACTION * figures["peak_flops_16bit"]
    source = given.get("source", path)
    if base:
        source += f"; else as {base.name}: {base.source.removesuffix(_UNMEASURED)}"
    figures |= {"name": name, "matmul_is_measured": measured, "source": source + ("" if measured else _UNMEASURED)}
    row = Accelerator(**figures)
    for rate, peak, of in (
        (row.matmul_flops, row.peak_flops_16bit, "16bit"),
        (row.matmul_flops_fp8, row.peak_flops_fp8, "fp8"),
    ):
        if rate and peak and rate > peak:
            problems.append(f"{at}: matmul_{of}_tflops {rate / 1e12:g} is above peak_{of}_tflops {peak / 1e12:g}")
    return row, problems


def _word(node: Any) -> str:
    """A YAML node that should be a name or a key."""
    text = str(node.value) if node.id == "scalar" else ""
    return text if text.isprintable() and 0 < len(text) <= 80 else _shown(node)


def _shown(node: Any) -> str:
    """A YAML node as an error prints it."""
    return reprlib.repr(node.value) if node.id == "scalar" else f"a {node.id}"


def _user_value(node: Any, kind: str) -> Any:
    """What a YAML node says, as a figure of this kind. The ValueError says what would do."""
    text = str(node.value) if node.id == "scalar" else ""
    plain = node.id == "scalar" and node.style is None  # "80" in quotes is text
    shown = _shown(node) + (" in quotes" if text and not plain else "")
    match kind:
        case "text":
            if text.strip() and text.isprintable() and len(text) <= _LONGEST_TEXT:
                return text.strip()
            raise ValueError(f"{shown} is not one line of text")
        case "flag":
            if plain and text in ("true", "false"):
                return text == "true"
            raise ValueError(f"{shown} is neither true nor false")
        case "count":
            if plain and re.fullmatch(r"0*[1-9][0-9]{0,4}", text):
                return int(text)
            raise ValueError(f"{shown} is not a count from 1 to 99999")
    try:
        number = float(text) if plain else math.nan
    except ValueError:
        number = math.nan
    if not number > 0:
        raise ValueError(f"{shown} is not a number above zero")
    if number > _LARGEST:
        raise ValueError(f"{shown} is too large for the unit that ends the key")
    return number


def _in_base_units(value: Any, field: Field) -> Any:
    if field.kind == "bytes":
        return round(value * field.scale)
    return value * field.scale if field.kind == "number" else value


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
        """The slower of the links that a ring over all ranks crosses.

        Where every pair has its own wires there are as many rings as neighbours: an all-reduce over 2 of 8 MI300X
        ran at 48 GB/s, over all 8 at 313 (stas00/ml-engineering, network/README.md).
        """
        gpu = self.accelerator
        in_node = gpu.link_bytes_per_s * max(1, min(gpu.mesh_links, self.gpus_per_node - 1))
        if self.num_nodes == 1 or self.world_size <= (gpu.linked_devices or 0):
            return in_node
        return min(in_node, gpu.network_bytes_per_s)

    def __str__(self) -> str:
        return f"{self.num_nodes} x {self.gpus_per_node} {self.accelerator.name}"


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
# Words of a row's name that its card does not print, and words that make a card another one: RTX 3090 Ti, H200 NVL.
_NOT_PRINTED = {"16gb", "32gb", "40gb", "80gb", "144gb", "pcie", "rtx"}
_TELLS_APART = {"nvl", "ti", "super", "d", "laptop", "fhhl"}


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


def cluster_of(
    gpu: str | None,
    gpus: int | None,
    nodes: int | None,
    hosts: list[tuple[str, int]] | None,
    hostfile: str | None,
    *,
    rows: Mapping[str, Accelerator] | None = None,
) -> tuple[Cluster, list[str]]:
    """The cluster that a user means, and what had to be assumed.

    `gpus` are GPUs per node. `hosts` are the (name, slots) of a hostfile, which then fix nodes and GPUs. `rows` are the
    accelerators that can be meant, all known ones by default.
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
