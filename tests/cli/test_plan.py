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
    "optimizer lion": (["--params", "1.3B", "--optimizer", "lion"], "optimizer"),
    "top -1": (["--params", "1.3B", "--top", "-1"], "top"),
    "recipe absent": (["--recipe", "nope.yaml"], "recipe"),
    "recipe a folder": (["--recipe", ROOT], "recipe"),
    "recipe with a glob for a name": (["--recipe", "nope.**"], "recipe"),
    "recipe binary": (["--recipe", sys.executable], "recipe"),
    "hostfile absent": (["--params", "1.3B", "--hostfile", "nope"], "hostfile"),
    "out below /proc": (["--params", "1.3B", *EIGHT_A100, "--out", "/proc/scale/x"], "out"),
    "out below a file": (["--params", "1.3B", *EIGHT_A100, "--out", DEMO / "x"], "out"),
    "out a file": (["--params", "1.3B", *EIGHT_A100, "--out", DEMO], "out"),
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
    assert set(found) >= {"cluster", "fits", "alternatives", "rejected", "ds_config", "launch"}
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


def test_explain_says_why_each_other_strategy_lost(scale):
    _, brief, _ = scale("plan", "--params", "1.3B", *EIGHT_A100)
    _, long, _ = scale("plan", "--params", "1.3B", *EIGHT_A100, "--explain")
    assert "extra optimizer step" in long
    assert "extra optimizer step" not in brief


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
