"""Fitting a profile's coefficients to measured runs, and how well that predicts a configuration that was left out.

The estimate is piecewise linear in the coefficients, so a few rounds of linear least squares on relative errors find
them. A weak pull towards the shipped values keeps a coefficient that no run speaks of where it was; none is negative.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import numpy.typing as npt

from scaling.cost.profile import Profile, find_profile
from scaling.errors import InputError
from scaling.units import GIB
from scaling.validate.predict import predicted_peak, predicted_speed
from scaling.validate.runs import Run

Vector = npt.NDArray[np.float64]

# The coefficients that are fitted, each with the scale of a step in it.
_SCALES = {"cut": 1.0, "uncut": 1.0, "score_bytes": 5.0, "logit_bytes": 10.0, "constant_bytes": float(GIB)}
# How much a coefficient's distance from its shipped value, in its scale, weighs against a relative error.
_PULL = 0.2
_ROUNDS = 6
_SMALL = 0.05


def fitted(profile: Profile, runs: Sequence[Run]) -> Profile:
    """`profile` with the coefficients that predict the peaks of `runs` best; each configuration has one vote."""
    weights = _one_vote_each(runs)
    measured = np.array([run.measured_peak_bytes for run in runs], dtype=np.float64)
    names, scales = list(_SCALES), np.array(list(_SCALES.values()))
    prior = np.array([getattr(profile, name) for name in names], dtype=np.float64)

    def predict(values: Vector) -> Vector:
        return np.array([predicted_peak(run, _with(run.profile, profile, names, values)) for run in runs])

    values = prior.copy()
    for _ in range(_ROUNDS):
        here = predict(values)
        slopes = _slopes(predict, values, here, scales)
        # Unknowns are distances from the prior in their scales; rows are relative errors, of which a large one counts
        # by its size and not by its square: configurations of one name were published 40 % apart.
        robust = np.sqrt(_SMALL / np.maximum(np.abs(here / measured - 1), _SMALL))
        robust *= weights / robust.max()
        rows = slopes * scales / measured[:, None] * robust[:, None]
        wanted = (measured - here + slopes @ (values - prior)) / measured * robust
        pull = _PULL * np.eye(len(names))
        distance = bounded_least_squares(
            np.vstack([rows, pull]), np.concatenate([wanted, np.zeros(len(names))]), low=-prior / scales
        )
        values = prior + distance * scales
    return _with(profile, profile, names, values)


def _with(of_run: Profile, base: Profile, names: Sequence[str], values: Vector) -> Profile:
    """A run's own profile, which may fuse kernels, with the fitted coefficients."""
    changes = {name: float(value) for name, value in zip(names, values, strict=True)}
    changes["constant_bytes"] = int(changes["constant_bytes"])
    # What a run's kernels save on, compared with the stack's usual ones, it saves after the fit as well.
    changes["logit_bytes"] *= of_run.logit_bytes / base.logit_bytes
    return replace(of_run, **changes)  # type: ignore[arg-type]


def _slopes(predict: Callable[[Vector], Vector], values: Vector, here: Vector, scales: Vector) -> Vector:
    """d(prediction) / d(coefficient), runs by coefficients, by small steps upwards."""
    columns = []
    for index, scale in enumerate(scales):
        step = np.zeros_like(values)
        step[index] = 0.02 * scale
        columns.append((predict(values + step) - here) / step[index])
    return np.stack(columns, axis=1)


def bounded_least_squares(rows: Vector, wanted: Vector, low: Vector) -> Vector:
    """argmin |rows x - wanted|^2 with x >= low, by coordinate descent: small, and convex, so it ends at the optimum."""
    x = np.maximum(low, 0.0)
    norms = (rows**2).sum(axis=0)
    residual = wanted - rows @ x
    for _ in range(2000):
        largest = 0.0
        for j in np.flatnonzero(norms):
            moved = max(low[j], x[j] + rows[:, j] @ residual / norms[j]) - x[j]
            x[j] += moved
            residual -= rows[:, j] * moved
            largest = max(largest, abs(moved))
        if largest < 1e-9:
            break
    return x


def _one_vote_each(runs: Sequence[Run]) -> Vector:
    """1 / sqrt(rows of the same configuration), so that repeats do not outvote."""
    counts: dict[tuple[object, ...], int] = defaultdict(int)
    for run in runs:
        counts[run.configuration] += 1
    return np.array([counts[run.configuration] ** -0.5 for run in runs])


def left_out_errors(runs: Sequence[Run]) -> dict[str, float]:
    """{run id: relative error}, each configuration predicted by a fit to all the others. `runs` share a stack."""
    stack_profile = find_profile(runs[0].stack)
    errors = {}
    for configuration in {run.configuration for run in runs}:
        others = [run for run in runs if run.configuration != configuration]
        best = fitted(stack_profile, others) if others else stack_profile
        for run in runs:
            if run.configuration == configuration:
                predicted = predicted_peak(run, for_run(best, stack_profile, run))
                errors[run.id] = predicted / float(run.measured_peak_bytes or 0) - 1
    return errors


def for_run(best: Profile, stack_profile: Profile, run: Run) -> Profile:
    """`best`, fitted to a stack, for one run of it, whose kernels may be fused unlike the stack's usual ones."""
    values = np.array([getattr(best, name) for name in _SCALES], dtype=np.float64)
    return _with(run.profile, stack_profile, list(_SCALES), values)


def calibrated(runs: Sequence[Run]) -> tuple[Profile, dict[str, object]]:
    """The profile fitted to `runs`, and the file that `--profile` reads: coefficients with where they come from.

    Peaks fit what the stack's kernels keep, speeds its pace. Raises InputError where the runs are of several stacks or
    none measured either.
    """
    measured = [run for run in runs if run.measured_peak_bytes is not None or run.tokens_per_second is not None]
    stacks = sorted({run.stack for run in measured})
    if len(stacks) != 1:
        raise InputError("runs", stacks, "is not one stack with measured runs", hint="calibrate one stack at a time")
    shipped = find_profile(stacks[0])
    peaks = [run for run in measured if run.measured_peak_bytes is not None]
    speeds = [run for run in measured if run.tokens_per_second is not None]
    best = fitted(shipped, peaks) if peaks else shipped
    document: dict[str, object] = {"stack": best.name}
    coefficients: dict[str, float] = {name: getattr(best, name) for name in _SCALES} if peaks else {}
    if speeds:
        pace = median(predicted_speed(run) / float(run.tokens_per_second or 0) for run in speeds)
        best = replace(best, time_scale=shipped.time_scale * pace)
        coefficients["time_scale"] = best.time_scale

    def worst_peak(profile: Profile) -> float:
        predicted = [predicted_peak(run, for_run(profile, shipped, run)) for run in peaks]
        return max(
            abs(peak / float(run.measured_peak_bytes or 0) - 1) for peak, run in zip(predicted, peaks, strict=True)
        )

    def worst_speed(profile: Profile) -> float:
        predicted = [predicted_speed(run, replace(run.profile, time_scale=profile.time_scale)) for run in speeds]
        return max(
            abs(speed / float(run.tokens_per_second or 0) - 1) for speed, run in zip(predicted, speeds, strict=True)
        )

    document["coefficients"] = coefficients
    for name, rows, worst in (("memory", peaks, worst_peak), ("speed", speeds, worst_speed)):
        if rows:
            before, after = worst(shipped), worst(best)
            document[name] = {"rows": len(rows), "worst_error_before": before, "worst_error_after": after}
    return best, document
