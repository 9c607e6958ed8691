"""Faults that are planted in a rank before it trains: death at a given moment, a full disk, numbers that are none.

Each is a picklable callable that takes the rank's number.
"""

import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Where a save can be cut short: whose call, and whether before it or after. All but the first are the first rank's.
MOMENTS = {
    "within a shard": ("shards._Hashed", "write", "after"),
    "before a shard is synced": ("os", "fsync", "before"),
    "before the manifest": ("checkpoint", "replace_text", "before"),
    "before the rename": ("os", "replace", "before"),
    "after the rename": ("checkpoint", "sync_folder", "before"),
    "before latest moves": ("checkpoint", "replace_text", "after"),
    "while an old one is removed": ("shutil", "rmtree", "before"),
}


@dataclass(frozen=True)
class DeathInSave:
    """SIGKILL on `rank` at its `nth` passage through one of MOMENTS."""

    moment: str
    nth: int
    rank: int = 0

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        from scaling.training import checkpoint, shards

        owners = {
            "shards._Hashed": shards._Hashed, "checkpoint": checkpoint, "os": os, "shutil": shutil
        }  # fmt: skip
        owner, name, when = MOMENTS[self.moment]
        original, calls = getattr(owners[owner], name), 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            caller = Path(sys._getframe(1).f_code.co_filename)
            calls += caller.name in ("checkpoint.py", "shards.py") or "torch" in caller.parts  # and nobody else's
            if when == "before" and calls == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if calls == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owners[owner], name, call)


@dataclass(frozen=True)
class SmallFiles:
    """On `rank` no file may grow beyond `num_bytes`, as on a full disk: writing fails with EFBIG."""

    rank: int
    num_bytes: int

    def __call__(self, rank: int) -> None:
        if rank == self.rank:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.num_bytes))


@dataclass(frozen=True)
class NotANumber:
    """On `rank` the gradient of one parameter is NaN in `steps`, counted from 1; the loss is what it should be."""

    rank: int
    steps: tuple[int, ...]
    parameter: str = "h.1.mlp.c_fc.weight"

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        from scaling.training import engine, loop

        make, take, current = engine.make_engine, loop.Training.optimizer_step, [0]

        def made(*args: Any, **kwargs: Any) -> Any:
            found = make(*args, **kwargs)
            for name, parameter in found.module.named_parameters():
                if name.endswith(self.parameter):
                    parameter.register_hook(lambda gradient: gradient * torch.nan if current[0] in self.steps else None)
            return found

        def taken(training: Any, **kwargs: Any) -> Any:
            current[0] = training.step + 1
            return take(training, **kwargs)

        engine.make_engine = made
        loop.Training.optimizer_step = taken


@dataclass(frozen=True)
class LossSpike:
    """From `step` on, once, the loss of every rank is `factor` times as large for one step."""

    step: int
    factor: float

    def __call__(self, rank: int) -> None:
        from scaling.training import loop

        micro_step = loop.Training.micro_step

        def spiked(training: Any, *args: Any) -> torch.Tensor:
            found = micro_step(training, *args)
            return found * self.factor if training.step + 1 == self.step else found

        loop.Training.micro_step = spiked


@dataclass(frozen=True)
class Slow:
    """Every step of `rank` takes `seconds` longer."""

    rank: int
    seconds: float

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        from scaling.training import loop

        step = loop.Training.optimizer_step

        def slowly(training: Any, **kwargs: Any) -> Any:
            time.sleep(self.seconds)
            return step(training, **kwargs)

        loop.Training.optimizer_step = slowly


@dataclass(frozen=True)
class InFp16:
    """fp16 on a CPU that says it has none, and can all the same; with another dynamic loss scale where given.

    `initial_scale_power` decides how many steps overflow at first, `min_loss_scale` is the floor.
    """

    initial_scale_power: int = 16
    loss_scale_window: int = 1000
    min_loss_scale: int = 1

    def __call__(self, rank: int) -> None:
        from deepspeed.accelerator import get_accelerator

        from scaling.ds_config import write

        type(get_accelerator()).is_fp16_supported = lambda accelerator: True
        blocks = write.precision_blocks

        def changed(*args: Any) -> dict[str, Any]:
            found = blocks(*args)
            found["fp16"] |= vars(self)
            return found

        write.precision_blocks = changed


@dataclass(frozen=True)
class Both:
    """One fault after the other."""

    first: Any
    second: Any

    def __call__(self, rank: int) -> None:
        self.first(rank)
        self.second(rank)
