"""The two sweeps of LAMB over parts of tensors, in three forms that differ in speed alone.

`measure` advances the moments and returns the squares of w and u of each part, `apply` moves w along u. u is computed
twice: that moves 16 bytes a parameter more, as many as keeping it would cost, and takes no memory.

    native     C, compiled in a tenth of a second by whatever compiler there is; CPU, fp32
    compiled   torch.compile; CPU and CUDA
    eager      torch's own operators; every device and dtype
"""

import logging
from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

from scaling.errors import InputError, ScaleError
from scaling.optim.kernels import compiled, eager, native
from scaling.optim.kernels.rows import Rows, Terms

KernelName = Literal["auto", "native", "compiled", "eager"]
__all__ = ["KernelName", "Rows", "Terms", "choose"]

_said: set[str] = set()


def choose(name: KernelName, tensor: Tensor) -> ModuleType:
    """The kernel for tensors like this one: "auto" is native where it can be, else eager. Raises ScaleError."""
    if name not in get_args(KernelName):
        raise InputError("kernel", name, "is no kernel", hint=", ".join(get_args(KernelName)))
    obstacle = native.obstacle(tensor) if name in ("auto", "native") else None
    if name == "native" and obstacle:
        raise ScaleError(f"optimizer: kernel native is not available: {obstacle}", hint="auto, compiled or eager")
    if name == "auto":
        name = "eager" if obstacle else "native"
    _say(f"LAMB's kernel for {tensor.dtype} on {tensor.device.type}: {name}" + (f"; {obstacle}" if obstacle else ""))
    return {"native": native, "compiled": compiled, "eager": eager}[name]


def _say(sentence: str) -> None:
    """Once a process."""
    if sentence not in _said:
        _said.add(sentence)
        logging.getLogger("scaling.optim").info(sentence)
