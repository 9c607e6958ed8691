"""Fitting a profile: the solver against brute force, known coefficients found again, nothing peeked at."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaling.cost.profile import PROFILES, load_profile
from scaling.errors import InputError
from scaling.units import GIB
from scaling.validate import calibrated, fit, load
from scaling.validate.fit import bounded_least_squares, fitted, for_run, left_out_errors
from scaling.validate.predict import predicted_peak, predicted_speed, relative_error
from tests.validate import MEGATRON, PUBLISHED, needs_published, row, write_runs

_COEFFICIENTS = ("cut", "uncut", "score_bytes", "logit_bytes", "constant_bytes")


# The solver.


def _by_brute_force(rows, wanted, low):
    """The least squares over every choice of unknowns on their bound: the best of those that keep to the bounds."""
    n = rows.shape[1]
    best = None
    for size in range(n + 1):
        for free in map(list, combinations(range(n), size)):
            x = low.copy()
            if free:
                fixed = np.setdiff1d(np.arange(n), free)
                rest = wanted - rows[:, fixed] @ low[fixed]
                x[free] = np.linalg.lstsq(rows[:, free], rest, rcond=None)[0]
            if (x >= low - 1e-9).all():
                misfit = ((rows @ x - wanted) ** 2).sum()
                if best is None or misfit < best[0]:
                    best = (misfit, x)
    return best


@st.composite
def _problems(draw, pull=0.0):
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.integers(-6, 6).map(lambda k: k / 2)
    rows = np.array(draw(st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=m, max_size=m)))
    wanted = np.array(draw(st.lists(numbers, min_size=m, max_size=m)))
    low = np.array(draw(st.lists(numbers, min_size=n, max_size=n)))
    if pull:
        rows, wanted = np.vstack([rows, pull * np.eye(n)]), np.concatenate([wanted, np.zeros(n)])
    return rows, wanted, low


@given(_problems(pull=0.2))
def test_with_a_pull_the_solver_finds_the_one_optimum(problem):
    # As fitted() calls it: the pull makes the optimum unique.
    x = bounded_least_squares(*problem)
    _, expected = _by_brute_force(*problem)
    assert x == pytest.approx(expected, abs=1e-5)


@given(_problems())
def test_without_a_pull_the_solver_misfits_no_more_than_brute_force(problem):
    rows, wanted, low = problem
    scales = np.linalg.svd(rows, compute_uv=False)
    assume(scales[-1] > 0.05 * scales[0])  # coordinate descent crawls along a valley; the fit's pull rules those out
    x = bounded_least_squares(rows, wanted, low)
    least, _ = _by_brute_force(rows, wanted, low)
    assert (x >= low).all()
    assert ((rows @ x - wanted) ** 2).sum() == pytest.approx(least, abs=1e-6)


# The fit.


def _table():
    """Megatron rows that tell the coefficients apart: eager and flash, tensor parallel or not, short and long."""
    changes = [
        {"attention": attention, "tp": tp, "micro_batch": micro, "seq_len": seq_length, "hidden": hidden}
        for attention in ("eager", "flash")
        for tp in ("1", "4")
        for micro, seq_length, hidden in (("4", "1024", "512"), ("8", "2048", "512"), ("4", "2048", "2048"))
    ]
    return [row(**{**MEGATRON, "id": f"mcore-{number}", **change}) for number, change in enumerate(changes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found, skipped = load(write_runs(tmp_path_factory.mktemp("fit") / "runs.csv", *_table()))
    assert not skipped
    return found


def _measured_by(truth, runs):
    """`runs` as they would have been measured if `truth` were the stack's profile."""
    shipped = PROFILES["megatron-core"]
    return [replace(run, measured_peak_bytes=predicted_peak(run, for_run(truth, shipped, run))) for run in runs]


_TRUTH = replace(
    PROFILES["megatron-core"], cut=1.2, uncut=0.9, score_bytes=6.0, logit_bytes=8.0, constant_bytes=int(0.5 * GIB)
)


def test_known_coefficients_are_found_again_where_the_pull_is_weak(runs, monkeypatch):
    monkeypatch.setattr(fit, "_PULL", 1e-4)
    found = fitted(PROFILES["megatron-core"], _measured_by(_TRUTH, runs))
    for name in _COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(_TRUTH, name), rel=0.01), name


def test_with_the_shipped_pull_known_peaks_are_predicted_to_three_per_cent(runs):
    measured = _measured_by(_TRUTH, runs)
    found = fitted(PROFILES["megatron-core"], measured)
    shipped = PROFILES["megatron-core"]
    errors = [relative_error(run, for_run(found, shipped, run)) for run in measured]
    before = [relative_error(run) for run in measured]
    assert np.abs(errors).max() < 0.03 < np.abs(before).max()


