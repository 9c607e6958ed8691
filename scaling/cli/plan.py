"""`scale plan`: which strategy, how much memory, how fast, and why not the others."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scaling.hardware import Cluster
    from scaling.plan import Plan
    from scaling.plan.steering import Steering
    from scaling.recipe import Recipe


class Runner(StrEnum):
    SCALE = "scale"
    ACCELERATE = "accelerate"
    TRAINER = "trainer"


def plan(
    params: Annotated[str | None, typer.Option(help="Parameters, such as 1.3B.")] = None,
    family: Annotated[str | None, typer.Option(help="With --params: llama, t5, ...; GPT unless given.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model: gpt2-xl (`scale models`), hf:PATH, or my_model.py:build.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs per node.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Their kind: a100-80gb, h100, ..., cpu.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes.")] = None,
    hardware_file: Annotated[
        Path | None, typer.Option("--hardware", help="A YAML file of accelerators of your own.")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Nodes and slots from a file.")] = None,
    host_gib: Annotated[float | None, typer.Option(help="Memory of a node's host, in GiB.")] = None,
    nvme_path: Annotated[
        str | None, typer.Option(help="A folder on each node's NVMe drive: states may be offloaded there.")
    ] = None,
    nvme_gib: Annotated[float | None, typer.Option(help="How much of it a node may fill, in GiB.")] = None,
    nvme_gb_per_s: Annotated[float | None, typer.Option(help="How fast a node's drives are, in GB/s.")] = None,
    seq_length: Annotated[int | None, typer.Option(min=1, help="Tokens per sample.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(help="Samples per optimizer step.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to train on, such as 26B.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, lamb, lion or adafactor; others by a recipe.")] = None,
    max_model: Annotated[bool, typer.Option("--max-model", help="Find the largest model that fits.")] = False,
    min_gpus: Annotated[bool, typer.Option("--min-gpus", help="Find the fewest GPUs that hold the model.")] = False,
    price: Annotated[
        float | None, typer.Option(help="What a GPU-hour costs, in any currency: adds the cost of the run.")
    ] = None,
    elastic: Annotated[
        str | None,
        typer.Option(help="A range of GPUs, such as 4-8: one global batch for all, and a plan for each number."),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="What counts: time, memory, or cost: the fewest GPU-hours for the whole run, on 1, 2, 4, ... GPUs of "
            "a node, then whole nodes, doubling, up to those given."
        ),
    ] = "time",
    pin: Annotated[list[str] | None, typer.Option(help="A field that must hold, such as zero_stage=2.")] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(help="What must not be: offload, nvme, checkpointing, or zero_stage=3."),
    ] = None,
    safety: Annotated[float | None, typer.Option(help="The share of a device to fill, such as 0.9.")] = None,
    profile: Annotated[Path | None, typer.Option(help="A profile by `scale calibrate`.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Alternatives to list.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each other strategy lost.")] = False,
    runner: Annotated[
        Runner,
        typer.Option(
            "--for",
            help="Who trains: scale/train.py, a script of yours under `accelerate launch`, or one around transformers' "
            "Trainer. For a script --out has one file more, and what it must do is printed.",
        ),
    ] = Runner.SCALE,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for ds_config.json, plan.json and recipe.yaml. Default: plans/NAME; "
            "with --json nothing is written unless --out is given."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
) -> None:
    """How to train a model of this size, on these GPUs, at this batch.

    Exit 0: it fits. Exit 1: it does not, and what would. Nothing is written then.
    """
    from scaling import hardware
    from scaling.cli import plan_text
    from scaling.cost.profile import DEEPSPEED, load_profile
    from scaling.launch import bundle, parse_hostfile, scripts
    from scaling.plan import reverse, search, steering_of

    hosts = parse_hostfile(hostfile) if hostfile else None
    rows = hardware.known_accelerators(hardware_file) if hardware_file else None
    cluster, assumptions = hardware.cluster_of(
        gpu, gpus, nodes, hosts, str(hostfile) if hostfile else None, host_gib=host_gib, rows=rows
    )
    cluster, said = hardware.with_nvme(cluster, nvme_path, nvme_gib, nvme_gb_per_s)
    assumptions += said
    if price is not None:
        cluster = hardware.priced(cluster, price)
    steering = steering_of(objective=objective, safety=safety, pin=pin or (), forbid=forbid or ())
    steering, said = scripts.steered(steering, runner.value)
    assumptions += said
    known = load_profile(profile) if profile else DEEPSPEED
    asked = dict(
        params=params, family=family, model=model, seq_length=seq_length, global_batch_size=global_batch_size,
        tokens=tokens, precision=precision, optimizer=optimizer,
    )  # fmt: skip

    def planned(what: "Recipe", on: Any, said: list[str]) -> "Plan":
        scripts.require_optimizer(what, runner.value)
        scripts.require_fixed_course(what, runner.value)
        everything = [*assumptions, *said]
        return search(what, on, assumptions=everything, top=top, profile=known, steering=steering)

    if elastic is not None:
        _exclude("elastic", elastic, max_model=max_model, min_gpus=min_gpus, objective=steering.objective == "cost")
        parts, what, said = _elastic(elastic, recipe, cluster, steering, **asked)
        if runner == Runner.SCALE:
            said.append("elastic: a run goes on at another of these sizes, but from NVMe and experts spread at ZeRO-0")
        else:
            said.append(
                "elastic: DeepSpeed resumes a checkpoint on as many GPUs as wrote it: each size is a run of its own"
            )
        plans = [planned(what, part, said) for part in parts]
        _answer_elastic(plans, out, runner, explain=explain, as_json=as_json)
        return
    sizes: tuple[Plan, ...] = ()
    if steering.objective == "cost":
        _exclude("objective", "cost", max_model=max_model, min_gpus=min_gpus)
    if max_model:
        _exclude("max_model", True, recipe=recipe, params=params, model=model, min_gpus=min_gpus)

        def of_size(num_params: int) -> "Plan":
            what, said = _recipe(None, cluster, **{**asked, "params": str(num_params)})
            return planned(what, cluster, said)

        answer = reverse.largest_model(of_size)
    else:
        what, said = _recipe(recipe, cluster, **asked)
        if min_gpus:
            answer = reverse.fewest_gpus(what, cluster, lambda what, on: planned(what, on, said))
        elif steering.objective == "cost":
            answer, sizes = reverse.cheapest(what, cluster, lambda what, on: planned(what, on, said))
        else:
            answer = planned(what, cluster, said)
    what, cluster = answer.recipe, answer.cluster
    folder = out or _default_folder(answer, f"{cluster.num_nodes}x{cluster.gpus_per_node}")
    if answer.fits and (out or not as_json):
        bundle.write(answer, folder, runner.value)
    if as_json:
        considered = {"sizes": [bundle.summary(size) for size in sizes]} if sizes else {}
        print(json.dumps(bundle.document(answer, folder, runner.value) | considered, indent=2))
    else:
        plan_text.show(answer, folder, runner.value, sizes, explain=explain)
    if not answer.fits:
        raise typer.Exit(1)


def _answer_elastic(plans: "list[Plan]", out: Path | None, runner: Runner, *, explain: bool, as_json: bool) -> None:
    """Writes and prints one plan per size; exit 1 where one does not fit, and then nothing is written."""
    from scaling.cli import plan_text
    from scaling.launch import bundle

    worlds = [plan.cluster.world_size for plan in plans]
    above = out or _default_folder(plans[0], f"elastic-{worlds[0]}-{worlds[-1]}")
    folders = [above / f"{world}_gpus" for world in worlds]
    fits = all(plan.fits for plan in plans)
    if fits and (out or not as_json):
        for plan, folder in zip(plans, folders, strict=True):
            bundle.write(plan, folder, runner.value)
    if as_json:
        documents = [bundle.document(plan, folder, runner.value) for plan, folder in zip(plans, folders, strict=True)]
        batch = plans[0].recipe.global_batch_size
        print(json.dumps({"global_batch_size": batch, "fits": fits, "sizes": documents}, indent=2))
    else:
        plan_text.show_elastic(plans, folders, runner.value, explain=explain)
    if not fits:
        raise typer.Exit(1)


def _default_folder(plan: "Plan", size: str) -> Path:
    return Path("plans") / f"{plan.recipe.name}-{size}-{plan.cluster.accelerator.name}"


def _exclude(field: str, value: object, **others: Any) -> None:
    """Raises InputError where a flag of `others` was given beside `field`."""
    from scaling.errors import InputError

    for name, other in others.items():
        if other:
            raise InputError(
                field, value, f"and --{name.replace('_', '-')} exclude each other", hint="give one of the two"
            )


def _elastic(
    text: str, path: Path | None, cluster: "Cluster", steering: "Steering", **asked: Any
) -> "tuple[list[Cluster], Recipe, list[str]]":
    """The sizes of a range that pins divide, a recipe whose batch they all divide, and what had to be assumed.

    A batch that was asked for or published moves to the nearest that serves; one that a recipe fixes is refused.
    """
    from scaling.errors import InputError
    from scaling.plan.elastic import common_batch, sizes_of

    among = sizes_of(text, cluster)
    sizes = [size for size in among if steering.divides(size.world_size)]
    if not sizes:
        raise InputError("elastic", text, f"holds no number of GPUs for {steering}")
    recipe, said = _recipe(path, cluster, **asked)
    wanted = asked["global_batch_size"] or recipe.global_batch_size
    batch = common_batch(wanted, sizes, steering.split)
    ranks = ", ".join(str(size.world_size // steering.split) for size in sizes)
    if batch != wanted:
        problem = f"is not a multiple of each of {ranks} data parallel ranks"
        if path is not None and asked["global_batch_size"] is None:
            hint = f"nearest: {batch}; a plan does not change a recipe's loss, so ask with --global-batch-size {batch}"
            raise InputError("global_batch_size", wanted, problem, hint=hint)
        recipe, said = _recipe(path, cluster, **{**asked, "global_batch_size": batch})
        said.append(f"global_batch_size: {batch}, the nearest to {wanted}, which {problem}")
    if left_out := [str(size.world_size) for size in among if size not in sizes]:
        said.append(f"elastic: {', '.join(left_out)} GPUs left out, which the pinned sizes do not divide")
    return sizes, recipe, said


def _recipe(path: Path | None, cluster: Any, **asked: Any) -> "tuple[Recipe, list[str]]":
    """The recipe that the flags mean, and what had to be assumed."""
    from scaling import recipe
    from scaling.errors import InputError
    from scaling.plan import request

    if path is None:
        asked["optimizer"] = asked["optimizer"] or "adamw"
        return request.recipe_for(cluster, **asked)
    for name in ("params", "family", "model"):
        if (value := asked.pop(name)) is not None:
            raise InputError(name, value, "and --recipe exclude each other", hint="the recipe names the model")
    return request.overridden(recipe.load(path), **asked)
