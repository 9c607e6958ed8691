"""The price of one (job, strategy, cluster): memory per rank and time per step, as pure functions."""

from scaling.cost.job import Job
from scaling.cost.memory import USABLE_FRACTION, MemoryEstimate, memory
from scaling.cost.step_time import TimeEstimate, step_time

__all__ = ["USABLE_FRACTION", "Job", "MemoryEstimate", "TimeEstimate", "memory", "step_time"]