def test_runs_that_the_shipped_profile_predicts_leave_it_as_it_is(runs):
    shipped = PROFILES["megatron-core"]
    found = fitted(shipped, _measured_by(shipped, runs))
    for name in _COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(shipped, name), rel=1e-3), name


def test_a_fit_changes_the_five_coefficients_and_nothing_else(runs):
    shipped = PROFILES["megatron-core"]
    found = fitted(shipped, _measured_by(_TRUTH, runs))
    assert replace(found, **{name: getattr(shipped, name) for name in _COEFFICIENTS}) == shipped
    assert isinstance(found.constant_bytes, int)


@pytest.mark.parametrize("factor", [0.01, 0.3, 0.6, 3.0, 100.0])
@pytest.mark.parametrize("number", [1, 12])
def test_no_coefficient_becomes_negative_whatever_was_measured(runs, factor, number):
    absurd = [
        replace(run, measured_peak_bytes=factor * predicted_peak(run, PROFILES["megatron-core"]))
        for run in runs[:number]
    ]
    found = fitted(PROFILES["megatron-core"], absurd)
    assert all(getattr(found, name) >= 0 for name in _COEFFICIENTS)


@pytest.mark.parametrize("stack", sorted(PROFILES))
@pytest.mark.parametrize("factor", [0.8, 0.95, 1.05, 1.3])
def test_one_row_suffices_and_moves_the_prediction_towards_the_measurement(tmp_path, stack, factor):
    # A row whose activations and logits weigh: 16 sequences of GPT-2's vocabulary a micro batch.
    mine = {**MEGATRON, "id": "mine-1", "vocab": "50257", "kv_heads": "8", "micro_batch": "16", "attention": "eager"}
    (run,), _ = load(write_runs(tmp_path / "runs.csv", row(**mine)), stack=stack)
    run = replace(run, measured_peak_bytes=factor * predicted_peak(run))
    found = fitted(PROFILES[stack], [run])
    before, after = relative_error(run), relative_error(run, for_run(found, PROFILES[stack], run))
    assert abs(after) < 0.5 * abs(before)


def test_repeats_of_a_configuration_do_not_outvote_the_others(runs):
    measured = _measured_by(_TRUTH, runs)
    repeated = [replace(measured[0], id=f"mcore-{100 + number}") for number in range(20)]
    once, often = fitted(_TRUTH, measured), fitted(_TRUTH, [*measured, *repeated])
    for name in _COEFFICIENTS:
        assert getattr(often, name) == pytest.approx(getattr(once, name), rel=1e-4)
    # And a repeat that disagrees counts with the median weight of its configuration, not twenty times.
    wrong = [replace(one, measured_peak_bytes=2 * one.measured_peak_bytes) for one in repeated]
    alone = replace(measured[0], measured_peak_bytes=2 * measured[0].measured_peak_bytes)
    assert fitted(_TRUTH, [*measured[1:], *wrong]).cut == pytest.approx(
        fitted(_TRUTH, [*measured[1:], alone]).cut, rel=1e-4
    )


# Left out means not seen.


def test_the_prediction_of_a_left_out_configuration_does_not_depend_on_its_own_measurement(runs):
    measured = _measured_by(_TRUTH, runs)
    left_out = measured[0]
    repeat = replace(left_out, id="mcore-repeat")  # of the same configuration: left out with it
    gross = [replace(one, measured_peak_bytes=1.3 * one.measured_peak_bytes) for one in (left_out, repeat)]

    def predictions(rows):
        errors = left_out_errors(rows)
        return {run.id: (1 + errors[run.id]) * run.measured_peak_bytes for run in rows}

    before = predictions([left_out, repeat, *measured[1:]])
    after = predictions([*gross, *measured[1:]])
    assert set(before) == {run.id for run in measured} | {"mcore-repeat"}
    for id_ in (left_out.id, "mcore-repeat"):
        assert after[id_] == pytest.approx(before[id_], rel=1e-12)
    # The others do see it.
    assert any(abs(after[run.id] / before[run.id] - 1) > 0.001 for run in measured[1:])


def test_a_row_that_is_ten_times_off_does_not_spoil_the_fit_to_the_others(runs):
    # One configuration of torchtitan was published at 47.7, 39.1 and 33.7 GiB, by software and GPU (memory_facts.md):
    # a large error counts by its size and not by its square.
    measured = _measured_by(_TRUTH, runs)
    odd = replace(measured[0], measured_peak_bytes=10 * measured[0].measured_peak_bytes)
    found = fitted(PROFILES["megatron-core"], [odd, *measured[1:]])
    errors = [abs(relative_error(run, for_run(found, PROFILES["megatron-core"], run))) for run in measured[1:]]
    assert np.median(errors) < 0.05


