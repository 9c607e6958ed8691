"""Errors of the estimate over runs: per stack and over all, by row and with one vote per distinct configuration."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from scaling import cost
from scaling.units import GIB
from scaling.validate.fit import left_out_errors
from scaling.validate.predict import predicted_speed, relative_error
from scaling.validate.runs import Run, Skipped

_LARGE_BYTES = 5 * GIB


def score(runs: Sequence[Run], skipped: Sequence[Skipped], *, calibrated: bool = False) -> dict[str, Any]:
    """What `scale validate --json` prints: errors of peak memory and speed over all and per stack, and verdicts.

    `calibrated`: each configuration is predicted by a profile fitted to the others of its stack (memory), and its speed
    with one factor per stack and GPU from the others, from other models where those are enough.
    """
    peaks = [run for run in runs if run.measured_peak_bytes is not None]
    stacks = sorted({run.stack for run in peaks})
    errors: dict[str, float] = {}
    for stack in stacks:
        own = [run for run in peaks if run.stack == stack]
        errors |= left_out_errors(own) if calibrated else {run.id: relative_error(run) for run in own}
    speeds = [run for run in runs if run.tokens_per_second is not None]
    time_errors = speed_errors(speeds, calibrated=calibrated)
    return {
        "calibrated": calibrated,
        "memory": {**_memory(peaks, errors), "skipped": len(skipped)},
        "throughput": {**_throughput(speeds, time_errors), "skipped": len(skipped)},
        "fits": _fits(runs),
        "stacks": {
            stack: {
                "memory": _memory([run for run in peaks if run.stack == stack], errors),
                "throughput": _throughput([run for run in speeds if run.stack == stack], time_errors),
            }
            for stack in sorted({run.stack for run in runs})
        },
        "rows": [
            {
                "id": run.id,
                "stack": run.stack,
                "memory_error": errors.get(run.id),
                "speed_error": time_errors.get(run.id),
                "assumptions": list(run.assumptions),
            }
            for run in runs
        ],
        "skipped": [{"id": row.id, "reason": row.reason} for row in skipped],
    }


def speed_errors(runs: Sequence[Run], *, calibrated: bool) -> dict[str, float]:
    """{run id: predicted / measured tokens per second - 1}; calibrated, each by a pace fitted to others."""
    ratios = {run.id: predicted_speed(run) / float(run.tokens_per_second or 0) for run in runs}
    paces = {run.id: [ratios[other.id] for other in _paced_by(run, runs)] if calibrated else [] for run in runs}
    return {run.id: ratios[run.id] / (median(paces[run.id]) if paces[run.id] else 1.0) - 1 for run in runs}


# A pace from fewer rows than these is no pace: of other models, of other configurations.
_FEWEST_OF_MODELS, _FEWEST = 10, 2


def _paced_by(run: Run, runs: Sequence[Run]) -> list[Run]:
    """The runs whose median pace is taken for `run`'s: of its stack and GPU, other models where there are enough, else
    other configurations; else of its stack; else none, and the shipped pace stands.
    """
    stack = [other for other in runs if other.stack == run.stack]
    alike = [other for other in stack if other.gpu == run.gpu]
    for others, fewest in (
        ([other for other in alike if other.model != run.model], _FEWEST_OF_MODELS),
        ([other for other in alike if other.configuration != run.configuration], _FEWEST),
        ([other for other in stack if other.configuration != run.configuration], 1),
    ):
        if len(others) >= fewest:
            return others
    return []


def _throughput(runs: Sequence[Run], errors: dict[str, float]) -> dict[str, Any]:
    return {"rows": len(runs), "by_row": quantiles(abs(errors[run.id]) for run in runs)}


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
    """{"count", "median", "p90", "worst"}; None where there are none. The 90th percentile is the nearest rank's."""
    ordered = sorted(errors)
    if not ordered:
        return {"count": 0, "median": None, "p90": None, "worst": None}
    return {
        "count": len(ordered),
        "median": median(ordered),
        "p90": ordered[math.ceil(0.9 * len(ordered)) - 1],
        "worst": ordered[-1],
    }


def _fits(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs that ran and would have been rejected, and runs that ran out of memory and would not."""
    judged = [run for run in runs if run.ran is not None]
    verdicts = {run.id: cost.memory(run.job, run.strategy, run.cluster, run.profile).total_bytes for run in judged}
    capacity = {run.id: run.cluster.accelerator.memory_bytes for run in judged}
    return {
        "rows": len(judged),
        "ran": sum(run.ran is True for run in judged),
        "wrong_rejections": sum(run.ran is True and verdicts[run.id] > capacity[run.id] for run in judged),
        "missed_oom": sum(run.ran is False and verdicts[run.id] <= capacity[run.id] for run in judged),
    }
