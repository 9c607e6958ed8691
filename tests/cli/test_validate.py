"""`scale validate` as a person and as a program meets it."""

import json

import pytest

from tests.validate import MEGATRON, PUBLISHED, needs_published, row, write_runs


@pytest.fixture
def table(tmp_path):
    """Two usable rows of one stack, one of another, one that is skipped."""
    return write_runs(
        tmp_path / "runs.csv",
        row(id="tt-1"),
        row(id="tt-2", seq_len="4096"),
        row(**MEGATRON),
        row(id="tt-3", notes="QLoRA [r=16]"),
    )


@pytest.mark.parametrize("how", [(), ("--calibrated",)])
def test_a_table_of_errors_verdicts_and_reasons_is_printed(scale, table, how):
    code, out, err = scale("validate", table, *how)
    assert (code, err) == (0, "")
    assert ("left out of a fit" in out) is bool(how)
    for said in ("peak memory, by row", "tokens per second", "torchtitan: memory", "megatron-core: memory"):
        assert said in out
    assert "of 3 runs that ran would be rejected" in out
    assert "skipped 1 rows" in out
    assert "quantised frozen weights are not modelled" in out


def test_without_a_skipped_row_and_without_a_speed_it_prints_as_well(scale, tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(tokens_per_s_per_gpu="", fits=""))
    code, out, _ = scale("validate", path)
    assert code == 0
    assert "verdicts: 0 of 0 runs that ran would be rejected" in out


@pytest.mark.parametrize("how", [(), ("--calibrated",)])
def test_json_is_one_object_with_the_promised_keys(scale, table, how):
    code, out, err = scale("validate", table, "--json", *how)
    assert (code, err) == (0, "")
    found = json.loads(out)  # refuses anything after the object
    assert found["calibrated"] is bool(how)
    assert (found["memory"]["rows"], found["memory"]["skipped"]) == (3, 1)
    for kind in ("by_row", "by_configuration", "by_configuration_5gib"):
        assert {"median", "p90", "worst"} <= set(found["memory"][kind])
    assert set(found["fits"]) == {"rows", "ran", "wrong_rejections", "missed_oom"}
    assert found["throughput"]["rows"] == 3


def test_stack_names_the_profile_of_ids_without_one(scale, tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(id="mine-1"))
    assert scale("validate", path)[0] == 2
    code, out, _ = scale("validate", path, "--stack", "torchtune", "--json")
    assert code == 0
    assert set(json.loads(out)["stacks"]) == {"torchtune"}


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_table_without_a_usable_row_is_exit_2_with_the_reasons(scale, tmp_path, as_json):
    path = write_runs(tmp_path / "runs.csv", row(layers=""), row(notes="QLoRA"))
    code, out, err = scale("validate", path, *as_json)
    assert (code, out) == (2, "")
    assert err.startswith("error: runs: no usable row")
    assert "layers is not given" in err
    assert "quantised frozen weights are not modelled" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "column 'id' is missing"),
        ("id,model\ntt-1,x\n", "column 'seq_len' is missing"),
        (b"\xff\xfe\x00", "runs: "),
    ],
)
def test_a_file_that_is_no_such_table_is_exit_2_and_says_why(scale, tmp_path, content, said):
    path = tmp_path / "runs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = scale("validate", path)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_an_absent_file_is_exit_2(scale, tmp_path):
    code, out, err = scale("validate", tmp_path / "nope.csv")
    assert (code, out) == (2, "")
    assert err.startswith("error: runs: ")
    assert "does not exist" in err


def test_an_unknown_stack_is_exit_2_with_the_closest(scale, table):
    code, out, err = scale("validate", table, "--stack", "megatron-cor")
    assert (code, out) == (2, "")
    assert err.startswith("error: stack: 'megatron-cor'")
    assert "hint: did you mean 'megatron-core'?" in err


@needs_published
def test_the_published_table_is_scored_row_by_row(scale):
    code, out, _ = scale("validate", PUBLISHED, "--json")
    found = json.loads(out)
    assert code == 0
    # 593 rows, the published table's README.
    assert len(found["rows"]) + len(found["skipped"]) == 593
