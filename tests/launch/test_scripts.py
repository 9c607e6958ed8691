"""Plans for people's own scripts, under the real accelerate and the real Trainer."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from transformers import get_scheduler

from scaling import hardware
from scaling.cost import Job, memory
from scaling.ds_config.check import Context, check
from scaling.errors import InputError
from scaling.launch import bundle, scripts
from scaling.plan import search
from scaling.plan.steering import Steering
from scaling.training.schedule import learning_rate
from scaling.units import format_bytes
from tests.launch.script_ranks import through_accelerate, through_the_trainer
from tests.ranks import on_ranks
from tests.training.runs import tiny_recipe

_STEPS = 4
_QUIET = {"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture
def tiny_plan(tmp_path):
    """A function from a stage, a schedule and other pins to a plan for two CPU ranks, 2 micro x 2 accumulation."""

    def of(
        stage, schedule="cosine", *, low=0.1, precision="bf16", checkpointing="none", warmup=2, decay_steps=0, **changes
    ):
        fields = {"decay_steps": decay_steps} if decay_steps else {}
        if schedule not in ("constant", "inverse-sqrt"):
            fields["min_lr_fraction"] = low
        recipe = tiny_recipe(
            tmp_path, num_steps=_STEPS, precision=precision,
            schedule={"name": schedule, "warmup_steps": warmup} | fields, **changes,
        )  # fmt: skip
        pins = {"zero_stage": stage, "micro_batch_size": 2, "activation_checkpointing": checkpointing}
        cluster, _ = hardware.cluster_of("cpu", 2, 1, None, None)
        return search(recipe, cluster, steering=Steering(pins=tuple(pins.items())))

    return of


def _rate(recipe, step):
    """The recipe's; step 0, and any before, is where it starts."""
    if step <= 0:
        return 0.0 if recipe.schedule.warmup_steps else recipe.optimizer.lr
    return learning_rate(recipe, step)


def _is_the_plan(ranks, plan, optimizer_class="torch.optim.adamw.AdamW"):
    recipe, strategy = plan.recipe, plan.strategy
    optimizer = recipe.optimizer
    for found in ranks:
        assert found["distributed_type"] == "DEEPSPEED"
        assert found["world_size"] == 2
        assert found["steps"] == _STEPS
        assert found["batch"] == recipe.global_batch_size == 8
        assert (found["micro_batch"], found["accumulation"]) == (strategy.micro_batch_size, 2) == (2, 2)
        assert found["zero_stage"] == strategy.zero_stage
        assert found["sharded_when_built"] == (strategy.zero_stage == 3)
        assert found["clipping"] == recipe.gradient_clipping == 0.5
        assert found["precision"] == ("no" if recipe.precision == "fp32" else recipe.precision)
        assert found["optimizer"] == optimizer_class
        same = {"betas": tuple(optimizer.betas), "eps": optimizer.eps, "fused": True}
        groups = [{**group, "betas": tuple(group["betas"])} for group in found["groups"]]
        assert groups == [{**same, "weight_decay": optimizer.weight_decay}, {**same, "weight_decay": 0.0}]
        assert all(4 < loss < 7 for loss in found["losses"])  # about ln 384 = 5.95
    # Every sample once, and as many as the steps have.
    samples = [number for found in ranks for number in found["samples"]]
    assert len(samples) == len(set(samples)) == _STEPS * recipe.global_batch_size


@pytest.mark.parametrize(
    ("stage", "schedule", "options"),
    [
        (1, "cosine", {}),
        (0, "constant", {"precision": "fp32"}),
        (2, "constant", {"precision": "fp32"}),
        (3, "linear", {"checkpointing": "full", "low": 0.1, "warmup": 0}),
        (2, "inverse-sqrt", {}),
        (1, "warmup-stable-decay", {"low": 0.0, "decay_steps": 2}),
    ],
)
def test_the_trainer_trains_the_plan_by_its_arguments(tiny_plan, tmp_path, stage, schedule, options):
    plan = tiny_plan(stage, schedule, **options)
    bundle.write(plan, tmp_path / "p", "trainer")
    ranks = on_ranks(2, through_the_trainer, str(tmp_path / "p" / "training_arguments.json"), plan.recipe, _QUIET)
    _is_the_plan(ranks, plan)
    for found in ranks:
        assert found["rates"] == pytest.approx([_rate(plan.recipe, step) for step in range(_STEPS)])
        assert found["checkpointing"] == (plan.strategy.activation_checkpointing == "full")


