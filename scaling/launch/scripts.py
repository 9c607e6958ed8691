"""A plan for people who keep their own scripts: what accelerate and transformers' Trainer read.

Keys and behaviour are those of accelerate 1.15 and transformers 5.23. Where one of them cannot do what the recipe
says, or leaves it to the script, `notes` says so.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from scaling import ds_config
from scaling.cost import Job, memory
from scaling.errors import InputError
from scaling.launch.command import accelerate_command, command, script_command
from scaling.optimizers import OPTIMIZERS
from scaling.plan import Plan
from scaling.plan.steering import DATA_PARALLELISM_ALONE, Steering
from scaling.recipe import AdamW, Cosine, InverseSqrt, Linear, Polynomial, Recipe, WarmupStableDecay
from scaling.units import format_bytes

Runner = Literal["scale", "accelerate", "trainer"]
_OURS = "plan for scale/train.py (--for scale), which does it"

SCRIPT = "your_script.py"
ACCELERATE, ARGUMENTS = "accelerate.yaml", "training_arguments.json"
# What stands beside the ds_config for each.
NAMES: dict[Runner, tuple[str, ...]] = {"scale": (), "accelerate": (ACCELERATE,), "trainer": (ARGUMENTS,)}
_NAMED = ", ".join(name for name, row in OPTIMIZERS.items() if row.named_in_ds_config)


def require_optimizer(recipe: Recipe, runner: Runner) -> None:
    """Refuses a recipe whose optimizer neither a ds_config nor TrainingArguments can name, for a script's runner."""
    row, name = OPTIMIZERS[recipe.optimizer.name], recipe.optimizer.name
    named = {"scale": True, "accelerate": row.named_in_ds_config, "trainer": name == "adamw"}
    if not named[runner]:
        works = "--optimizer adamw" if runner == "trainer" else f"--optimizer {_NAMED}"
        raise InputError(
            "optimizer", name, f"cannot be named in what {runner} reads",
            hint=f"{works}; or hand {row.implementation} to the script's own engine or Trainer",
        )  # fmt: skip


def steered(steering: Steering, runner: Runner) -> tuple[Steering, list[str]]:
    """The steering for what a script's runner can do, and what that leaves out.

    Raises InputError for pinned parallelism: what splits a model is scale/train.py, and no file that others read.
    """
    if runner == "scale":
        return steering, []
    for kind, size in steering.sizes.items():
        if size > 1:
            problem = f"is not done by {runner}, to which the model is whole"
            raise InputError("pin", f"{kind}_parallel_size={size}", problem, hint=_OURS)
    pins = (*(pin for pin in steering.pins if pin not in DATA_PARALLELISM_ALONE), *DATA_PARALLELISM_ALONE)
    forbidden = (*steering.forbidden, ("loss_kernel", "chunked"))
    return replace(steering, pins=pins, forbidden=forbidden), [
        f"for {runner}: no chunked loss and no parallelism beside ZeRO's, which are scale/train.py's own, so the plan "
        "fits without"
    ]


def require_fixed_course(recipe: Recipe, runner: Runner) -> None:
    """Refuses a recipe whose batch, length or rate goes a way that what `runner` reads has no words for."""
    if runner == "scale":
        return
    for field, growth in (("batch_ramp", recipe.batch_ramp), ("data.curriculum", recipe.data.curriculum)):
        if growth:
            problem = f"cannot be said in what {runner} reads, whose steps are all alike"
            raise InputError(field, f"from {growth.start}", problem, hint=_OURS)
    if runner == "trainer" and isinstance(recipe.schedule, Polynomial):
        problem = "is a schedule for which the Trainer asks ZeRO's optimizer for defaults that it does not have"
        raise InputError("schedule.name", recipe.schedule.name, problem, hint=_OURS)


def config_for(plan: Plan, runner: Runner) -> dict[str, Any]:
    """The ds_config. The Trainer makes optimizer and schedule itself, of its arguments.

    Given an optimizer block it would decay biases and norms too, and DeepSpeed's schedules lag further behind the
    recipe than the Trainer's and have no linear one that ends above zero.
    """
    config = ds_config.emit(plan.recipe, plan.strategy, plan.cluster.nvme_path)
    return ds_config.machinery(config) if runner == "trainer" else config


def files(plan: Plan, runner: Runner, folder: Path, config_path: Path) -> dict[str, str]:
    """{name: text} of NAMES, for `folder`."""
    match runner:
        case "accelerate":
            return {ACCELERATE: yaml.safe_dump(accelerate_config(plan, str(config_path)), sort_keys=False)}
        case "trainer":
            arguments = training_arguments(plan, str(config_path), str(folder))
            return {ARGUMENTS: json.dumps(arguments, indent=2) + "\n"}
    return {}


