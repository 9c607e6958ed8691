"""What `scale plan` prints for people: the answer first, then its parts."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scaling import course
from scaling.launch import bundle, scripts
from scaling.plan import TIE_FRACTION
from scaling.units import SECONDS_PER_DAY, format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from scaling.cost import MemoryEstimate
    from scaling.launch.scripts import Runner
    from scaling.plan import Candidate, Plan

# Seven columns, of which the strategy takes half: narrower, a strategy would stand on as many lines as it has words.
_SIZES_WIDTH = 110


def show(plan: "Plan", folder: Path, runner: "Runner", sizes: "Sequence[Plan]" = (), *, explain: bool) -> None:
    """One plan; `sizes` are the plans of other sizes of the cluster that it was chosen from."""
    console = _console()
    recipe, memory, time = plan.recipe, plan.chosen.memory, plan.chosen.time
    answer = f"[bold green]{plan.strategy}[/]" if plan.fits else "[bold red]does not fit[/]"
    rows = [
        ("plan", answer),
        ("model", escape(_model(plan))),
        ("cluster", f"{plan.cluster} ({format_bytes(memory.capacity_bytes)} each)"),
        ("batch", f"{plan.strategy.batch_equation}; {format_count(recipe.tokens_per_step)} tokens a step"),
    ]
    if plan.fits:
        speed = f"{format_count(time.tokens_per_second)} tokens/s, {format_duration(time.step_s)} a step"
        total = f"{format_count(course.num_tokens(recipe))} tokens in {recipe.num_steps} steps"
        rows += [
            ("speed", f"{speed}, MFU {time.mfu_fraction:.0%}"),
            ("training", f"{total}: {format_duration(time.train_days * SECONDS_PER_DAY)}"),
            ("cost", _cost(plan)),
        ]
    _print_rows(console, rows)
    of = "" if plan.fits else f" of the closest, {plan.strategy}"
    console.print(memory_table(memory, f"memory per rank{of}"))

    if sizes:
        title = f"sizes: the fewest GPU-hours win, of those within {TIE_FRACTION:.0%} the soonest done"
        _console(_SIZES_WIDTH).print(sizes_table(sizes, title))
    if plan.alternatives:
        console.print(candidates_table(plan.alternatives, "alternatives that fit"))
    if explain and plan.pareto:
        console.print(
            candidates_table(plan.pareto, "memory against speed: nothing that fits beats one of these in both")
        )
    _print_rejected(console, plan, f"rejected, of {plan.num_priced} strategies", explain=explain)
    _print_list(console, "assumed", plan.assumptions)
    if plan.fits:
        _print_notes(console, "your script", plan, runner, folder)
        first, *others = bundle.names(runner)
        console.print(f"[bold]wrote[/]    {escape(', '.join([str(folder / first), *others]))}")
        console.print(f"[bold]launch[/]   {escape(bundle.launch_command(plan, folder, runner))}")
    else:
        _print_list(console, "what would do", plan.remedies)


def show_elastic(plans: "Sequence[Plan]", folders: Sequence[Path], runner: "Runner", *, explain: bool) -> None:
    """The plans of a range of GPUs under one global batch, each in its folder."""
    console, recipe = _console(), plans[0].recipe
    worlds = [plan.cluster.world_size for plan in plans]
    fitting = [plan for plan in plans if plan.fits]
    style = "green" if len(fitting) == len(plans) else "red"
    _print_rows(
        console,
        [
            ("elastic", f"[bold {style}]{len(fitting)} of {len(plans)} sizes fit, {worlds[0]} to {worlds[-1]} GPUs[/]"),
            ("model", escape(_model(plans[0]))),
            ("batch", f"global batch {recipe.global_batch_size} at every size"),
        ],
    )
    _console(_SIZES_WIDTH).print(sizes_table(plans, "the plan of each size"))
    for plan in plans:
        _print_rejected(console, plan, f"rejected on {plan.cluster}", explain=explain)
    _print_list(console, "assumed", plans[0].assumptions)
    if len(fitting) == len(plans):
        for plan, folder in zip(plans, folders, strict=True):
            _print_notes(console, f"your script on {plan.cluster}", plan, runner, folder)
        _print_list(console, "wrote", (f"{folder / bundle.DS_CONFIG}" for folder in folders))
        launches = (bundle.launch_command(plan, folder, runner) for plan, folder in zip(plans, folders, strict=True))
        _print_list(console, "launch", launches)
    for plan in plans:
        if not plan.fits:
            _print_list(console, f"what would do for {plan.cluster}", plan.remedies)


def _console(least_width: int = 0) -> Console:
    return Console(highlight=False, emoji=False, soft_wrap=True, width=max(least_width, Console().width))


def _print_rows(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    for name, text in rows:
        console.print(f"[bold]{name:<9}[/]{text}")


def _print_list(console: Console, title: str, sentences: Iterable[str]) -> None:
    console.print(f"[bold]{title}[/]")
    for sentence in sentences:
        console.print(f"  {escape(sentence)}")


def _print_rejected(console: Console, plan: "Plan", title: str, *, explain: bool) -> None:
    """Why the other strategies lost, where that was asked for or nothing fits."""
    for can_run, heading in ((True, title), (False, "priced, though scale/train.py does not run it")):
        lost = [f"{each.strategy}: {each.reason}" for each in plan.rejected if each.can_run == can_run]
        if lost and (explain or (can_run and not plan.fits)):
            _print_list(console, heading, lost)


def _print_notes(console: Console, title: str, plan: "Plan", runner: "Runner", folder: Path) -> None:
    if found := scripts.notes(plan, runner, folder):
        _print_list(console, title, found)


def _model(plan: "Plan") -> str:
    shape = plan.recipe.shape
    size = f"{shape.num_layers} layers x {shape.hidden_size}, {format_count(shape.num_params)} parameters"
    return f"{shape.name}: {size}"


def _cost(plan: "Plan") -> str:
    """ "2,350 GPU-hours, at 2.5 an hour 5,875"."""
    hours, price = f"{_amount(plan.chosen.gpu_hours)} GPU-hours", plan.cluster.accelerator.price_per_hour
    return hours if plan.cost is None else f"{hours}, at {price:g} an hour {_amount(plan.cost)}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def sizes_table(plans: "Sequence[Plan]", title: str) -> Table:
    """The plan of each size of a cluster, a line each."""
    priced = any(plan.cost is not None for plan in plans)
    columns = ["nodes", "process", "tokens/s", "training", "GPU-hours", *(["cost"] if priced else []), "strategy"]
    table = Table(title=f"{title} ({plans[0].cluster.accelerator.name})", title_justify="left", box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="left" if column == "strategy" else "right", no_wrap=column != "strategy")
    for plan in plans:
        chosen, time = plan.chosen, plan.chosen.time
        figures = {
            "nodes": f"{plan.cluster.num_nodes} x {plan.cluster.gpus_per_node}",
            "process": format_bytes(chosen.memory.total_bytes),
            "strategy": "does not fit",
        }
        if plan.fits:
            figures |= {
                "tokens/s": format_count(time.tokens_per_second),
                "training": format_duration(time.train_days * SECONDS_PER_DAY),
                "GPU-hours": _amount(chosen.gpu_hours),
                "cost": "" if plan.cost is None else _amount(plan.cost),
                "strategy": str(plan.strategy),
            }
        table.add_row(*(figures.get(column, "") for column in columns))
    return table


def candidates_table(candidates: "Sequence[Candidate]", title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("strategy", "process", "tokens/s"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for candidate in candidates:
        process, speed = candidate.memory.total_bytes, candidate.time.tokens_per_second
        table.add_row(str(candidate.strategy), format_bytes(process), format_count(speed))
    return table


def memory_table(memory: "MemoryEstimate", title: str) -> Table:
    """An itemised estimate at its peak."""
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
    if memory.nvme_bytes_per_node:
        table.add_row("NVMe per node", format_bytes(memory.nvme_bytes_per_node))
    return table
