"""`scale plan`: which strategy, how much memory, how fast, and why not the others."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from scaling.cost import MemoryEstimate
    from scaling.plan import Plan
    from scaling.recipe import Recipe


def plan(
    params: Annotated[str | None, typer.Option(help="Parameters, such as 1.3B.")] = None,
    model: Annotated[str | None, typer.Option(help="A model by name, such as gpt2-xl.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs per node.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Their kind: a100-80gb, h100, ..., cpu.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes.")] = None,
    hardware_file: Annotated[
        Path | None, typer.Option("--hardware", help="A YAML file of accelerators of your own.")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="Nodes and slots from a file.")] = None,
    seq_length: Annotated[int | None, typer.Option(min=1, help="Tokens per sample.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(help="Samples per optimizer step.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to train on, such as 26B.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or lamb.")] = None,
    max_model: Annotated[bool, typer.Option("--max-model", help="Find the largest GPT that fits.")] = False,
    min_gpus: Annotated[bool, typer.Option("--min-gpus", help="Find the fewest GPUs that hold the model.")] = False,
    objective: Annotated[str, typer.Option(help="What counts: time or memory.")] = "time",
    pin: Annotated[list[str] | None, typer.Option(help="A field that must hold, such as zero_stage=2.")] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(help="What must not be: offload, checkpointing, or zero_stage=3."),
    ] = None,
    safety: Annotated[float | None, typer.Option(help="The share of a device to fill, such as 0.9.")] = None,
    profile: Annotated[Path | None, typer.Option(help="A profile by `scale calibrate`.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Alternatives to list.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each other strategy lost.")] = False,
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
    from scaling.cost.profile import DEEPSPEED, load_profile
    from scaling.launch import bundle, parse_hostfile
    from scaling.plan import reverse, search, steering_of

    hosts = parse_hostfile(hostfile) if hostfile else None
    rows = hardware.known_accelerators(hardware_file) if hardware_file else None
    cluster, assumptions = hardware.cluster_of(gpu, gpus, nodes, hosts, str(hostfile) if hostfile else None, rows=rows)
    steering = steering_of(objective=objective, safety=safety, pin=pin or (), forbid=forbid or ())
    known = load_profile(profile) if profile else DEEPSPEED
    asked = dict(
        params=params, model=model, seq_length=seq_length, global_batch_size=global_batch_size, tokens=tokens,
        precision=precision, optimizer=optimizer,
    )  # fmt: skip

    def planned(what: "Recipe", on: Any, said: list[str]) -> "Plan":
        everything = [*assumptions, *said]
        return search(what, on, assumptions=everything, top=top, profile=known, steering=steering)

    if max_model:
        _exclude("max_model", recipe=recipe, params=params, model=model, min_gpus=min_gpus or None)

        def of_size(num_params: int) -> "Plan":
            what, said = _recipe(None, cluster, **{**asked, "params": str(num_params)})
            return planned(what, cluster, said)

        answer = reverse.largest_model(of_size)
    else:
        what, said = _recipe(recipe, cluster, **asked)
        if min_gpus:
            answer = reverse.fewest_gpus(what, cluster, lambda what, on: planned(what, on, said))
        else:
            answer = planned(what, cluster, said)
    what, cluster = answer.recipe, answer.cluster
    folder = (
        out or Path("plans") / f"{what.name}-{cluster.num_nodes}x{cluster.gpus_per_node}-{cluster.accelerator.name}"
    )
    if answer.fits and (out or not as_json):
        bundle.write(answer, folder)
    if as_json:
        print(json.dumps(bundle.document(answer, folder), indent=2))
    else:
        _show(answer, folder, explain=explain)
    if not answer.fits:
        raise typer.Exit(1)


def _exclude(flag: str, **others: Any) -> None:
    from scaling.errors import InputError

    for name, value in others.items():
        if value is not None:
            raise InputError(flag, name, "is a flag that it excludes", hint=f"give --{flag.replace('_', '-')} alone")


def _recipe(path: Path | None, cluster: Any, **asked: Any) -> "tuple[Recipe, list[str]]":
    """The recipe that the flags mean, and what had to be assumed."""
    from scaling import recipe
    from scaling.errors import InputError
    from scaling.plan import request

    if path is None:
        asked["optimizer"] = asked["optimizer"] or "adamw"
        return request.recipe_for(cluster, **asked)
    for name in ("params", "model"):
        if (value := asked.pop(name)) is not None:
            raise InputError(name, value, "and --recipe exclude each other", hint="the recipe names the model")
    return request.overridden(recipe.load(path), **asked)


def _show(plan: "Plan", folder: Path, *, explain: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from scaling.launch import bundle
    from scaling.units import SECONDS_PER_DAY, format_bytes, format_count, format_duration

    console = Console(highlight=False, emoji=False, soft_wrap=True)
    recipe, shape, memory, time = plan.recipe, plan.recipe.shape, plan.chosen.memory, plan.chosen.time
    answer = f"[bold green]{plan.strategy}[/]" if plan.fits else "[bold red]does not fit[/]"
    size = f"{shape.num_layers} layers x {shape.hidden_size}, {format_count(shape.num_params)} parameters"
    rows = [
        ("plan", answer),
        ("model", escape(f"{shape.name}: {size}")),
        ("cluster", f"{plan.cluster} ({format_bytes(memory.capacity_bytes)} each)"),
        ("batch", f"{plan.strategy.batch_equation}; {format_count(recipe.tokens_per_step)} tokens a step"),
    ]
    if plan.fits:
        speed = f"{format_count(time.tokens_per_second)} tokens/s, {format_duration(time.step_s)} a step"
        total = f"{format_count(recipe.num_steps * recipe.tokens_per_step)} tokens in {recipe.num_steps} steps"
        rows += [
            ("speed", f"{speed}, MFU {time.mfu_fraction:.0%}"),
            ("training", f"{total}: {format_duration(time.train_days * SECONDS_PER_DAY)}"),
        ]
    for name, text in rows:
        console.print(f"[bold]{name:<9}[/]{text}")

    of = "" if plan.fits else f" of the closest, {plan.strategy}"
    console.print(memory_table(memory, f"memory per rank{of}"))

    if plan.alternatives:
        table = Table(title="alternatives that fit", title_justify="left", box=box.SIMPLE)
        for column in ("strategy", "process", "tokens/s"):
            table.add_column(column, justify="left" if column == "strategy" else "right")
        for other in plan.alternatives:
            speed = format_count(other.time.tokens_per_second)
            table.add_row(str(other.strategy), format_bytes(other.memory.total_bytes), speed)
        console.print(table)
    if explain or not plan.fits:
        console.print("[bold]rejected[/]")
        for rejection in plan.rejected:
            console.print(f"  {escape(rejection.strategy)}: {escape(rejection.reason)}")
    console.print("[bold]assumed[/]")
    for sentence in plan.assumptions:
        console.print(f"  {escape(sentence)}")
    if plan.fits:
        console.print(f"[bold]wrote[/]    {escape(str(folder / bundle.DS_CONFIG))}, {bundle.PLAN}, {bundle.RECIPE}")
        console.print(f"[bold]launch[/]   {escape(bundle.launch_command(plan, folder))}")
    else:
        console.print("[bold]what would do[/]")
        for remedy in plan.remedies:
            console.print(f"  {escape(remedy)}")


def memory_table(memory: "MemoryEstimate", title: str) -> "Table":
    """An itemised estimate at its peak."""
    from rich import box
    from rich.table import Table

    from scaling.units import format_bytes

    moment = memory.peak_moment.replace("_", " ")
    table = Table(title=f"{title}, at its peak ({moment})", title_justify="left", box=box.SIMPLE)
    table.add_column("part")
    table.add_column("bytes", justify="right")
    for name in ("parameters", "gradients", "optimizer", "activations", "logits", "buffers"):
        table.add_row(name, format_bytes(getattr(memory, f"{name}_bytes")))
    table.add_row("allocated", format_bytes(memory.peak_allocated_bytes), style="bold")
    table.add_row("reserved by the allocator", format_bytes(memory.peak_reserved_bytes))
    table.add_row("context and communication", format_bytes(memory.context_bytes))
    process = f"{format_bytes(memory.total_bytes)} of {format_bytes(memory.capacity_bytes)}"
    table.add_row("process", process, style="bold")
    table.add_row("host memory per node", format_bytes(memory.host_bytes_per_node))
    return table
