"""`scale memory`: an itemised estimate of one strategy that the user fixes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer


def memory(
    params: Annotated[str | None, typer.Option(help="Parameters, such as 1.3B.")] = None,
    family: Annotated[str | None, typer.Option(help="With --params: llama, t5, ...; GPT unless given.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model: gpt2-xl (`scale models`), hf:PATH, or my_model.py:build.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs per node.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Their kind: a100-80gb, h100, ..., cpu.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes.")] = None,
    seq_length: Annotated[int | None, typer.Option(min=1, help="Tokens per sample.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32.")] = None,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage.")] = 1,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="Samples per rank and micro step.")] = 1,
    gradient_accumulation_steps: Annotated[int, typer.Option(min=1, help="Micro steps per optimizer step.")] = 1,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="Ranks that share each matrix.")] = 1,
    pipeline_parallel_size: Annotated[int, typer.Option(min=1, help="Ranks that share the layers.")] = 1,
    sequence_parallel_size: Annotated[int, typer.Option(min=1, help="Ranks that share each sequence.")] = 1,
    expert_parallel_size: Annotated[int, typer.Option(min=1, help="Ranks that share the experts.")] = 1,
    offload_optimizer: Annotated[str, typer.Option(help="Where optimizer states live: none, cpu or nvme.")] = "none",
    offload_param: Annotated[str, typer.Option(help="Where parameters wait: none, cpu or nvme.")] = "none",
    nvme_path: Annotated[str | None, typer.Option(help="A folder on each node's NVMe drive.")] = None,
    nvme_gib: Annotated[float | None, typer.Option(help="How much of it a node may fill, in GiB.")] = None,
    activation_checkpointing: Annotated[str, typer.Option(help="none, selective or full.")] = "none",
    profile: Annotated[Path | None, typer.Option(help="A profile by `scale calibrate`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The estimate as JSON.")] = False,
) -> None:
    """How much memory one strategy takes. It may be one that scale/train.py does not run.

    Exit 0: it fits. Exit 1: it does not.
    """
    from rich.console import Console

    from scaling import cost, hardware
    from scaling.cli.plan_text import memory_table
    from scaling.cost.profile import DEEPSPEED, load_profile
    from scaling.errors import InputError, did_you_mean
    from scaling.parallelism import divisors, indivisible, unsplittable
    from scaling.plan import request
    from scaling.plan.layouts import offload_ignored
    from scaling.strategy import Checkpointing, Offload, Strategy, bucket_size

    for field, value, kinds in (
        ("activation_checkpointing", activation_checkpointing, get_args(Checkpointing)),
        ("offload_optimizer", offload_optimizer, get_args(Offload)),
        ("offload_param", offload_param, get_args(Offload)),
    ):
        if value not in kinds:
            raise InputError(field, value, "is none of its values", hint=did_you_mean(value, kinds))
    if ignored := offload_ignored(zero_stage, offload_optimizer, offload_param):  # type: ignore[arg-type]  # checked
        raise InputError("zero_stage", zero_stage, f"does not offload so: {ignored}", hint="--zero-stage 3")
    cluster, assumptions = hardware.cluster_of(gpu, gpus, nodes, None, None)
    cluster, _ = hardware.with_nvme(cluster, nvme_path, nvme_gib, None)
    if "nvme" in (offload_optimizer, offload_param) and not cluster.nvme_bytes:
        raise InputError(
            "offload_optimizer, offload_param", "nvme", "needs an NVMe drive", hint="give --nvme-path and --nvme-gib"
        )
    split = tensor_parallel_size * pipeline_parallel_size * sequence_parallel_size
    for field, size in (
        ("tensor x pipeline x sequence parallel sizes", split),
        ("expert_parallel_size", expert_parallel_size),
    ):
        if cluster.world_size % size:
            hint = f"sizes that do: {', '.join(map(str, divisors(cluster.world_size)))}"
            raise InputError(field, size, f"does not divide the {cluster.world_size} ranks", hint=hint)
    ranks = cluster.world_size // split
    recipe, said = request.recipe_for(
        cluster, params=params, family=family, model=model, seq_length=seq_length, precision=precision, tokens="1B",
        global_batch_size=micro_batch_size * gradient_accumulation_steps * ranks,
    )  # fmt: skip
    shape = recipe.shape
    bucket = bucket_size(shape)
    strategy = Strategy(
        zero_stage=zero_stage,
        offload_optimizer=offload_optimizer,  # type: ignore[arg-type]  # checked above
        offload_param=offload_param,  # type: ignore[arg-type]  # checked above
        data_parallel_size=ranks,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        sequence_parallel_size=sequence_parallel_size,
        expert_parallel_size=expert_parallel_size,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        activation_checkpointing=activation_checkpointing,  # type: ignore[arg-type]  # checked above
        reduce_bucket_size=bucket,
        allgather_bucket_size=bucket,
    )
    for kind, size in strategy.parallelism.items():
        problem, hint = indivisible(kind, size, shape, recipe.seq_divisor)
        if problem:
            raise InputError(f"{kind}_parallel_size", size, f"{problem} of {shape.name}", hint=hint)
    estimate = cost.memory(cost.Job.of(recipe), strategy, cluster, load_profile(profile) if profile else DEEPSPEED)
    if as_json:
        print(json.dumps({"strategy": asdict(strategy), "memory": asdict(estimate), "fits": estimate.fits}, indent=2))
    else:
        console = Console(highlight=False, emoji=False, soft_wrap=True)
        console.print(memory_table(estimate, f"{shape.name}, {strategy}: memory per rank"))
        for sentence in [*assumptions, *(s for s in said if s.startswith(("model", "precision", "seq_length")))]:
            console.print(f"assumed  {sentence}", markup=False)
        if problem := unsplittable(shape, strategy, recipe.seq_divisor)[0]:
            console.print(f"note     scale/train.py does not run it: {problem}", markup=False)
    if not estimate.fits:
        raise typer.Exit(1)