@pytest.mark.skipif(not os.environ.get("SCALE_TEST_OFFLOAD"), reason="compiles for minutes: SCALE_TEST_OFFLOAD=cpu")
def test_the_trainer_trains_with_deepspeeds_cpu_adam_where_the_optimizer_is_offloaded(tiny_plan, tmp_path):
    plan = tiny_plan(2)
    strategy = replace(plan.strategy, offload_optimizer="cpu")
    plan = replace(plan, chosen=replace(plan.chosen, strategy=strategy))
    bundle.write(plan, tmp_path / "p", "trainer")
    ranks = on_ranks(2, through_the_trainer, str(tmp_path / "p" / "training_arguments.json"), plan.recipe, _QUIET)
    _is_the_plan(ranks, plan, "deepspeed.ops.adam.cpu_adam.DeepSpeedCPUAdam")


@pytest.mark.parametrize(("stage", "schedule", "low"), [(1, "cosine", 0.1), (3, "linear", 0.0)])
def test_accelerate_trains_the_plan_by_its_config(tiny_plan, tmp_path, stage, schedule, low):
    plan = tiny_plan(stage, schedule, low=low)
    bundle.write(plan, tmp_path / "p", "accelerate")
    ranks = on_ranks(2, through_accelerate, str(tmp_path / "p" / "accelerate.yaml"), plan.recipe, _STEPS, False)
    _is_the_plan(ranks, plan)
    # As the notes say: two steps behind in warm-up (of 2 steps) and linear decay, one in cosine decay.
    late = 1 if schedule == "cosine" else 2
    behind = [2, 2, 2, late]
    expected = [_rate(plan.recipe, step - lag) for step, lag in zip(range(1, _STEPS + 1), behind, strict=True)]
    for found in ranks:
        assert found["rates"] == pytest.approx(expected)