def test_a_configuration_alone_in_its_stack_is_predicted_by_the_shipped_profile(runs):
    (only,) = _measured_by(_TRUTH, runs[:1])
    assert left_out_errors([only]) == {only.id: pytest.approx(relative_error(only))}


# The file.


def test_the_calibrated_profile_and_the_one_read_back_predict_the_same(runs, tmp_path):
    measured = _measured_by(_TRUTH, runs)
    best, document = calibrated(measured)
    (tmp_path / "mine.json").write_text(json.dumps(document))
    read_back = load_profile(tmp_path / "mine.json")
    assert [predicted_peak(run, read_back) for run in runs] == [predicted_peak(run, best) for run in runs]
    memory = document["memory"]
    assert memory["rows"] == len(runs)
    assert memory["worst_error_after"] < memory["worst_error_before"]
    assert memory["worst_error_before"] == pytest.approx(max(abs(relative_error(run)) for run in measured))


def _paced(runs, scale):
    """`runs` as fast as a stack whose steps take `scale` times the roofline's."""
    shipped = PROFILES["megatron-core"].time_scale
    return [replace(run, tokens_per_second=predicted_speed(run) * shipped / scale) for run in runs]


def test_runs_without_a_peak_do_not_count_for_memory_nor_those_without_a_speed_for_the_pace(runs):
    peaks = [replace(run, tokens_per_second=None) for run in _measured_by(_TRUTH, runs)]
    speeds = [replace(run, measured_peak_bytes=None) for run in _paced(runs, 1.7)]
    both, document = calibrated([*peaks, *speeds])
    assert replace(both, time_scale=PROFILES["megatron-core"].time_scale) == calibrated(peaks)[0]
    assert replace(PROFILES["megatron-core"], time_scale=both.time_scale) == calibrated(speeds)[0]
    assert (document["memory"]["rows"], document["speed"]["rows"]) == (len(peaks), len(speeds))
    assert "speed" not in calibrated(peaks)[1]
    assert "memory" not in calibrated(speeds)[1]
    assert set(calibrated(speeds)[1]["coefficients"]) == {"time_scale"}
    with pytest.raises(InputError) as caught:
        calibrated([replace(runs[0], measured_peak_bytes=None, tokens_per_second=None)])
    assert caught.value.field == "runs"


def test_the_pace_is_found_again_and_read_back(runs, tmp_path):
    measured = [replace(run, measured_peak_bytes=None) for run in _paced(runs, 1.7)]
    best, document = calibrated(measured)
    assert best.time_scale == pytest.approx(1.7)
    assert document["speed"]["worst_error_after"] == pytest.approx(0, abs=1e-9)
    assert document["speed"]["worst_error_before"] == pytest.approx(1.7 / PROFILES["megatron-core"].time_scale - 1)
    (tmp_path / "mine.json").write_text(json.dumps(document))
    read_back = load_profile(tmp_path / "mine.json")
    assert [predicted_speed(run, read_back) for run in runs] == pytest.approx(
        [run.tokens_per_second for run in measured]
    )


def test_one_odd_speed_does_not_set_the_pace(runs):
    # The median of the runs' own paces.
    measured = [replace(run, measured_peak_bytes=None) for run in _paced(runs, 1.7)]
    odd = replace(measured[0], tokens_per_second=measured[0].tokens_per_second / 10)
    assert calibrated([odd, *measured[1:]])[0].time_scale == pytest.approx(1.7)


def test_runs_of_two_stacks_are_refused(runs):
    with pytest.raises(InputError, match=r"megatron-core.*nanotron"):
        calibrated([runs[0], replace(runs[1], stack="nanotron")])


@needs_published
def test_on_the_published_table_a_fit_leaves_no_stack_worse_in_sample():
    peaks = [run for run in load(PUBLISHED)[0] if run.measured_peak_bytes is not None]
    stacks = sorted({run.stack for run in peaks})
    assert len(stacks) >= 8
    for stack in stacks:
        own = [run for run in peaks if run.stack == stack]
        best, _ = calibrated(own)
        assert all(getattr(best, name) >= 0 for name in _COEFFICIENTS), stack
        before = _configurations_error(own, PROFILES[stack])
        assert _configurations_error(own, best) <= before * 1.001, stack


def _configurations_error(runs, best):
    """The mean absolute error, with one vote for each configuration: what the fit is after."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.configuration].append(abs(relative_error(run, for_run(best, PROFILES[run.stack], run))))
    return np.mean([np.mean(group) for group in groups.values()])
