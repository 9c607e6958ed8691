"""Errors over runs: quantiles, one vote per configuration, verdicts; and the figures on the published table."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling import cost
from scaling.validate import load, score
from scaling.validate.score import _paced_by, quantiles, speed_errors
from tests.validate import MEGATRON, PUBLISHED, needs_published, row, write_runs

_ERRORS = st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=60)


@given(_ERRORS)
def test_median_and_worst_are_numpys(errors):
    found = quantiles(errors)
    assert found["count"] == len(errors)
    assert found["median"] == pytest.approx(np.quantile(errors, 0.5))
    assert found["worst"] == np.max(errors)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 19, 20, 99, 100, 130])
def test_the_90th_percentile_is_the_nearest_rank(count):
    # The nearest-rank definition: the smallest value that at least 90 % of the values do not exceed (Hyndman and Fan
    # 1996, definition 1; numpy's "inverted_cdf"). Ten values 1 to 10 have 9.
    values = list(range(1, count + 1))
    assert quantiles(reversed(values))["p90"] == -(-9 * count // 10)
    assert quantiles(values)["p90"] == np.quantile(values, 0.9, method="inverted_cdf")


def test_of_nothing_there_are_no_quantiles():
    assert quantiles([]) == {"count": 0, "median": None, "p90": None, "worst": None}


@pytest.fixture
def runs(tmp_path):
    """A function from rows to (runs, skipped)."""

    def of(*rows):
        return load(write_runs(tmp_path / "runs.csv", *rows))

    return of


def _measured_as(run, error):
    """`run` with such a measured peak that the relative error of the estimate is `error`."""
    estimate = cost.memory(run.job, run.strategy, run.cluster, run.profile).peak_allocated_bytes
    return replace(run, measured_peak_bytes=estimate / (1 + error))


def test_errors_are_of_the_estimate_over_the_measurement_with_their_sign(runs):
    (run,), _ = runs(row())
    (found,) = score([_measured_as(run, -0.2)], [])["rows"]
    assert found["memory_error"] == pytest.approx(-0.2)
    assert score([_measured_as(run, -0.2)], [])["memory"]["by_row"]["worst"] == pytest.approx(0.2)


def test_repeats_of_a_configuration_have_one_vote_between_them_the_median_of_theirs(runs):
    (a, b, c, other), _ = runs(row(id="tt-1"), row(id="tt-2"), row(id="tt-3"), row(id="tt-4", seq_len="4096"))
    found = score([_measured_as(a, 0.1), _measured_as(b, -0.4), _measured_as(c, 0.2), _measured_as(other, 0.8)], [])[
        "memory"
    ]
    assert found["by_row"]["count"] == 4
    assert found["by_row"]["median"] == pytest.approx(0.3)  # of 0.1, 0.2, 0.4, 0.8
    assert found["by_configuration"]["count"] == 2
    assert found["by_configuration"]["median"] == pytest.approx(0.5)  # of 0.2 and 0.8
    assert found["by_configuration"]["worst"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("gib", "large"), [("4.99", False), ("5", True), ("40", True)]
)  # the published table's README: "those of 5 GiB or more apart"
def test_large_is_5_gib_or_more(runs, gib, large):
    found = score(*runs(row(measured_peak_gib=gib)))["memory"]
    assert found["by_configuration"]["count"] == 1
    assert found["by_configuration_5gib"]["count"] == (1 if large else 0)


def test_two_rows_of_one_id_are_two_rows(runs):
    # A table of one's own may number nothing.
    (a, b), _ = runs(row(id="tt-1"), row(id="tt-1", seq_len="4096"))
    found = score([_measured_as(a, 0.5), _measured_as(b, 0.1)], [])["memory"]["by_row"]
    assert found["count"] == 2
    assert found["worst"] == pytest.approx(0.5)
    assert found["median"] == pytest.approx(0.3)


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_json_has_the_keys_that_were_promised(runs, calibrated):
    used, skipped = runs(row(id="tt-1"), row(id="tt-2", seq_len="4096"), row(id="tt-3", layers=""))
    found = json.loads(json.dumps(score(used, skipped, calibrated=calibrated)))
    assert found["calibrated"] is calibrated
    assert {"rows", "skipped", "by_row", "by_configuration", "by_configuration_5gib"} <= set(found["memory"])
    assert {"rows", "skipped", "by_row"} <= set(found["throughput"])
    for quantity, kinds in {
        "memory": ("by_row", "by_configuration", "by_configuration_5gib"),
        "throughput": ("by_row",),
    }.items():
        for kind in kinds:
            assert {"median", "p90", "worst"} <= set(found[quantity][kind])
    assert set(found["fits"]) == {"rows", "ran", "wrong_rejections", "missed_oom"}
    assert (found["memory"]["rows"], found["memory"]["skipped"]) == (2, 1)
    assert [one["id"] for one in found["rows"]] == ["tt-1", "tt-2"]
    assert found["skipped"] == [{"id": "tt-3", "reason": "layers is not given"}]
    assert set(found["stacks"]) == {"torchtitan"}


def test_what_was_not_measured_is_not_counted(runs):
    used, skipped = runs(
        row(id="tt-1", measured_peak_gib=""), row(id="tt-2", tokens_per_s_per_gpu=""), row(id="tt-3", fits="")
    )
    found = score(used, skipped)
    assert (found["memory"]["rows"], found["throughput"]["rows"], found["fits"]["rows"]) == (2, 2, 2)
    assert [one["memory_error"] is None for one in found["rows"]] == [True, False, False]
    assert [one["speed_error"] is None for one in found["rows"]] == [False, True, False]


@pytest.mark.parametrize(
    ("fits", "gib", "wrong_rejections", "missed_oom"),
    # Llama-3-8B's fp32 states alone are 15 GiB on each of eight GPUs; all of it is below 80 GiB.
    [("yes", "80", 0, 0), ("yes", "10", 1, 0), ("no", "10", 0, 0), ("no", "80", 0, 1)],
)
def test_a_verdict_is_wrong_where_a_run_ran_and_would_not_fit_or_the_other_way_round(
    runs, fits, gib, wrong_rejections, missed_oom
):
    found = score(*runs(row(fits=fits, gpu_mem_gib=gib)))["fits"]
    ran = int(fits == "yes")
    assert found == {"rows": 1, "ran": ran, "wrong_rejections": wrong_rejections, "missed_oom": missed_oom}


@pytest.mark.parametrize(
    ("change", "covered"),
    [({}, True), ({"tp": "2"}, True), ({"pp": "2"}, True), ({"sp_or_cp": "cp2"}, True), ({"gpu_type": "?"}, False)],
)
def test_runs_of_every_layout_on_a_known_gpu_are_timed(runs, change, covered):
    (run,), _ = runs(row(**change))
    assert (run.tokens_per_second is not None) is covered
    assert score([run], [])["throughput"]["rows"] == (1 if covered else 0)


def test_speed_errors_have_their_sign_and_the_factor_of_the_other_models_cancels(runs):
    def model(number, layers):
        (run,), _ = runs(row(id=f"tt-{number}", layers=str(layers), params=""))
        estimate = cost.step_time(run.job, run.strategy, run.cluster, run.profile).tokens_per_second
        return replace(run, tokens_per_second=estimate / 2)

    three = [model(number, layers) for number, layers in enumerate((8, 16, 32))]
    # Predicted twice as fast as measured, all alike: one factor from the others explains each.
    assert speed_errors(three, calibrated=False) == pytest.approx({"tt-0": 1.0, "tt-1": 1.0, "tt-2": 1.0})
    assert speed_errors(three, calibrated=True) == pytest.approx({"tt-0": 0.0, "tt-1": 0.0, "tt-2": 0.0})
    slow = replace(three[0], tokens_per_second=three[0].tokens_per_second / 10)
    # The factor of a model is the others' alone: of two models, the other's.
    assert speed_errors([slow, three[1]], calibrated=True)["tt-0"] == pytest.approx(9.0)


@pytest.fixture(scope="module")
def speeds(tmp_path_factory):
    """Runs of one stack and GPU: twelve models, repeats of one, one under another name, another GPU, another stack."""
    rows = [row(id=f"tt-{layers}", layers=str(layers), params="") for layers in range(1, 13)]
    rows += [row(id="tt-again", layers="1", params=""), row(id="tt-renamed", layers="1", params="", model="another")]
    rows += [row(id="tt-longer", layers="1", params="", seq_len="4096")]
    rows += [row(id="tt-h200", gpu_type="H200", gpu_mem_gib="141", layers="1", params="")]
    rows += [row(id="tune-1", params=""), row(id="tune-2", params="", seq_len="4096")]
    found, skipped = load(write_runs(tmp_path_factory.mktemp("score") / "runs.csv", *rows))
    assert not skipped
    # Paces that are all different, so that a run that is looked at shows.
    return [replace(run, tokens_per_second=run.tokens_per_second * 1.1**number) for number, run in enumerate(found)]


@pytest.mark.parametrize("few", [False, True], ids=["other models", "other configurations"])
def test_the_speed_of_a_run_never_changes_the_pace_that_it_is_predicted_with(speeds, few):
    # Nor does that of a repeat, under whatever name: what is predicted for a configuration comes from the others.
    speeds = speeds[9:] if few else speeds
    before = speed_errors(speeds, calibrated=True)
    for run in speeds:
        alike = [other for other in speeds if other.configuration == run.configuration and other.gpu == run.gpu]
        changed = [replace(r, tokens_per_second=7 * r.tokens_per_second) if r in alike else r for r in speeds]
        after = speed_errors(changed, calibrated=True)
        assert (1 + after[run.id]) * 7 == pytest.approx(1 + before[run.id]), run.id


def test_a_pace_is_taken_from_the_likest_runs_that_are_enough(speeds):
    paced_by = {run.id: {other.id for other in _paced_by(run, speeds)} for run in speeds}
    # Ten other models or more: no run of its own dimensions, by whatever name.
    own = {"tt-1", "tt-again", "tt-renamed", "tt-longer"}
    for id_ in own:
        assert paced_by[id_] == {f"tt-{layers}" for layers in range(2, 13)}
    assert paced_by["tt-12"] == {f"tt-{layers}" for layers in range(1, 12)} | own
    # The only run on its GPU: the stack's, its own configuration apart; two runs of a stack: each other's.
    assert paced_by["tt-h200"] == {run.id for run in speeds if run.id.startswith("tt-")} - {"tt-h200"}
    assert (paced_by["tune-1"], paced_by["tune-2"]) == ({"tune-2"}, {"tune-1"})
    alone = [run for run in speeds if run.id == "tune-1"]
    assert _paced_by(alone[0], alone) == []


def test_a_row_of_megatrons_tests_says_in_the_json_what_was_assumed(runs):
    (found,) = score(*runs(row(**MEGATRON)))["rows"]
    assert any("vocab 50257" in said for said in found["assumptions"])


@pytest.fixture(scope="module")
def published():
    runs, skipped = load(PUBLISHED)
    return {calibrated: score(runs, skipped, calibrated=calibrated) for calibrated in (False, True)}


# What the published table has to be met with: the targets set for it (uncalibrated 12 % and 30 %, wrong rejections 5 %,
# calibrated 5 % and 12 %), tightened to what docs/log.md says is reached.


@needs_published
@pytest.mark.parametrize(
    ("calibrated", "kind", "quantile", "most"),
    [
        (False, "by_row", "median", 0.05),
        (False, "by_row", "p90", 0.15),
        (False, "by_configuration_5gib", "median", 0.08),
        (True, "by_row", "median", 0.05),
        (True, "by_row", "p90", 0.125),
    ],
)
def test_peak_memory_meets_its_target(published, calibrated, kind, quantile, most):
    assert published[calibrated]["memory"][kind]["count"] > 40
    assert published[calibrated]["memory"][kind][quantile] <= most


@needs_published
def test_at_most_three_verdicts_in_a_hundred_are_wrong_rejections(published):
    fits = published[False]["fits"]
    assert fits["ran"] > 350
    assert fits["wrong_rejections"] <= 0.03 * fits["ran"]


@needs_published
@pytest.mark.parametrize(("calibrated", "most"), [(False, 0.05), (True, 0.04)])
def test_the_speed_of_llm_foundry_meets_its_target(published, calibrated, most):
    found = published[calibrated]["stacks"]["llm-foundry"]["throughput"]
    assert found["rows"] > 100
    assert found["by_row"]["median"] <= most


@needs_published
def test_every_published_peak_and_speed_of_a_usable_row_has_its_error(published):
    runs, _ = load(PUBLISHED)
    by_id = {found["id"]: found for found in published[True]["rows"]}
    assert len(by_id) == len(runs)
    for run in runs:
        assert (by_id[run.id]["memory_error"] is None) == (run.measured_peak_bytes is None)
        if by_id[run.id]["speed_error"] is not None:
            assert math.isfinite(by_id[run.id]["speed_error"])
            assert run.tokens_per_second