def launch_command(plan: Plan, runner: Runner, folder: Path, config_path: Path) -> str:
    match runner:
        case "accelerate":
            return accelerate_command(plan.cluster, str(folder / ACCELERATE), SCRIPT)
        case "trainer":
            return script_command(plan.cluster, SCRIPT)
    return command(plan.cluster, str(config_path), str(folder))


def accelerate_config(plan: Plan, config_path: str) -> dict[str, Any]:
    """accelerate's ClusterConfig. Precision, batch and accumulation stand in the ds_config, and there alone:
    accelerate's own fields for them are not for use beside a deepspeed_config_file."""
    cluster = plan.cluster
    deepspeed: dict[str, Any] = {
        "deepspeed_config_file": config_path,
        "zero3_init_flag": plan.strategy.zero_stage == 3,
    }
    if cluster.num_nodes > 1:
        deepspeed |= {"deepspeed_hostfile": cluster.hostfile or "hostfile", "deepspeed_multinode_launcher": "pdsh"}
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": deepspeed,
        "num_machines": cluster.num_nodes,
        "num_processes": cluster.world_size,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": cluster.is_cpu,
    }


def training_arguments(plan: Plan, config_path: str, output_dir: str) -> dict[str, Any]:
    """What TrainingArguments(**...) takes."""
    recipe, strategy, optimizer = plan.recipe, plan.strategy, plan.recipe.optimizer
    assert isinstance(optimizer, AdamW)  # by require_optimizer
    checkpointing = strategy.activation_checkpointing == "full"
    return {
        "output_dir": output_dir,
        "deepspeed": config_path,
        "per_device_train_batch_size": strategy.micro_batch_size,
        "gradient_accumulation_steps": strategy.gradient_accumulation_steps,
        "max_steps": recipe.num_steps,
        "optim": "adamw_torch_fused",  # with the optimizer offloaded accelerate puts DeepSpeed's CPU Adam in its place
        "learning_rate": optimizer.lr,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        **_schedule(recipe),
        "max_grad_norm": recipe.gradient_clipping,
        "bf16": recipe.precision == "bf16",
        "fp16": recipe.precision == "fp16",
        "gradient_checkpointing": checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
        "average_tokens_across_devices": True,
        "dataloader_drop_last": True,
        "save_strategy": "steps",
        "save_steps": recipe.checkpoint_every_steps,
        "seed": recipe.seed,
        "use_cpu": plan.cluster.is_cpu,
    }


