"""The estimate of what a run's source measured."""

from scaling import cost
from scaling.cost.profile import Profile
from scaling.validate.runs import Run


def predicted_peak(run: Run, profile: Profile | None = None) -> float:
    """Bytes allocated, reserved or of the whole process, as its source measured; by its own profile or another."""
    estimate = cost.memory(run.job, run.strategy, run.cluster, profile or run.profile, rank=run.rank)
    match run.peak_kind:
        case "allocated":
            return estimate.peak_allocated_bytes
        case "reserved":
            return estimate.peak_reserved_bytes
        case "process":
            return estimate.total_bytes


def relative_error(run: Run, profile: Profile | None = None) -> float:
    assert run.measured_peak_bytes is not None
    return predicted_peak(run, profile) / run.measured_peak_bytes - 1


def predicted_speed(run: Run, profile: Profile | None = None) -> float:
    """Tokens per second of all ranks."""
    return cost.step_time(run.job, run.strategy, run.cluster, profile or run.profile).tokens_per_second
