"""The accelerators that ship: data with a source for every row.

Where nobody measured a matmul ceiling 80 % of the peak stands in, and the row says so.
"""

from typing import NamedTuple

from scaling.hardware.accelerator import Accelerator
from scaling.units import BITS_PER_BYTE, GIB, MIB

ASSUMED_MATMUL_FRACTION = 0.8
UNMEASURED = "; no measured matmul ceiling, 80 % of the peak assumed"


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
_NVLINK_CUT = _Link("NVLink, cut to 400 GB/s both ways", 200)
_XGMI_2, _XGMI_3, _XGMI_4 = _Link("xGMI", 50), _Link("xGMI", 64, mesh_links=7), _Link("xGMI", 76.5, mesh_links=7)
# docs.habana.ai, Intel Gaudi Network Configuration: 21 ports to the seven others, 3 to each, and 3 out of the node.
_ROCE_100, _ROCE_200 = _Link("3 x 100 GbE", 37.5, mesh_links=7), _Link("3 x 200 GbE", 75, mesh_links=7)

_DGX_1 = _System("DGX-1: 4 x 100 Gb/s for 8", 8, 50)
_DGX_A100 = _System("DGX A100: 8 x 200 Gb/s", 8, 200)
_DGX_H100 = _System("DGX H100: 8 x 400 Gb/s", 8, 400)
_DGX_B200 = _System("DGX B200: 8 x 400 Gb/s", 8, 400)
_DGX_B300 = _System("DGX B300: 8 x 800 Gb/s", 8, 800)
_DGX_GB200 = _System("a compute tray of DGX GB200: 4 x 400 Gb/s", 4, 400)
_DGX_GB300 = _System("a compute tray of DGX GB300: 4 x 800 Gb/s", 4, 800)
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
    "gb300":        ( 80.0, 1250.0, 2500.0, 5000.0, 15000.,     __,     __),
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
    ("a800-80gb",      "a100",        80,  81920, 2.039, _NVLINK_CUT, _DGX_A100,   400),
    ("a100-40gb-pcie", "a100-pcie",   40,  40960, 1.555, _PCIE_4,     _SERVER,     250),
    ("a100-80gb-pcie", "a100-pcie",   80,  81920, 1.940, _PCIE_4,     _SERVER,     300),
    ("h100",           "h100",        80,  81559, 3.350, _NVLINK_4,   _DGX_H100,   700),
    ("h800",           "h100",        80,  81559, 3.350, _NVLINK_CUT, _DGX_H100,   700),
    ("h100-pcie",      "h100-pcie",   80,  81559, 2.000, _PCIE_5,     _ERA,        350),
    ("h100-nvl",       "h100-nvl",    94,  95830, 3.900, _PCIE_5,     _ERA,        400),
    ("h200",           "h200",       141, 143771, 4.800, _NVLINK_4,   _DGX_H100,   700),
    ("gh200",          "gh200",       96,  97871, 4.000, _NVLINK_4,   _ALPS,        __),
    ("gh200-144gb",    "gh200-144gb", 144, 146831, 4.800, _NVLINK_4,  _ALPS,        __),
    ("b200",           "b200",       180, 183359, 8.000, _NVLINK_5,   _DGX_B200,  1000),
    ("b300",           "b300",       288, 275040, 8.000, _NVLINK_5,   _DGX_B300,  1000),
    ("gb200",          "gb200",      186, 189471, 8.000, _NVL72,      _DGX_GB200, 1200),
    ("gb300",          "gb300",      279,     __, 8.000, _NVL72,      _DGX_GB300, 1400),
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
    "gb300": "NVIDIA GB300 NVL72 page, its rack over 72; verda.com/blog/gb300-nvl72-architecture",
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
    "a800-80gb": "an A100 for export: NVLink at 400 GB/s both ways instead of 600",
    "h800": "an H100 for export: NVLink at 400 GB/s both ways instead of 900",
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
        matmul_flops=matmul or ASSUMED_MATMUL_FRACTION * half,
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
        source=_SOURCES[chip] + ("" if matmul else UNMEASURED),
        note=_NOTES.get(name) or _NOTES.get(chip, ""),
    )


ACCELERATORS: dict[str, Accelerator] = {row[0]: _row(*row) for row in _ROWS}
ALIASES = {
    "h100-80gb": "h100", "h100-sxm": "h100", "a100-80gb-sxm": "a100-80gb", "a100-40gb-sxm": "a100-40gb",
    "4090": "rtx-4090", "rtx4090": "rtx-4090", "rtx-a6000": "a6000", "3090": "rtx-3090", "rtx3090": "rtx-3090",
    "5090": "rtx-5090", "rtx5090": "rtx-5090", "gh200-96gb": "gh200", "mi250x": "mi250x-gcd",
    "gaudi-2": "gaudi2", "gaudi-3": "gaudi3",
}  # fmt: skip
