"""One accelerator: its figures, what each is called in a user's file, and in what unit.

Rates are dense (no sparsity), per device and per direction, in FLOP/s and bytes/s.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from scaling.errors import InputError
from scaling.units import GIB, MIB

Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["tf32", "fp8", "fp4"]  # of matmuls only; the rest of the run is wider


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
    price_per_hour: float | None = None  # in the user's currency; no shipped row has one
    note: str = ""

    def peak_flops(self, precision: Precision | MatmulPrecision) -> float:
        """The dense peak at `precision`. Raises InputError where none is published."""
        key = "16bit" if precision in ("bf16", "fp16") else precision
        rate: float | None = getattr(self, f"peak_flops_{key}")
        if rate is None:
            raise InputError("precision", precision, f"has no published rate on {self.name}",
                             hint=f"use bf16, or give peak_{key}_tflops in a hardware file")  # fmt: skip
        return rate

    @property
    def matmul_fraction(self) -> float:
        """The share of the 16-bit peak that a large matmul reaches."""
        return self.matmul_flops / self.peak_flops_16bit

    def matmul_ceiling(self, precision: Precision | MatmulPrecision) -> float:
        """FLOP/s of a large matmul at `precision`: measured, or the share of the peak that 16 bit reaches.

        Without tensor cores a matmul comes close to the peak: cuBLAS reaches 14.9 of a V100's 15.7 TFLOP/s.
        """
        if precision == "fp8" and self.matmul_flops_fp8 is not None:
            return self.matmul_flops_fp8
        return self.peak_flops(precision) * (0.95 if precision == "fp32" else self.matmul_fraction)

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
    Field("price_per_hour", "price_per_hour", "number", 1, "of one device, in your currency"),
    Field("source", "source", "text", 1, "where the figures stand"),
    Field("note", "note", "text", 1, "where sources disagree, and traps"),
)
