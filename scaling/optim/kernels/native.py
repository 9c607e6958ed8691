"""LAMB's sweeps in C (lamb.c): what a fused kernel costs, without torch's headers and a minute of C++.

The library is compiled for this very processor, by this process, into a folder that is gone once it is loaded: nothing
stale, nothing locked, nothing for another machine. Its loops release the interpreter, so that plain threads, as many as
torch has, share them.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaling.optim.kernels.rows import Rows, Terms

# Elements of a block: its w, g, m and v are half a megabyte.
_BLOCK = 1 << 15
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC")

# The structures of lamb.c.
_ROW = np.dtype([("w", "u8"), ("g", "u8"), ("m", "u8"), ("v", "u8"), ("decay", "f8"), ("rate", "f8")])
_BLOCKS = np.dtype([("row", "i8"), ("start", "i8"), ("length", "i8")])
_TERMS = np.dtype([("beta1", "f8"), ("beta2", "f8"), ("eps", "f8"), ("gradient_scale", "f8")])


def obstacle(tensor: Tensor) -> str | None:
    """Why tensors like this one cannot be had here, if they cannot."""
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return "native is for fp32 on a CPU"
    library = _library()
    return library if isinstance(library, str) else None


def measure(rows: Rows, terms: Terms, gradient_scale: Tensor | None) -> Tensor:
    """[2, parts] in fp64: squares of w and u / factor."""
    table, blocks = _tables(rows, terms)
    scale = 1.0 if gradient_scale is None else float(gradient_scale)
    squares = np.empty((len(blocks), 2))
    _run("measure", table, blocks, np.array((*terms.betas, terms.eps, scale), _TERMS), squares)
    sums = [np.bincount(blocks["row"], column, minlength=len(table)) for column in squares.T]
    return torch.from_numpy(np.stack(sums))


def apply(rows: Rows, terms: Terms, rates: Tensor) -> None:
    """w += rate u / factor, with a rate for each part."""
    table, blocks = _tables(rows, terms)
    table["rate"] = rates.numpy()
    _run("apply", table, blocks, np.array((*terms.betas, terms.eps, 1.0), _TERMS))


def _tables(rows: Rows, terms: Terms) -> tuple[Any, Any]:
    table = np.zeros(len(rows.ws), _ROW)
    for name, tensors in zip("wgmv", rows[:4], strict=True):
        if tensors:
            table[name] = [tensor.data_ptr() for tensor in tensors]
    table["decay"] = np.where(rows.decays, terms.decay, 0.0)
    sizes = np.array([tensor.numel() for tensor in rows.ws], dtype=np.int64)
    counts = -(-sizes // _BLOCK)
    blocks = np.zeros(counts.sum(), _BLOCKS)
    blocks["row"] = np.repeat(np.arange(len(sizes)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    blocks["start"] = (np.arange(len(blocks)) - first) * _BLOCK
    blocks["length"] = np.minimum(_BLOCK, sizes[blocks["row"]] - blocks["start"])
    return table, blocks


def _run(function: str, table: Any, blocks: Any, *arrays: Any) -> None:
    """A function of lamb.c over all blocks, each thread a run of them."""
    call, threads = getattr(_library(), function), torch.get_num_threads()
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (table, blocks, *arrays)]
    edges = [ctypes.c_int64(len(blocks) * n // threads) for n in range(threads + 1)]

    def share(number: int) -> None:
        call(*pointers[:2], edges[number], edges[number + 1], *pointers[2:])

    if threads == 1:
        share(0)
    else:
        list(_pool(threads, os.getpid()).map(share, range(threads)))


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """By process, since threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lamb")


@functools.cache
def _library() -> Any:
    """The loaded library, or why there is none."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        return "no C compiler was found"
    source = files("scaling.optim.kernels") / "lamb.c"
    with tempfile.TemporaryDirectory(prefix="scale-lamb-") as scratch:
        built = Path(scratch) / "lamb.so"
        command = [*compiler.split(), *_FLAGS, "-x", "c", "-", "-o", str(built), "-lm"]
        try:
            subprocess.run(command, input=source.read_bytes(), capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            lines = said.decode(errors="replace").strip().splitlines()
            return f"{compiler} does not compile it: {lines[0] if lines else error}"
        try:
            return ctypes.CDLL(str(built))
        except OSError as error:
            return f"what {compiler} made cannot be loaded: {error}"
