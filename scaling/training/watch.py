"""What a step tells of itself beside its loss: its time by part, MFU, peak memory, trust ratios."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from scaling import hardware
from scaling.cost import Job
from scaling.errors import ScaleError
from scaling.optim.trust import TrustRatioOptimizer
from scaling.recipe import Recipe
from scaling.training.memory import MemoryGauge
from scaling.training.ranks import Ranks
from scaling.units import format_count

PARTS = ("data", "forward", "backward", "optimizer")  # of a step's time; what is left is its rest
TRUST_EVERY_STEPS = 10  # ratios come to the host in a transfer of their own: a few kernels and one wait
TRUST_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


class Stopwatch:
    """Splits a step's time. On CUDA laps are events on the stream, read after the step has ended; nothing waits.

    A lap on CUDA lasts until the device has done what was queued before it, so that a launch-bound forward counts in
    full. Gradients that ZeRO reduces on a stream of its own count where the main stream waits for them: most often in
    the optimizer. The noise scale's norms are part of the backward.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        self._marks.clear()
        self.lap("")

    def lap(self, part: str) -> None:
        """What has happened since the last mark was `part`."""
        if self._on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def split(self, elapsed_s: float) -> dict[str, float]:
        """{part_s} of a step of `elapsed_s` that has ended, its loss being on the host; `rest_s` is what is left."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, mark) in zip(self._marks, self._marks[1:], strict=False):
            if part in seconds:
                seconds[part] += before.elapsed_time(mark) / 1e3 if self._on_cuda else mark - before
        rest_s = max(0.0, elapsed_s - sum(seconds.values()))
        return {f"{part}_s": value for part, value in {**seconds, "rest": rest_s}.items()}


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What MFU is of: model FLOPs over `peak_flops` of all ranks together, None where no figure is published."""

    flops_per_token: float
    peak_flops: float | None
    where: str  # whose peak, or why there is none

    @classmethod
    def of(cls, recipe: Recipe, ranks: Ranks) -> "Yardstick":
        """By the planner's count of FLOPs and the hardware table. A CPU's peak depends on its clock: unknown."""
        flops_per_token = Job.of(recipe).flops_per_token
        try:
            row = None if ranks.on_cpu else hardware.detected_gpus()
            if row is None:
                where = "no peak is published for a CPU" if ranks.on_cpu else "the hardware table knows no such device"
                return cls(flops_per_token=flops_per_token, peak_flops=None, where=where)
            peak_flops = ranks.world_size * row[0].peak_flops(recipe.precision)
        except ScaleError as error:
            return cls(flops_per_token=flops_per_token, peak_flops=None, where=error.message)
        where = f"{ranks.world_size} x {row[0].name}, dense {recipe.precision}"
        return cls(flops_per_token=flops_per_token, peak_flops=peak_flops, where=where)

    def mfu_fraction(self, tokens_per_second: float) -> float | None:
        return self.flops_per_token * tokens_per_second / self.peak_flops if self.peak_flops else None

    def __str__(self) -> str:
        if self.peak_flops is None:
            return f"MFU unknown: {self.where}; {format_count(self.flops_per_token)} FLOPs a token"
        peak = f"{self.peak_flops / 1e12:,.0f} TFLOP/s ({self.where})"
        return f"MFU: {format_count(self.flops_per_token)} FLOPs a token against {peak}"


class Watch:
    """Watches the steps of one run; `predicted` is {quantity: what the estimate says}."""

    def __init__(
        self, recipe: Recipe, ranks: Ranks, engine: Any, gauge: MemoryGauge, predicted: dict[str, float]
    ) -> None:
        self.clock = Stopwatch(ranks.device)
        self._recipe, self._ranks = recipe, ranks
        self._gauge = gauge
        self._predicted_bytes = predicted.get("peak_allocated_bytes")
        basic = getattr(engine, "basic_optimizer", None)
        self._trusted = basic if isinstance(basic, TrustRatioOptimizer) else None

    @cached_property
    def yardstick(self) -> Yardstick:
        """Only where it is asked for, which is on the first rank: it may have to ask nvidia-smi."""
        return Yardstick.of(self._recipe, self._ranks)

    def of_step(self, step: int, tokens_per_second: float, elapsed_s: float) -> dict[str, float | None]:
        """Of the step that has just ended; None is unknown. Peak memory is the run's so far, of this rank."""
        self._gauge.read()
        line: dict[str, float | None] = {
            "mfu_fraction": self.yardstick.mfu_fraction(tokens_per_second),
            "peak_flops": self.yardstick.peak_flops,
            **self.clock.split(elapsed_s),
            "peak_allocated_bytes": self._gauge.peak_allocated_bytes or None,
            "predicted_peak_allocated_bytes": self._predicted_bytes,
        }
        if self._trusted is not None and step % TRUST_EVERY_STEPS == 0:
            line |= trust_quantiles(self._trusted)
        return line

    def __str__(self) -> str:
        sampled = f"; trust ratios of every {TRUST_EVERY_STEPS}th step" if self._trusted is not None else ""
        return f"{self.yardstick}{sampled}"


def trust_quantiles(optimizer: TrustRatioOptimizer) -> dict[str, float]:
    """{trust_ratio_min ... trust_ratio_max} over the parameters that have a ratio; no collective, one transfer."""
    adapts = [decays or optimizer.always_adapt for decays in optimizer.decays]
    ratios = optimizer.trust_ratios.cpu()[torch.tensor(adapts)]
    if not len(ratios):
        return {}
    found = torch.quantile(ratios, torch.tensor(list(TRUST_QUANTILES.values()), dtype=ratios.dtype)).tolist()
    return {f"trust_ratio_{name}": value for name, value in zip(TRUST_QUANTILES, found, strict=True)}
