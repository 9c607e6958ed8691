"""Predicted against measured: a run's plan.json beside its measured.json."""

import json

import pytest
from rich.console import Console

from scaling.errors import InputError
from scaling.report import comparison, table

_MEASURED = {
    "peak_allocated_bytes": {"value": 3 * 2**30, "how": "torch's peak", "predicted_in": "memory"},
    "tokens_per_second": {"value": 2000.0, "how": "median of the later steps", "predicted_in": "time"},
}
_PLAN = {"memory": {"peak_allocated_bytes": 6 * 2**30}, "time": {"tokens_per_second": 1000.0}}


@pytest.fixture
def run(tmp_path):
    """A function from the texts of measured.json and plan.json (None: absent) to a run directory."""

    def of(measured=_MEASURED, plan=_PLAN):
        for name, content in (("measured.json", measured), ("plan.json", plan)):
            if content is not None:
                (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return of


def _shown(found):
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table(found))
    return capture.get()


def test_a_run_with_a_plan_has_both_sides_and_their_ratio(run):
    rows = {row["quantity"]: row for row in comparison(run())["rows"]}
    assert set(rows) == set(_MEASURED)
    assert rows["peak_allocated_bytes"] == {
        "quantity": "peak_allocated_bytes", "predicted": 6 * 2**30, "measured": 3 * 2**30, "ratio": 2.0,
        "how": "torch's peak",
    }  # fmt: skip
    assert rows["tokens_per_second"]["ratio"] == 0.5
    text = _shown(comparison(run()))
    for words in ("6.0 GiB", "3.0 GiB", "2.00", "1k", "2k", "0.50", "torch's peak", "median of the later steps"):
        assert words in text


def test_a_run_without_a_plan_shows_what_was_measured_and_says_that_nothing_was_predicted(run):
    found = comparison(run(plan=None))
    assert [(row["predicted"], row["ratio"]) for row in found["rows"]] == [(None, None)] * 2
    text = _shown(found)
    assert text.count("unknown") == 2
    assert "3.0 GiB" in text


def test_a_measurement_of_nothing_has_no_ratio(run):
    measured = {"tokens_per_second": {"value": 0.0, "how": "no step was long enough", "predicted_in": "time"}}
    found = comparison(run(measured))
    assert found["rows"][0]["ratio"] is None
    assert "no step was long enough" in _shown(found)


@pytest.mark.parametrize(
    ("measured", "plan", "said"),
    [
        (None, _PLAN, "measured.json' does not exist"),
        ("", _PLAN, "measured.json' is not JSON"),
        ("{'a': 1}", _PLAN, "measured.json' is not JSON"),
        ("[]", _PLAN, "measured.json' is not a JSON object"),
        (_MEASURED, "{", "plan.json' is not JSON"),
        (_MEASURED, "3", "plan.json' is not a JSON object"),
    ],
)
def test_a_file_that_is_absent_or_not_an_object_is_an_input_error_naming_run(run, measured, plan, said):
    with pytest.raises(InputError) as caught:
        comparison(run(measured, plan))
    assert caught.value.field == "run"
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("measured", "plan"),
    [
        ({"a": 1}, _PLAN),
        ({"a": {"value": 1}}, _PLAN),
        ({"a": {"value": 1, "how": "x", "predicted_in": "memory"}}, _PLAN),
        ({"a": {"value": "1", "how": "x", "predicted_in": "time"}}, {"time": {"a": 2}}),
        (_MEASURED, {"memory": 3, "time": 4}),
    ],
)
def test_files_of_another_version_are_an_input_error_naming_run(run, measured, plan):
    with pytest.raises(InputError) as caught:
        comparison(run(measured, plan))
    assert caught.value.field == "run"


def test_no_run_directory_is_an_input_error_naming_run(tmp_path):
    for path in (tmp_path / "nope", tmp_path):
        with pytest.raises(InputError) as caught:
            comparison(path)
        assert caught.value.field == "run"
