"""`scale calibrate`, and `scale plan --profile` with what it wrote."""

import json
import os
from pathlib import Path

import pytest

from scaling.cost.profile import load_profile
from tests.cost.test_profile import BROKEN
from tests.validate import MEGATRON, row, write_runs

_PLAN = ["plan", "--model", "gpt3-1.3b", "--gpus", "8", "--gpu", "a100-80gb", "--json"]
# One strategy whatever the profile says, so that two estimates are of the same thing.
_PINNED = ["--pin", "zero_stage=2", "--pin", "micro_batch_size=4", "--pin", "activation_checkpointing=none"]


def _written():
    return sorted(str(path) for path in Path().rglob("*"))


# A run of ours that took far more than the estimate: gpt3-1.3b on eight GPUs, ZeRO-2, micro batch 4.
_MINE = {
    **MEGATRON, "id": "mine-1", "model": "gpt3-1.3b", "layers": "24", "hidden": "2048", "heads": "16", "ffn": "8192",
    "vocab": "50257", "seq_len": "2048", "sharding": "zero2", "micro_batch": "4", "grad_accum": "16",
    "measured_peak_gib": "60", "gpus": "8", "gpu_type": "A100-80GB", "gpu_mem_gib": "80",
}  # fmt: skip


def _planned(scale, *more):
    code, out, err = scale(*_PLAN, *_PINNED, *more)
    assert code == 0, err
    return json.loads(out)


def _peak(document):
    """The allocated peak in a plan's JSON, wherever it stands."""
    if isinstance(document, dict):
        if "peak_allocated_bytes" in document:
            return document["peak_allocated_bytes"]
        document = list(document.values())
    if isinstance(document, list):
        return next((found for part in document if (found := _peak(part)) is not None), None)
    return None


def test_one_row_makes_a_profile_that_plan_accepts_and_that_moves_the_estimate_towards_the_row(scale, tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(**_MINE))
    code, out, err = scale("calibrate", path, "--out", "mine.json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(Path("mine.json").read_text())
    assert _written() == ["mine.json"]
    found = json.loads(out)
    assert (found["stack"], found["memory"]["rows"], found["speed"]["rows"]) == ("deepspeed", 1, 1)
    assert found["memory"]["worst_error_after"] < found["memory"]["worst_error_before"]
    assert found["speed"]["worst_error_after"] == pytest.approx(0, abs=1e-9)  # one row, one pace

    before, after = _peak(_planned(scale)), _peak(_planned(scale, "--profile", "mine.json"))
    assert before < after < 1.05 * 60 * 2**30


def test_a_speed_without_a_peak_sets_the_pace_and_nothing_else(scale, tmp_path):
    slow = {**_MINE, "measured_peak_gib": "", "tokens_per_s_per_gpu": "1000"}
    code, out, err = scale("calibrate", write_runs(tmp_path / "runs.csv", row(**slow)), "--out", "mine.json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (set(found), set(found["coefficients"])) == ({"stack", "coefficients", "speed"}, {"time_scale"})
    before, after = _planned(scale), _planned(scale, "--profile", "mine.json")
    assert _peak(after) == _peak(before)


def test_the_profile_is_that_of_the_stack_that_was_named(scale, tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(**_MINE))
    code, out, _ = scale("calibrate", path, "--out", "sub/folder/mine.json", "--stack", "deepspeed-defaults")
    assert code == 0
    assert json.loads(out)["stack"] == "deepspeed-defaults"
    assert load_profile("sub/folder/mine.json").name == "deepspeed-defaults"


def test_an_older_profile_is_replaced(scale, tmp_path):
    path = write_runs(tmp_path / "runs.csv", row(**_MINE))
    Path("mine.json").write_text("old")
    assert scale("calibrate", path, "--out", "mine.json")[0] == 0
    assert json.loads(Path("mine.json").read_text())["memory"]["rows"] == 1
    assert _written() == ["mine.json"]


_WRONG = {
    "no usable row": ([row(**{**_MINE, "layers": ""})], [], "layers is not given"),
    "nothing measured": (
        [row(**{**_MINE, "measured_peak_gib": "", "tokens_per_s_per_gpu": "", "fits": ""})],
        [],
        "nothing was measured",
    ),
    "neither a peak nor a speed": (
        [row(**{**_MINE, "measured_peak_gib": "", "tokens_per_s_per_gpu": ""})],
        [],
        "one stack with measured runs",
    ),
    "an unknown stack": ([row(**_MINE)], ["--stack", "deepsped"], "did you mean 'deepspeed'"),
    "two stacks": ([row(**_MINE), row(id="tt-1")], [], "one stack"),
}


@pytest.mark.parametrize(("rows", "options", "said"), _WRONG.values(), ids=list(_WRONG))
def test_what_cannot_be_fitted_is_exit_2_and_nothing_is_written(scale, tmp_path, rows, options, said):
    path = write_runs(tmp_path / "runs.csv", *rows)
    code, out, err = scale("calibrate", path, "--out", "mine.json", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert _written() == []


@pytest.mark.parametrize("content", ["", "id\n1\n", None])
def test_a_file_that_is_no_table_is_exit_2_and_nothing_is_written(scale, tmp_path, content):
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_text(content)
    code, out, err = scale("calibrate", path, "--out", "mine.json")
    assert (code, out) == (2, "")
    assert "runs" in err
    assert _written() == []


def test_out_is_required(scale, tmp_path):
    code, out, err = scale("calibrate", write_runs(tmp_path / "runs.csv", row(**_MINE)))
    assert (code, out) == (2, "")
    assert "--out" in err


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize("out", ["/proc/scale/mine.json", "."])
def test_an_out_that_cannot_be_written_is_exit_2_that_names_it(scale, tmp_path, out):
    code, said, err = scale("calibrate", write_runs(tmp_path / "runs.csv", row(**_MINE)), "--out", out)
    assert (code, said) == (2, "")
    assert err.startswith("error: out: ")
    assert _written() == []


@pytest.mark.parametrize("document", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_profile_is_exit_2_that_names_it_and_plans_nothing(scale, tmp_path, document):
    path = tmp_path / "broken.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    code, out, err = scale(*_PLAN, "--profile", path, "--out", "planned")
    assert (code, out) == (2, "")
    assert err.startswith("error: profile: ")
    assert "Traceback" not in err
    assert _written() == []


def test_an_absent_profile_is_exit_2_that_names_it(scale):
    code, out, err = scale(*_PLAN, "--profile", "nope.json", "--out", "planned")
    assert (code, out) == (2, "")
    assert err.startswith("error: profile: ")
    assert "does not exist" in err
    assert _written() == []