def test_accelerate_makes_any_optimizer_that_the_ds_config_names(tiny_plan, tmp_path):
    optimizer = {"name": "sgd", "lr": 0.5, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    plan = tiny_plan(2, optimizer=optimizer)
    scripts.require_optimizer(plan.recipe, "accelerate")
    bundle.write(plan, tmp_path / "p", "accelerate")
    for found in on_ranks(2, through_accelerate, str(tmp_path / "p" / "accelerate.yaml"), plan.recipe, _STEPS, False):
        assert found["optimizer"] == "torch.optim.sgd.SGD"
        assert [group["weight_decay"] for group in found["groups"]] == [0.01, 0.0]
        assert (found["zero_stage"], found["batch"]) == (2, 8)
        assert all(4 < loss < 7 for loss in found["losses"])


@pytest.mark.parametrize(("name", "runner"), [("sgd", "trainer"), ("muon", "accelerate"), ("lars", "trainer")])
def test_an_optimizer_that_a_scripts_files_cannot_name_is_refused(name, runner, tmp_path):
    fields = {
        "sgd": {"momentum": 0.9}, "lars": {"momentum": 0.9, "trust_coefficient": 0.001},
        "muon": {"momentum": 0.95, "adam_lr": 1e-3, "adam_betas": [0.9, 0.95], "adam_eps": 1e-8},
    }[name]  # fmt: skip
    optimizer = {"name": name, "lr": 0.01, "weight_decay": 0.01, **fields}
    with pytest.raises(InputError, match=f"'{name}' cannot be named in what {runner} reads"):
        scripts.require_optimizer(tiny_recipe(tmp_path, optimizer=optimizer, gradient_clipping=0.0), runner)


def test_accelerate_takes_an_optimizer_of_the_scripts_own_without_the_two_blocks(tiny_plan, tmp_path):
    plan = tiny_plan(2)
    bundle.write(plan, tmp_path / "p", "accelerate")
    ranks = on_ranks(2, through_accelerate, str(tmp_path / "p" / "accelerate.yaml"), plan.recipe, 2, True)
    for found in ranks:
        assert found["optimizer"] == "torch.optim.adamw.AdamW"
        assert found["rates"] == [0.25, 0.25]
        assert (found["batch"], found["zero_stage"]) == (8, 2)


_SCRIPT = """
import json, sys
import deepspeed.ops
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False  # else DeepSpeed compiles it
import torch
from accelerate import Accelerator
from accelerate.utils import DummyOptim, DummyScheduler, InitProcessGroupKwargs
accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
optimizer = DummyOptim(model.parameters())
data = torch.utils.data.DataLoader(torch.randn(32, 8), batch_size=2)
model, optimizer, data, _ = accelerator.prepare(model, optimizer, data, DummyScheduler(optimizer))
for batch in data:
    with accelerator.accumulate(model):
        accelerator.backward(model(batch.bfloat16()).float().pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
facts = {
    "world_size": accelerator.num_processes, "precision": accelerator.mixed_precision, "steps": model.global_steps,
    "batch": model.train_batch_size(), "zero_stage": model.zero_optimization_stage(),
}
with open(f"facts{accelerator.process_index}.json", "w") as file:
    json.dump(facts, file)
accelerator.end_training()  # ranks that exit with their process group standing abort now and then
"""


def test_the_printed_command_launches_under_accelerate(tiny_plan, tmp_path):
    plan = tiny_plan(2)
    bundle.write(plan, tmp_path / "p", "accelerate")
    line = bundle.launch_command(plan, tmp_path / "p", "accelerate")
    (tmp_path / scripts.SCRIPT).write_text(_SCRIPT)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        line, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    expected = {"world_size": 2, "precision": "bf16", "steps": 4, "batch": 8, "zero_stage": 2}
    assert [json.loads((tmp_path / f"facts{rank}.json").read_text()) for rank in (0, 1)] == [expected, expected]


def test_accelerates_own_classes_read_the_config_and_start_several_nodes_from_it(
    planned_recipe, cluster_like, tmp_path
):
    plan = search(planned_recipe(), cluster_like(nodes=2, hostfile="my hosts"))
    bundle.write(plan, tmp_path, "accelerate")
    path = str(tmp_path / "accelerate.yaml")
    config = load_config_from_file(path)
    assert isinstance(config, ClusterConfig)
    assert (config.num_machines, config.num_processes, config.distributed_type.value) == (2, 16, "DEEPSPEED")
    parsed = launch_command_parser().parse_args(["--config_file", path, "--main_process_port", "0", "train.py"])
    arguments, *_ = _validate_launch_command(parsed)
    arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    words, environment = prepare_deepspeed_cmd_env(arguments)
    assert words[:3] == ["deepspeed", "--hostfile", "my hosts"]
    assert words[words.index("--num_gpus") + 1] == "8"
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(tmp_path / "ds_config.json")


@pytest.mark.parametrize("runner", ["accelerate", "trainer"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_what_is_emitted_for_a_script_checks_clean_for_it(
    planned_recipe, cluster_like, runner, stage, precision, offload
):
    pins = (("zero_stage", stage), ("offload_optimizer", offload))
    plan = search(planned_recipe(precision=precision), cluster_like(), steering=Steering(pins=pins))
    text = json.dumps(scripts.config_for(plan, runner))
    trainer = {"accelerate": "accelerate", "trainer": "hf"}[runner]
    assert check(text, Context(world_size=8, trainer=trainer)) == []


@pytest.mark.parametrize(
    ("schedule", "low", "warmup", "name"),
    [
        ("constant", 0.0, 0, "constant_with_warmup"),
        ("constant", 0.0, 2, "constant_with_warmup"),
        ("linear", 0.0, 2, "linear"),
        ("linear", 0.0, _STEPS, "linear"),
        ("linear", 1.0, 1, "constant_with_warmup"),
        ("linear", 0.3, 0, "warmup_stable_decay"),
        ("cosine", 0.0, 0, "cosine_with_min_lr"),
        ("cosine", 0.3, 1, "cosine_with_min_lr"),
        ("cosine", 0.3, _STEPS, "cosine_with_min_lr"),
    ],
)
def test_the_trainers_schedule_is_the_recipes_one_step_later(tiny_plan, schedule, low, warmup, name):
    plan = tiny_plan(1, schedule, low=low, warmup=warmup)
    assert _trainers_rates(plan, name) == pytest.approx([_rate(plan.recipe, step) for step in range(_STEPS)])


def test_a_linear_decay_to_above_zero_warms_up_from_there_in_the_trainer_and_that_is_said(tiny_plan, tmp_path):
    plan = tiny_plan(1, "linear", low=0.1, warmup=2)
    assert _trainers_rates(plan, "warmup_stable_decay") == pytest.approx([3e-4, 1.65e-3, 3e-3, 1.65e-3])
    assert "starts at 0.0003" in "\n".join(scripts.notes(plan, "trainer", tmp_path))
    for other in (tiny_plan(1, "linear", low=0.1, warmup=0), tiny_plan(1, "linear", low=0.0)):
        assert "starts at" not in "\n".join(scripts.notes(other, "trainer", tmp_path))


def _trainers_rates(plan, name):
    """transformers' own schedule, asked for the rate of every step of the run."""
    arguments = scripts.training_arguments(plan, "c", "o")
    assert arguments["lr_scheduler_type"] == name
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=arguments["learning_rate"])
    theirs = get_scheduler(
        name, optimizer, arguments["warmup_steps"], arguments["max_steps"], arguments["lr_scheduler_kwargs"]
    )
    rates = []
    for _ in range(_STEPS):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    return rates


def test_a_script_is_told_what_its_files_cannot_say(tiny_plan, tmp_path):
    def said(plan, runner):
        return "\n".join(scripts.notes(plan, runner, tmp_path))

    plain = tiny_plan(1, dropout=0.25)
    assert scripts.notes(plain, "scale", tmp_path) == []
    assert str(tmp_path / "training_arguments.json") in said(plain, "trainer")
    for runner in ("accelerate", "trainer"):
        assert "dropout 0.25" in said(plain, runner)
        assert "step" in said(plain, runner)
        assert "model: after" not in said(plain, runner)
        assert "model: after" in said(tiny_plan(3), runner)
    assert "DummyScheduler(optimizer)," in said(plain, "accelerate")
    unspoken = said(tiny_plan(1, "linear", low=0.1), "accelerate")
    assert "no words" in unspoken
    assert "stays 0.003" in unspoken
    assert "no words" in said(tiny_plan(1, "cosine", warmup=0), "accelerate")
    assert "learning rate" not in said(tiny_plan(1, "constant", warmup=0), "accelerate")
    assert "learning rate" not in said(tiny_plan(1, "constant", warmup=0), "trainer")
    assert "gradient_checkpointing_enable" in said(tiny_plan(1, checkpointing="full"), "accelerate")
    assert "gradient_checkpointing_enable" not in said(plain, "accelerate")
    assert "by name" in said(tiny_plan(3), "accelerate")


def test_a_bert_of_transformers_own_is_priced_with_logits_at_every_position(planned_recipe, cluster_like, tmp_path):
    recipe = planned_recipe("bert-large", global_batch_size=4096)

    def note(micro_batch_size):
        alone = tuple((f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline", "sequence"))
        pins = (("micro_batch_size", micro_batch_size), *alone)
        plan = search(recipe, cluster_like(), steering=Steering(pins=pins))
        assert plan.fits
        whole = memory(replace(Job.of(recipe), predicted_fraction=1.0), plan.strategy, plan.cluster)
        (said,) = (text for text in scripts.notes(plan, "trainer", tmp_path) if text.startswith("memory"))
        assert f": {format_bytes(whole.total_bytes)} a process" in said
        return said, whole.fits

    for micro_batch_size, fits in ((256, True), (512, False)):
        said, whole_fits = note(micro_batch_size)
        assert whole_fits == fits == ("more than fits" not in said)


def test_the_files_of_each_runner_are_written_and_agree_with_the_document(tiny_plan, tmp_path):
    plan = tiny_plan(1)
    for runner, extra in (
        ("scale", set()),
        ("accelerate", {"accelerate.yaml"}),
        ("trainer", {"training_arguments.json"}),
    ):
        folder = tmp_path / runner
        bundle.write(plan, folder, runner)
        names = {path.name for path in folder.iterdir()}
        assert names == {"ds_config.json", "plan.json", "recipe.yaml"} | extra == set(bundle.names(runner))
        document = bundle.document(plan, folder, runner)
        assert json.loads((folder / "plan.json").read_text()) == document
        assert json.loads((folder / "ds_config.json").read_text()) == document["ds_config"]
        assert document["runner"] == runner
    config = yaml.safe_load((tmp_path / "accelerate" / "accelerate.yaml").read_text())
    assert config["deepspeed_config"]["deepspeed_config_file"] == str(tmp_path / "accelerate" / "ds_config.json")
    arguments = json.loads((tmp_path / "trainer" / "training_arguments.json").read_text())
    assert arguments["deepspeed"] == str(tmp_path / "trainer" / "ds_config.json")
    words = shlex.split(document["launch"])
    assert words == ["DS_ACCELERATOR=cpu", "deepspeed", "--num_gpus", "2", "your_script.py"]


@pytest.mark.parametrize(
    ("changes", "runner", "field"),
    [
        ({"batch_ramp": {"start": 4, "increment": 4, "samples": 8}}, "accelerate", "batch_ramp"),
        ({"batch_ramp": {"start": 4, "increment": 4, "samples": 8}}, "trainer", "batch_ramp"),
        ({"schedule": {"name": "polynomial", "power": 0.5, "warmup_steps": 2}}, "trainer", "schedule.name"),
    ],
)
def test_a_course_that_a_script_is_not_told_of_is_refused_for_it(changes, runner, field, tmp_path):
    recipe = tiny_recipe(tmp_path, **changes)
    scripts.require_fixed_course(recipe, "scale")
    with pytest.raises(InputError) as refused:
        scripts.require_fixed_course(recipe, runner)
    assert refused.value.field == field
