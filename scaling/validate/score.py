"""Errors of the estimate over runs: per stack and over all, by row and with one vote per distinct configuration."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from scaling import cost
from scaling.cost.profile import Profile
from scaling.units import GIB
from scaling.validate.runs import Run, Skipped

_LARGE_BYTES = 5 * GIB


def predicted_peak(run: Run, profile: Profile | None = None) -> float:
    """The estimate of what the run's source measured: allocated, reserved, or the whole process."""
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


def score(runs: Sequence[Run], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """{"memory": {...}, "fits": {...}, "stacks": {stack: memory}} as `scale validate --json` prints it."""
    peaks = [run for run in runs if run.measured_peak_bytes is not None]
    errors = {run.id: relative_error(run) for run in peaks}
    stacks = sorted({run.stack for run in peaks})
    return {
        "memory": {**_memory(peaks, errors), "skipped": len(skipped)},
        "stacks": {stack: _memory([run for run in peaks if run.stack == stack], errors) for stack in stacks},
        "fits": _fits(runs),
        "rows": [{"id": run.id, "stack": run.stack, "error": errors[run.id]} for run in peaks],
        "skipped": [{"id": row.id, "reason": row.reason} for row in skipped],
    }


def _memory(runs: Sequence[Run], errors: dict[str, float]) -> dict[str, Any]:
    large = [run for run in runs if (run.measured_peak_bytes or 0) >= _LARGE_BYTES]
    return {
        "rows": len(runs),
        "by_row": quantiles(abs(errors[run.id]) for run in runs),
        "by_configuration": quantiles(_votes(runs, errors)),
        "by_configuration_5gib": quantiles(_votes(large, errors)),
    }


def _votes(runs: Sequence[Run], errors: dict[str, float]) -> list[float]:
    """One error per distinct configuration: the median of its rows."""
    groups: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for run in runs:
        groups[run.configuration].append(abs(errors[run.id]))
    return [median(group) for group in groups.values()]


def quantiles(errors: Iterable[float]) -> dict[str, Any]:
    """{"count", "median", "p90", "worst"}; None where there are none. The 90th percentile is the nearest rank."""
    ordered = sorted(errors)
    if not ordered:
        return {"count": 0, "median": None, "p90": None, "worst": None}
    return {
        "count": len(ordered),
        "median": median(ordered),
        "p90": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        "worst": ordered[-1],
    }


def _fits(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs that ran and would have been rejected, and runs that ran out of memory and would not."""
    judged = [run for run in runs if run.ran is not None]
    verdicts = {run.id: cost.memory(run.job, run.strategy, run.cluster, run.profile).total_bytes for run in judged}
    capacity = {run.id: run.cluster.accelerator.memory_bytes for run in judged}
    return {
        "rows": len(judged),
        "wrong_rejections": sum(run.ran is True and verdicts[run.id] > capacity[run.id] for run in judged),
        "missed_oom": sum(run.ran is False and verdicts[run.id] <= capacity[run.id] for run in judged),
    }
