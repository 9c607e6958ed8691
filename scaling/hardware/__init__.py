"""Accelerators, links and clusters: data with a source for every row, what a user adds, and what this machine holds."""

from scaling.hardware.accelerator import FIELDS, Accelerator, Field, MatmulPrecision, Precision
from scaling.hardware.cluster import (
    ASSUMED_HOST_MEMORY_BYTES,
    DEFAULT_ACCELERATOR,
    DEFAULT_NUM_GPUS,
    Cluster,
    cluster_of,
    find_accelerator,
    priced,
    with_nvme,
)
from scaling.hardware.machine import detected_gpus, host_memory_bytes, measured_cpu
from scaling.hardware.table import ACCELERATORS
from scaling.hardware.user_rows import USER_ROWS_VARIABLE, key_of, known_accelerators, load_user_rows

__all__ = [
    "ACCELERATORS",
    "ASSUMED_HOST_MEMORY_BYTES",
    "DEFAULT_ACCELERATOR",
    "DEFAULT_NUM_GPUS",
    "FIELDS",
    "USER_ROWS_VARIABLE",
    "Accelerator",
    "Cluster",
    "Field",
    "MatmulPrecision",
    "Precision",
    "cluster_of",
    "detected_gpus",
    "find_accelerator",
    "host_memory_bytes",
    "key_of",
    "known_accelerators",
    "load_user_rows",
    "measured_cpu",
    "priced",
    "with_nvme",
]