def _schedule(recipe: Recipe) -> dict[str, Any]:
    """The recipe's schedule by the Trainer's names. A step has the rate of the recipe's step before."""
    schedule = recipe.schedule
    name, kwargs = "constant_with_warmup", {}
    match schedule:
        case Linear(min_lr_fraction=0):
            name = "linear"
        case Linear(min_lr_fraction=low) if low < 1:
            name = "warmup_stable_decay"  # "polynomial" is the recipe's, but asks ZeRO-3's optimizer for its defaults
            decay_steps = recipe.num_steps - schedule.warmup_steps
            kwargs = {"decay_type": "linear", "num_decay_steps": decay_steps, "min_lr_ratio": low}
        case Cosine(min_lr_fraction=low):
            name, kwargs = "cosine_with_min_lr", {"min_lr_rate": low}
        case InverseSqrt():
            name = "inverse_sqrt"
        case WarmupStableDecay(decay_steps=decay_steps, min_lr_fraction=low):
            name = "warmup_stable_decay"
            kwargs = {"decay_type": "1-sqrt", "num_decay_steps": decay_steps, "min_lr_ratio": low}
    return {"warmup_steps": schedule.warmup_steps, "lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs}


def _warms_up_from(recipe: Recipe) -> float:
    """The share of the peak: the Trainer's warmup_stable_decay, which is also its only linear decay to above zero for
    every stage, starts its warm-up where the decay ends."""
    match recipe.schedule:
        case Linear(min_lr_fraction=low) | WarmupStableDecay(min_lr_fraction=low) if low < 1:
            return low
    return 0.0


def notes(plan: Plan, runner: Runner, folder: Path) -> list[str]:
    """What the files of `runner` cannot say, and so what its script has to do or to know."""
    match runner:
        case "accelerate":
            return _for_accelerate(plan) + _for_any_script(plan)
        case "trainer":
            return _for_the_trainer(plan, folder) + _for_any_script(plan)
    return []


def _for_the_trainer(plan: Plan, folder: Path) -> list[str]:
    said = [f"arguments: TrainingArguments(**json.load(open({str(folder / ARGUMENTS)!r})))"]
    if plan.strategy.zero_stage == 3:
        said.append(
            "model: after the TrainingArguments, by from_pretrained or from_config, which then shard it as they build"
        )
    if plan.recipe.schedule.warmup_steps or plan.recipe.schedule.name != "constant":
        said.append("learning rate: a step has the rate of the recipe's step before, and the first that of step 0")
    if plan.recipe.schedule.warmup_steps and _warms_up_from(plan.recipe):
        floor = _warms_up_from(plan.recipe) * plan.recipe.optimizer.lr
        said.append(
            f"learning rate: its warm-up starts at {floor:g}, where the decay ends, the recipe's at 0: the Trainer's "
            "schedules have no other linear decay to above zero that works at every stage"
        )
    if plan.recipe.task == "masked-lm":
        said.append(_loss_per_micro_batch("transformers' BERT averages"))
    return said


def _for_accelerate(plan: Plan) -> list[str]:
    recipe, strategy = plan.recipe, plan.strategy
    said = [
        f"batch: DataLoader(batch_size={strategy.micro_batch_size}) and `with accelerator.accumulate(model)`, "
        f"{recipe.num_steps} optimizer steps, seed {recipe.seed}",
        "optimizer: pass accelerate.utils.DummyOptim(groups), which stands for the ds_config's; give the group of "
        "biases and norms weight_decay 0, as the recipe has it. For an optimizer of your own take the blocks "
        "`optimizer` and `scheduler` out of the ds_config",
    ]
    if "scheduler" in config_for(plan, "accelerate"):
        said.append(
            "learning rate: pass DummyScheduler(optimizer), which stands for the ds_config's; DeepSpeed's schedules "
            "run two steps behind the recipe's in warm-up and linear decay, one in cosine decay"
        )
    elif recipe.schedule.name != "constant":  # a constant rate needs no scheduler
        said.append(
            "learning rate: DeepSpeed has no words for the recipe's schedule and the ds_config has none: without "
            f"DummyScheduler(optimizer, lr_scheduler_callable=...) it stays {recipe.optimizer.lr:g}"
        )
    if strategy.zero_stage == 3:
        said.append(
            "model: after the Accelerator, by from_pretrained or from_config, which then shard it as they build; its "
            "parameters then have no shape, so choose those of a group by name"
        )
    if strategy.activation_checkpointing == "full":
        said.append(
            "activation checkpointing, which the plan needs: "
            'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})'
        )
    said.append(_loss_per_micro_batch("a script that hands labels to the model averages"))
    if plan.cluster.is_cpu:
        said.append(
            'backend: Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")]), without which accelerate '
            "takes each CPU rank for the only one and gives all of them the same samples"
        )
    return said


def _loss_per_micro_batch(who: str) -> str:
    return (
        f"loss: {who} over each micro batch, the recipe over the global batch: the same where all have as many targets"
    )


def _for_any_script(plan: Plan) -> list[str]:
    recipe = plan.recipe
    said = [
        f"model and data are the script's: {recipe.shape.name}, {recipe.data.seq_length} tokens a sample, dropout "
        f"{recipe.dropout:g} (transformers' own default for it is 0.1); so is evaluation"
    ]
    if recipe.task == "masked-lm":
        said.append(_all_logits(plan))
    if plan.strategy.uses_nvme:
        said.append("checkpoints: DeepSpeed 0.19.8 resumes wrongly from NVMe: do not resume one")
    return said


def _all_logits(plan: Plan) -> str:
    """What transformers' BERT takes, whose head works at every position; the plan is for our loop's."""
    job = Job.of(plan.recipe)
    whole = memory(replace(job, predicted_fraction=1.0), plan.strategy, plan.cluster)
    more = whole.total_bytes - memory(job, plan.strategy, plan.cluster).total_bytes
    total, usable = plan.chosen.memory.total_bytes + more, plan.chosen.memory.usable_bytes
    end = "" if total <= usable else ": more than fits, so --pin a smaller micro_batch_size"
    return (
        f"memory: transformers' BERT makes logits at every position, the plan at the {job.predicted_fraction:.0%} that "
        f"are masked: {format_bytes(total)} a process, of {format_bytes(usable)} to use{end}"
    )
