"""`scale plan` as a person and as a program meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "gpt_demo.yaml"
EIGHT_A100 = ["--gpus", "8", "--gpu", "a100-80gb"]


def _written():
    return sorted(str(path) for path in Path().rglob("*"))


def _recipe(tmp_path, old, new):
    path = tmp_path / "recipe.yaml"
    text = DEMO.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


_BAD = {
    "params banana": (["--params", "banana"], "params"),
    "params -1": (["--params", "-1"], "params"),
    "params 0": (["--params", "0"], "params"),
    "params empty": (["--params", ""], "params"),
    "params a fraction": (["--params", "1.5"], "params"),
    "params beyond reason": (["--params", "1e400"], "params"),
    "params too small": (["--params", "1000"], "params"),
    "params and model": (["--params", "1.3B", "--model", "gpt2"], "params"),
    "params and recipe": (["--params", "1.3B", "--recipe", DEMO], "params"),
    "model and recipe": (["--model", "gpt2", "--recipe", DEMO], "model"),
    "nothing": ([], "params"),
    "unknown model": (["--model", "gpt5"], "model"),
    "unknown GPU": (["--params", "1.3B", "--gpu", "a1000"], "gpu"),
    "no GPUs": (["--params", "1.3B", "--gpus", "0"], "gpus"),
    "gpus no number": (["--params", "1.3B", "--gpus", "many"], "gpus"),
    "gpus of a node and a half": (["--params", "1.3B", "--gpu", "a100-80gb", "--gpus", "12"], "gpus"),
    "no nodes": (["--params", "1.3B", "--nodes", "0"], "nodes"),
    "batch that does not divide": (
        ["--params", "1.3B", *EIGHT_A100, "--global-batch-size", "100"],
        "global_batch_size",
    ),
    "batch 0": (["--params", "1.3B", *EIGHT_A100, "--global-batch-size", "0"], "global_batch_size"),
    "batch -8": (["--params", "1.3B", *EIGHT_A100, "--global-batch-size", "-8"], "global_batch_size"),
    "batch 1e3": (["--params", "1.3B", *EIGHT_A100, "--global-batch-size", "1e3"], "global-batch-size"),
    "recipe's batch 0": (["--recipe", DEMO, *EIGHT_A100, "--global-batch-size", "0"], "global_batch_size"),
    "sequence 0": (["--params", "1.3B", "--seq-length", "0"], "seq-length"),
    "sequence beyond the context": (["--params", "1.3B", "--seq-length", "4096"], "seq_length"),
    "tokens banana": (["--params", "1.3B", "--tokens", "banana"], "tokens"),
    "recipe's tokens banana": (["--recipe", DEMO, "--tokens", "banana"], "tokens"),
    "precision int8": (["--params", "1.3B", "--precision", "int8"], "precision"),
    "bf16 on V100": (["--params", "125M", "--gpu", "v100-32gb", "--precision", "bf16"], "precision"),
    "optimizer soap": (["--params", "1.3B", "--optimizer", "soap"], "optimizer"),
    "optimizer muon": (["--params", "1.3B", "--optimizer", "muon"], "optimizer"),
    "adafactor in bf16": (["--params", "125M", "--optimizer", "adafactor", "--precision", "bf16"], "precision"),
    "top -1": (["--params", "1.3B", "--top", "-1"], "top"),
    "recipe absent": (["--recipe", "nope.yaml"], "recipe"),
    "recipe a folder": (["--recipe", ROOT], "recipe"),
    "recipe with a glob for a name": (["--recipe", "nope.**"], "recipe"),
    "recipe binary": (["--recipe", sys.executable], "recipe"),
    "hostfile absent": (["--params", "1.3B", "--hostfile", "nope"], "hostfile"),
    "out below /proc": (["--params", "1.3B", *EIGHT_A100, "--out", "/proc/scale/x"], "out"),
    "out below a file": (["--params", "1.3B", *EIGHT_A100, "--out", DEMO / "x"], "out"),
    "out a file": (["--params", "1.3B", *EIGHT_A100, "--out", DEMO], "out"),
    "NVMe without capacity": (["--params", "1.3B", *EIGHT_A100, "--nvme-path", "/mnt/nvme"], "nvme_gib"),
    "NVMe without a path": (["--params", "1.3B", *EIGHT_A100, "--nvme-gib", "1000"], "nvme_path"),
    "NVMe at a relative path": (
        ["--params", "1.3B", *EIGHT_A100, "--nvme-path", "nvme", "--nvme-gib", "1000"],
        "nvme_path",
    ),
    "NVMe of no speed": (
        ["--params", "1.3B", *EIGHT_A100, "--nvme-path", "/n", "--nvme-gib", "1000", "--nvme-gb-per-s", "0"],
        "nvme_gb_per_s",
    ),
    "NVMe for a CPU": (["--recipe", DEMO, "--gpu", "cpu", "--nvme-path", "/n", "--nvme-gib", "9"], "nvme_path"),
    "NVMe pinned without one": (["--params", "1.3B", *EIGHT_A100, "--pin", "offload_param=nvme"], "pin"),
    "parameters offloaded below stage 3": (
        ["--params", "1.3B", *EIGHT_A100, "--pin", "zero_stage=2,offload_param=cpu"],
        "pin",
    ),
    "host memory of a byte": (["--params", "1.3B", *EIGHT_A100, "--host-gib", "1e-9"], "host_gib"),
    "host memory without end": (["--params", "1.3B", *EIGHT_A100, "--host-gib", "inf"], "host_gib"),
    "NVMe of a byte": (
        ["--params", "1.3B", *EIGHT_A100, "--nvme-path", "/n", "--nvme-gib", "1e-9"],
        "nvme_gib",
    ),
    "no host memory": (["--params", "1.3B", *EIGHT_A100, "--host-gib", "0"], "host_gib"),
    "host memory of a CPU": (["--recipe", DEMO, "--gpu", "cpu", "--host-gib", "64"], "host_gib"),
    "price 0": (["--params", "1.3B", *EIGHT_A100, "--price", "0"], "price"),
    "price nan": (["--params", "1.3B", *EIGHT_A100, "--price", "nan"], "price"),
    "price free": (["--params", "1.3B", *EIGHT_A100, "--price", "free"], "price"),
    "cheapest and fewest": (["--params", "1.3B", *EIGHT_A100, "--objective", "cost", "--min-gpus"], "objective"),
    "cheapest and largest": (["--gpu", "t4", "--objective", "cost", "--max-model"], "objective"),
    "largest of a given size": (["--params", "1.3B", *EIGHT_A100, "--max-model"], "max_model"),
    "elastic of one number": (["--params", "1.3B", *EIGHT_A100, "--elastic", "4"], "elastic"),
    "elastic downwards": (["--params", "1.3B", *EIGHT_A100, "--elastic", "8-4"], "elastic"),
    "elastic from none": (["--params", "1.3B", *EIGHT_A100, "--elastic", "0-4"], "elastic"),
    "elastic in words": (["--params", "1.3B", *EIGHT_A100, "--elastic", "four-eight"], "elastic"),
    "elastic beyond the cluster": (["--params", "1.3B", *EIGHT_A100, "--elastic", "4-16"], "elastic"),
    "elastic between nodes": (["--params", "1.3B", *EIGHT_A100, "--nodes", "2", "--elastic", "9-15"], "elastic"),
    "elastic without a near batch": (
        ["--params", "1.3B", *EIGHT_A100, "--elastic", "4-8", "--global-batch-size", "8"],
        "elastic",
    ),
    "elastic against a recipe": (["--recipe", DEMO, *EIGHT_A100, "--elastic", "2-3"], "global_batch_size"),
    "elastic and cheapest": (["--params", "1.3B", *EIGHT_A100, "--elastic", "4-8", "--objective", "cost"], "elastic"),
    "elastic on a CPU": (["--recipe", DEMO, "--gpu", "cpu", "--elastic", "1-2"], "elastic"),
    "for nobody known": (["--params", "1.3B", *EIGHT_A100, "--for", "lightning"], "--for"),
    "chunked loss for a script": (
        ["--params", "1.3B", *EIGHT_A100, "--for", "trainer", "--pin", "loss_kernel=chunked"],
        "loss_kernel=chunked",
    ),
    "unknown flag": (["--params", "1.3B", "--pramas", "3"], "--pramas"),
}


@pytest.mark.usefixtures("without_gpus")
@pytest.mark.parametrize("as_json", [False, True], ids=["for people", "as JSON"])
@pytest.mark.parametrize(("arguments", "field"), _BAD.values(), ids=list(_BAD))
def test_bad_input_is_exit_2_with_an_error_that_names_the_field_and_nothing_is_written(
    scale, arguments, field, as_json
):
    code, out, err = scale("plan", *arguments, *(["--json"] if as_json else []))
    assert code == 2
    assert out == ""
    assert field in err
    assert "rror" in err.splitlines()[0] or "Usage" in err
    assert "Traceback" not in err
    assert _written() == []


@pytest.mark.usefixtures("without_gpus")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 1234", "sead: 1234", "sead: unknown key; did you mean 'seed'"),
        ("seed: 1234", "seed: 1234\nstrategy: zero2", "strategy: unknown key"),
        ("seq_length: 128", "seq_lenght: 128", "data.seq_lenght: unknown key; did you mean 'seq_length'"),
        ("global_batch_size: 32 ", 'global_batch_size: "32" ', "global_batch_size: '32' is wrong"),
        ("global_batch_size: 32 ", "global_batch_size: 30 ", "global_batch_size: 30 is not a multiple of the 8"),
        ("model: gpt-demo ", "model: gpt-dmeo ", "'gpt-dmeo' is not a known model"),
        ("precision: bf16", "precision: [", "not valid YAML"),
        ("seed: 1234", "seed: !!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
    ],
)
def test_a_recipe_that_is_wrong_is_exit_2_with_the_key_and_nothing_is_written(scale, tmp_path, old, new, said):
    code, out, err = scale("plan", "--recipe", _recipe(tmp_path, old, new), *EIGHT_A100)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert _written() == []


@pytest.mark.parametrize("name", ["x[/b]", "[red]x", "x[", ":smile:"])
def test_names_with_the_markup_of_rich_are_printed_as_they_are(scale, tmp_path, name):
    keys = "family: gpt2, num_layers: 1, hidden_size: 64, num_attention_heads: 2, intermediate_size: 64"
    model = f'{{name: "{name}", {keys}, vocab_size: 10, max_position_embeddings: 128}}'
    path = _recipe(tmp_path, "model: gpt-demo ", f"model: {model} ")
    code, out, _ = scale("plan", "--recipe", path, *EIGHT_A100, "--out", tmp_path / name)
    assert code == 0
    assert f"{name}: 1 layers x 64" in out
    assert f"/{name}/ds_config.json" in out
    assert (tmp_path / name / "ds_config.json").is_file()


def test_json_is_one_object_with_every_field_and_writes_nothing(scale):
    code, out, err = scale("plan", "--params", "1.3B", *EIGHT_A100, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert _written() == []
    assert set(found["model"]) >= {"name", "num_params"}
    assert set(found["strategy"]) >= {
        "zero_stage", "offload_optimizer", "offload_param", "tensor_parallel_size", "pipeline_parallel_size",
        "sequence_parallel_size", "expert_parallel_size", "micro_batch_size", "gradient_accumulation_steps",
        "activation_checkpointing",
    }  # fmt: skip
    assert set(found["memory"]) >= {
        "parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes", "logits_bytes", "buffers_bytes",
        "context_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "capacity_bytes", "host_bytes_per_node",
    }  # fmt: skip
    assert set(found["time"]) >= {"step_s", "tokens_per_second", "mfu_fraction", "train_days"}
    assert set(found) >= {"cluster", "fits", "alternatives", "pareto", "rejected", "ds_config", "launch"}
    assert found["model"]["name"] == "gpt3-1.3b"
    assert found["fits"] is True
    assert all({"strategy", "memory", "time"} <= set(other) for other in found["alternatives"])
    assert all(set(rejection) == {"strategy", "reason"} for rejection in found["rejected"])
    strategy = found["strategy"]
    assert strategy["micro_batch_size"] * strategy["gradient_accumulation_steps"] * 8 == 512
    assert found["ds_config"]["train_micro_batch_size_per_gpu"] == strategy["micro_batch_size"]
    assert found["launch"].startswith("deepspeed ")


def test_json_with_out_prints_the_same_document_that_it_writes(scale, tmp_path):
    code, out, _ = scale("plan", "--model", "gpt2", *EIGHT_A100, "--json", "--out", tmp_path / "p")
    assert code == 0
    assert json.loads((tmp_path / "p" / "plan.json").read_text()) == json.loads(out)


@pytest.mark.usefixtures("without_gpus")
def test_the_answer_names_its_choice_its_assumptions_and_what_it_wrote(scale):
    code, out, err = scale("plan", "--params", "1.3B")
    assert (code, err) == (0, "")
    folder = "plans/gpt3-1.3b-1x8-a100-80gb"
    assert _written() == sorted(
        ["plans", folder, *(f"{folder}/{name}" for name in ("ds_config.json", "plan.json", "recipe.yaml"))]
    )
    written = json.loads(Path(folder, "plan.json").read_text())
    for words in (
        "24 layers x 2048", "arXiv 2005.14165", "none found here", "global batch 512 = ", "tokens/s", "MFU",
        "seq_length: 2048", "precision: bf16", folder, written["launch"],
        f"ZeRO-{written['strategy']['zero_stage']}",
    ):  # fmt: skip
        assert words in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("runner", "file", "launch"),
    [
        ("accelerate", "accelerate.yaml", "accelerate launch --config_file p/accelerate.yaml your_script.py"),
        ("trainer", "training_arguments.json", "deepspeed --num_gpus 8 your_script.py"),
    ],
)
def test_a_plan_for_a_script_has_its_file_its_command_and_what_the_script_must_do(scale, runner, file, launch):
    asked = ["plan", "--params", "1.3B", *EIGHT_A100, "--for", runner, "--out", "p"]
    code, out, err = scale(*asked)
    assert (code, err) == (0, "")
    assert _written() == sorted(["p", *(f"p/{name}" for name in ("ds_config.json", file, "plan.json", "recipe.yaml"))])
    document = json.loads(Path("p/plan.json").read_text())
    assert document["launch"] == launch
    assert document["notes"]
    for words in (launch, *document["notes"], f"p/ds_config.json, {file}, plan.json, recipe.yaml", "no chunked loss"):
        assert words in out


def test_a_plan_for_a_script_fits_without_the_chunked_loss_that_only_our_loop_has(scale):
    asked = ["plan", "--params", "1.3B", "--gpu", "h100", "--gpus", "8", "--json"]
    kernels = {
        runner: json.loads(scale(*asked, "--for", runner)[1])["strategy"]["loss_kernel"]
        for runner in ("scale", "accelerate", "trainer")
    }
    assert kernels == {"scale": "chunked", "accelerate": "full", "trainer": "full"}


def test_a_plan_for_a_script_splits_no_model(scale):
    asked = ["plan", "--model", "llama-2-7b", *EIGHT_A100]
    assert json.loads(scale(*asked, "--json")[1])["strategy"]["pipeline_parallel_size"] > 1
    for runner in ("accelerate", "trainer"):
        code, out, _ = scale(*asked, "--for", runner, "--json")
        strategy = json.loads(out)["strategy"]
        sizes = {strategy[f"{kind}_parallel_size"] for kind in ("tensor", "pipeline", "sequence", "expert")}
        assert (code, sizes, strategy["data_parallel_size"]) == (0, {1}, 8)
        assert "steering: data parallelism alone, loss_kernel=chunked forbidden" in json.loads(out)["assumptions"]
        code, _, err = scale(*asked, "--for", runner, "--global-batch-size", "12")
        assert (code, "--pin" in err) == (2, False)
        code, _, err = scale(*asked, "--for", runner, "--pin", "offload_param=cpu", "--pin", "zero_stage=2")
        assert (code, "pin: 'offload_param=cpu, zero_stage=2' cannot be" in err) == (2, True)
        code, _, err = scale(*asked, "--for", runner, "--pin", "tensor_parallel_size=2")
        assert (code, f"'tensor_parallel_size=2' is not done by {runner}" in err) == (2, True)


def test_pinned_parallelism_holds_for_every_number_of_gpus_that_is_tried(scale):
    pinned = [*EIGHT_A100, "--pin", "tensor_parallel_size=4", "--json"]
    code, out, _ = scale("plan", "--params", "1.3B", "--min-gpus", *pinned)
    assert (code, json.loads(out)["cluster"]["world_size"]) == (0, 4)
    code, out, _ = scale("plan", "--params", "1.3B", "--objective", "cost", *pinned)
    assert (code, [size["cluster"]["world_size"] for size in json.loads(out)["sizes"]]) == (0, [4, 8])
    code, out, _ = scale("plan", "--params", "1.3B", "--elastic", "3-8", *pinned)
    found = json.loads(out)["sizes"]
    assert (code, [size["cluster"]["world_size"] for size in found]) == (0, [4, 8])
    assert "elastic: 3, 5, 6, 7 GPUs left out, which the pinned sizes do not divide" in found[0]["assumptions"]
    asked = ["--params", "1.3B", "--gpu", "a100-80gb", "--gpus", "4", "--elastic", "2-4", "--global-batch-size", "6"]
    code, out, _ = scale("plan", *asked, "--pin", "tensor_parallel_size=2", "--json")
    assert (code, json.loads(out)["global_batch_size"]) == (0, 6)  # of one and of two data parallel ranks
    code, _, err = scale("plan", "--params", "1.3B", "--elastic", "5-7", *pinned)
    assert (code, "holds no number of GPUs for tensor_parallel_size=4 pinned" in err) == (2, True)
    code, out, _ = scale("plan", "--max-model", "--family", "llama", *pinned)
    assert (code, json.loads(out)["strategy"]["tensor_parallel_size"]) == (0, 4)


def test_every_size_of_an_elastic_range_is_for_the_same_script(scale):
    code, out, _ = scale("plan", "--params", "1.3B", *EIGHT_A100, "--elastic", "4-5", "--for", "trainer", "--out", "p")
    assert code == 0
    for world in (4, 5):
        arguments = json.loads(Path(f"p/{world}_gpus/training_arguments.json").read_text())
        assert arguments["deepspeed"] == f"p/{world}_gpus/ds_config.json"
        assert f"open('p/{world}_gpus/training_arguments.json')" in out


def test_a_price_turns_gpu_hours_into_cost_and_without_one_gpu_hours_still_stand(scale):
    asked = ["plan", "--params", "1.3B", *EIGHT_A100, "--tokens", "26B", "--out", "p"]
    _, unpriced, _ = scale(*asked)
    assert "GPU-hours\n" in unpriced
    _, text, _ = scale(*asked, "--price", "2.5")
    _, out, _ = scale(*asked, "--price", "2.5", "--json")
    found = json.loads(out)
    assert found["gpu_hours"] == pytest.approx(8 * 24 * found["time"]["train_days"])
    assert found["cost"] == pytest.approx(2.5 * found["gpu_hours"])
    assert found["cluster"]["price_per_hour"] == 2.5
    assert f"{found['gpu_hours']:,.0f} GPU-hours, at 2.5 an hour {found['cost']:,.0f}" in text


def test_a_price_may_stand_in_a_hardware_file(scale, tmp_path):
    (tmp_path / "rows.yaml").write_text("a100-80gb: {price_per_hour: 1.25}\n")
    _, out, _ = scale("plan", "--params", "1.3B", *EIGHT_A100, "--hardware", tmp_path / "rows.yaml", "--json")
    found = json.loads(out)
    assert found["cost"] == pytest.approx(1.25 * found["gpu_hours"])


def test_objective_cost_chooses_a_size_and_shows_every_size(scale):
    asked = ["plan", "--params", "1.3B", "--gpu", "h100", "--gpus", "32", "--objective", "cost", "--out", "p"]
    code, text, _ = scale(*asked)
    assert code == 0
    _, out, _ = scale(*asked, "--json")
    found = json.loads(out)
    assert [size["cluster"]["world_size"] for size in found["sizes"]] == [1, 2, 4, 8, 16, 32]
    for size in found["sizes"]:
        assert f"{size['cluster']['num_nodes']} x {size['cluster']['gpus_per_node']} " in text
    assert found["gpu_hours"] <= 1.02 * min(size["gpu_hours"] for size in found["sizes"] if size["fits"])
    assert found["cost"] is None


def test_an_elastic_range_has_one_batch_and_a_plan_for_every_size(scale):
    asked = ["plan", "--params", "1.3B", *EIGHT_A100, "--elastic", "4-8"]
    code, out, err = scale(*asked, "--json")
    found = json.loads(out)
    assert (code, err, _written()) == (0, "", [])
    # The least common multiple of 4 to 8; the published 512 lies nearer to it than to nothing.
    assert found["global_batch_size"] == 840
    assert [size["cluster"]["world_size"] for size in found["sizes"]] == [4, 5, 6, 7, 8]
    for size in found["sizes"]:
        config, world = size["ds_config"], size["cluster"]["world_size"]
        assert size["batch"]["global_batch_size"] == 840
        assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * world == 840
        assert f"--num_gpus {world} " in size["launch"]
    code, text, _ = scale(*asked)
    assert code == 0
    assert "840, the nearest to 512" in text
    folders = [f"plans/gpt3-1.3b-elastic-4-8-a100-80gb/{world}_gpus" for world in range(4, 9)]
    assert sorted(str(path.parent) for path in Path().rglob("ds_config.json")) == folders
    assert all(f"{folder}/ds_config.json" in text for folder in folders)


def test_an_elastic_range_of_which_one_size_does_not_fit_is_exit_1_and_writes_nothing(scale):
    asked = ["--params", "13B", "--gpu", "a100-40gb", "--gpus", "8", "--elastic", "1-8", "--forbid", "offload"]
    code, out, _ = scale("plan", *asked)
    assert code == 1
    assert "does not fit" in out
    assert "what would do for 1 x 1 a100-40gb" in out
    assert _written() == []


def test_a_recipe_keeps_its_batch_in_an_elastic_range_that_divides_it(scale):
    code, out, _ = scale("plan", "--recipe", DEMO, *EIGHT_A100, "--elastic", "1-2", "--json")
    assert code == 0
    assert json.loads(out)["global_batch_size"] == 32


def test_an_nvme_plan_says_what_it_needs_and_spells_it_in_the_configuration(scale):
    asked = ["plan", "--params", "30B", "--gpu", "a100-40gb", "--gpus", "1", "--global-batch-size", "64"]
    asked += ["--nvme-path", "/mnt/nvme", "--nvme-gib", "2000", "--pin", "offload_optimizer=nvme", "--out", "p"]
    code, text, _ = scale(*asked)
    assert code == 0
    assert "optimizer on nvme" in text
    assert "NVMe per node" in text
    assert "libaio" in text
    assert "cannot resume" in text
    config = json.loads(Path("p/ds_config.json").read_text())
    assert config["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/mnt/nvme"
    assert config["aio"]["block_size"] == 2**20


def test_explain_says_why_each_other_strategy_lost(scale):
    _, brief, _ = scale("plan", "--params", "1.3B", *EIGHT_A100)
    _, long, _ = scale("plan", "--params", "1.3B", *EIGHT_A100, "--explain")
    assert "extra optimizer step" in long
    assert "extra optimizer step" not in brief
    assert "memory against speed" in long
    assert "memory against speed" not in brief


def test_a_recipe_and_the_flags_that_override_it(scale, tmp_path):
    code, out, _ = scale(
        "plan", "--recipe", DEMO, *EIGHT_A100, "--global-batch-size", "64", "--precision", "fp32", "--seq-length", "64",
        "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found["batch"]["global_batch_size"] == 64
    assert found["model"]["seq_length"] == 64
    assert not {"bf16", "fp16"} & set(found["ds_config"])
    assert sum("instead of the recipe's" in sentence for sentence in found["assumptions"]) == 3


def test_a_hostfile_is_the_cluster_and_part_of_the_command(scale):
    code, out, _ = scale("plan", "--params", "1.3B", "--gpu", "h100", "--hostfile", ROOT / "hostfile.example", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["cluster"]["num_nodes"], found["cluster"]["gpus_per_node"]) == (2, 8)
    assert f"--hostfile {ROOT}/hostfile.example --num_nodes 2 --num_gpus 8" in found["launch"]


@pytest.mark.parametrize("as_json", [False, True])
def test_175b_on_eight_a100_is_exit_1_with_what_would_do_and_nothing_is_written(scale, as_json):
    code, out, err = scale(
        "plan", "--params", "175B", *EIGHT_A100, "--out", "x", *(["--json"] if as_json else [])
    )  # fmt: skip
    assert (code, err) == (1, "")
    assert _written() == []
    if as_json:
        found = json.loads(out)
        assert found["fits"] is False
        assert found["remedies"]
    else:
        assert "does not fit" in out
        remedy = out.split("what would do\n")[1]
        assert "GPUs" in remedy
        assert "launch " not in out


@pytest.mark.parametrize("asked", ["250M", "999600000", "1B", "20B"])
def test_a_size_between_the_published_ones_gets_a_plan(scale, asked):
    code, out, err = scale("plan", "--params", asked, *EIGHT_A100)
    assert code in (0, 1), err
    assert "derived" in out


def _cpu_seconds(*arguments, runs=5):
    """The least user and system time that `python ARGUMENTS` took, over some runs; its output, and what -X said."""
    taken = []
    for _ in range(runs):
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        out, err = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        process.stderr.close()
        assert process.returncode == 0, err
        taken.append(usage.ru_utime + usage.ru_stime)
    return min(taken), out, err


def test_help_costs_no_more_than_two_and_a_half_times_its_libraries():
    libraries, _, _ = _cpu_seconds("-c", "import typer, rich")
    took, out, _ = _cpu_seconds("-m", "scaling.cli", "--help")
    assert "plan" in out
    assert took <= 2.5 * libraries


def test_a_plan_takes_less_than_a_second_and_loads_nothing_of_the_training_half(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    took, _, imported = _cpu_seconds(
        "-X", "importtime", "-m", "scaling.cli", "plan", "--params", "1.3B", *EIGHT_A100, runs=2
    )
    assert took < 1.0
    modules = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in imported.splitlines() if "|" in line}
    assert "scaling" in modules
    assert "yaml" in modules
    assert not modules & {"torch", "deepspeed", "transformers", "datasets", "accelerate", "tokenizers", "safetensors"}


def test_rejections_of_what_cannot_be_run_are_printed_when_asked_for(scale):
    asked = ["plan", "--params", "6.7B", *EIGHT_A100, "--out", "p"]
    _, long, _ = scale(*asked, "--explain")
    assert "scale/train.py does not run it" in long
    assert "ZeRO-0 in every form" in long
    # 18 bytes a parameter without sharding the gradients, and then what a micro batch takes.
    assert "58.9 GiB of model states + " in long
    _, out, _ = scale("plan", "--params", "175B", *EIGHT_A100)
    assert "1544.8 GiB of model states > 73.6 GiB usable of 80.0 GiB" in out
    assert "scale/train.py does not run it" not in out


def test_elastic_explains_each_size(scale):
    asked = ["plan", "--params", "1.3B", *EIGHT_A100, "--elastic", "4-8", "--out", "p"]
    _, long, _ = scale(*asked, "--explain")
    assert all(f"rejected on 1 x {gpus} a100-80gb" in long for gpus in range(4, 9))
    _, brief, _ = scale(*asked)
    assert "rejected" not in brief


@pytest.fixture
def uneven(tmp_path):
    path = tmp_path / "uneven"
    path.write_text("small slots=4\nlarge slots=8\nlarger slots=8\n")
    return path


def test_hosts_of_different_sizes_are_refused_with_what_their_smallest_would_do(scale, uneven):
    code, out, err = scale("plan", "--params", "1.3B", "--gpu", "h100", "--hostfile", uneven)
    assert (code, out) == (2, "")
    assert "slots [4, 8]" in err
    assert "--gpus 4" in err
    code, _, err = scale("plan", "--params", "1.3B", "--gpu", "h100", "--hostfile", uneven, "--gpus", "8")
    assert code == 2
    assert "on its smallest host" in err


def test_as_many_slots_of_each_host_as_the_smallest_has_are_planned_for_and_said(scale, uneven):
    asked = ["plan", "--params", "1.3B", "--gpu", "h100", "--hostfile", uneven, "--gpus", "4", "--json"]
    code, out, _ = scale(*asked, "--global-batch-size", "480")
    found = json.loads(out)
    assert code == 0
    assert (found["cluster"]["num_nodes"], found["cluster"]["gpus_per_node"]) == (3, 4)
    assert any("4 slots of each" in sentence and "stays idle" in sentence for sentence in found["assumptions"])
    # DeepSpeed's launcher takes the first --num_gpus slots of every host (launcher/runner.py, 0.19.8).
    assert f"--hostfile {uneven} --num_nodes 3 --num_gpus 4" in found["launch"]


def test_a_host_of_two_terabytes_holds_what_one_does_not(scale):
    asked = ["plan", "--params", "50B", *EIGHT_A100, "--pin", "zero_stage=3,offload_optimizer=cpu", "--json"]
    code, out, _ = scale(*asked)
    assert code == 1
    assert any("--host-gib" in remedy for remedy in json.loads(out)["remedies"])
    code, out, _ = scale(*asked, "--host-gib", "2048")
    assert code == 0
    assert not any("host memory" in sentence for sentence in json.loads(out)["assumptions"])


@pytest.mark.parametrize("runner", ["trainer", "accelerate"])
def test_lamb_is_not_planned_for_scripts_whose_files_cannot_name_it(runner, scale, tmp_path):
    # Their files would have said AdamW, and the script would have trained with it.
    code, out, err = scale(
        "plan", "--model", "bert-large", "--optimizer", "lamb", "--for", runner, "--out", str(tmp_path / "plan")
    )
    assert code == 2
    assert "optimizer: 'lamb'" in err
    assert "scaling.optim.Lamb" in err
    assert not out
    assert not (tmp_path / "plan").exists()
