"""`scale memory`: the estimate of one strategy, as asked."""

import json

import pytest


def test_the_json_repeats_the_strategy_that_was_asked_for(scale):
    code, out, _ = scale(
        "memory", "--params", "13B", "--gpu", "a100-80gb", "--gpus", "8", "--zero-stage", "1",
        "--tensor-parallel-size", "4", "--pipeline-parallel-size", "2", "--micro-batch-size", "2",
        "--gradient-accumulation-steps", "8", "--json",
    )  # fmt: skip
    answer = json.loads(out)
    assert code == 0
    assert answer["fits"]
    assert answer["strategy"]["tensor_parallel_size"] == 4
    assert answer["strategy"]["data_parallel_size"] == 1
    assert answer["memory"]["peak_allocated_bytes"] > 0


def test_tensor_parallelism_lowers_the_estimate_and_more_than_a_gpu_holds_is_exit_1(scale):
    wide = [
        "memory",
        "--params",
        "6.7B",
        "--gpu",
        "a100-40gb",
        "--gpus",
        "8",
        "--zero-stage",
        "0",
        "--precision",
        "bf16",
        "--json",
    ]
    code, out, _ = scale(*wide)
    assert code == 1
    assert not json.loads(out)["fits"]
    _, cut, _ = scale(*wide, "--tensor-parallel-size", "8")
    assert json.loads(cut)["memory"]["peak_allocated_bytes"] < json.loads(out)["memory"]["peak_allocated_bytes"] / 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tensor-parallel-size", "3"], "3 does not divide the 8 ranks"),
        (["--gpus", "64", "--gpu", "h100", "--tensor-parallel-size", "64"], "not divide the key-value heads 16"),
        (["--expert-parallel-size", "8"], "8 does not divide the experts 1 of gpt3-1.3b"),
        (["--expert-parallel-size", "3"], "3 does not divide the 8 ranks"),
        (["--pipeline-parallel-size", "32", "--gpus", "32"], "32 exceeds the 24 layers of gpt3-1.3b"),
        (["--activation-checkpointing", "fll"], "did you mean 'full'"),
        (["--precision", "int8"], "precision"),
        (["--profile", "absent.json"], "profile: 'absent.json' does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_exit_2_with_one_error(scale, words, said):
    code, out, err = scale("memory", "--params", "1.3B", *words)
    assert code == 2
    assert said in err
    assert out == ""


def test_offload_moves_what_it_names(scale):
    asked = ["memory", "--params", "13B", "--gpus", "8", "--gpu", "a100-80gb", "--zero-stage", "3", "--json"]
    found = {}
    for place in ("none", "cpu", "nvme"):
        nvme = ["--nvme-path", "/mnt/nvme", "--nvme-gib", "2000"] if place == "nvme" else []
        _, out, _ = scale(*asked, "--offload-optimizer", place, "--offload-param", place, *nvme)
        found[place] = json.loads(out)["memory"]
    assert (
        found["none"]["parameters_bytes"] > found["cpu"]["parameters_bytes"] == found["nvme"]["parameters_bytes"] == 0
    )
    assert found["none"]["nvme_bytes_per_node"] == found["cpu"]["nvme_bytes_per_node"] == 0
    assert found["nvme"]["nvme_bytes_per_node"] == pytest.approx(18 * 12.85e9, rel=0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--offload-optimizer", "disk"], "offload_optimizer"),
        (["--zero-stage", "2", "--offload-param", "cpu"], "at stage 3 only"),
        (["--zero-stage", "2", "--offload-optimizer", "nvme"], "silently to the CPU"),
        (["--zero-stage", "0", "--offload-optimizer", "cpu"], "ignores it"),
        (["--zero-stage", "3", "--offload-optimizer", "nvme"], "--nvme-path"),
    ],
)
def test_an_offload_that_deepspeed_would_not_do_is_exit_2(scale, words, said):
    code, out, err = scale("memory", "--params", "1.3B", *words)
    assert (code, out) == (2, "")
    assert said in err
