"""Tiny real runs: a recipe, a ds_config from the generator, the real program on real ranks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling import ds_config, recipe, train
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from tests.ranks import on_ranks

_SHAPE = {
    "name": "tiny",
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "vocab_size": 384,
    "max_position_embeddings": 32,
}


def tiny_recipe(folder: Path, *, family: str = "gpt2", **changes: Any) -> Recipe:
    """A two-layer model on 60 kB of text in `folder`, in fp32, eight samples a step."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join(f"Line {i}: {i} squared is {i * i}, and its half {i / 2}." for i in range(1200)))
    fields = {
        "name": "tiny",
        "model": {"family": family, **_SHAPE},
        "task": "causal-lm" if family == "gpt2" else "masked-lm",
        "data": {"corpus": [str(text)], "seq_length": 32, "validation_fraction": 0.05},
        "global_batch_size": 8,
        "num_steps": 8,
        "optimizer": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 2, "min_lr_fraction": 0.1},
        "precision": "fp32",
        "gradient_clipping": 0.5,  # the gradients are larger, so that clipping takes part
        "seed": 11,
    }
    return Recipe.model_validate({**fields, **changes})


def layout(
    world_size: int,
    stage: int,
    *,
    micro: int = 4,
    checkpointing: str = "none",
    batch: int = 8,
    loss: str = "full",
    tensor: int = 1,
    pipeline: int = 1,
    sequence: int = 1,
    expert: int = 1,
) -> Strategy:
    """A strategy for `batch` samples on `world_size` ranks with buckets that a tiny model fills several times."""
    data = world_size // (tensor * pipeline * sequence)
    return Strategy(
        zero_stage=stage,
        offload_optimizer="none",
        data_parallel_size=data,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        sequence_parallel_size=sequence,
        expert_parallel_size=expert,
        micro_batch_size=micro,
        gradient_accumulation_steps=batch // (micro * data),
        activation_checkpointing=checkpointing,
        loss_kernel=loss,
        reduce_bucket_size=20_000,
        allgather_bucket_size=20_000,
    )


def files(folder: Path, what: Recipe, strategy: Strategy) -> tuple[Path, Path]:
    """(recipe.yaml, ds_config.json) written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "recipe.yaml", folder / "ds_config.json"
    paths[0].write_text(recipe.dump(what))
    paths[1].write_text(json.dumps(ds_config.emit(what, strategy)))
    return paths


def run(folder: Path, what: Recipe, strategy: Strategy, *flags: str) -> list[dict[str, Any]]:
    """Trains in `folder` on as many ranks as the strategy has; the lines of metrics.jsonl."""
    on_ranks(strategy.world_size, train.main, _arguments(folder, what, strategy, *flags))
    return metrics(folder)


def run_each(cases: Mapping[Path, tuple[Recipe, Strategy]], *flags: str) -> dict[Path, list[dict[str, Any]]]:
    """`run` for each run directory: one after another on the same ranks, for each number of them, which costs less."""
    by_size: dict[int, list[list[str]]] = {}
    # ZeRO-3 leaves its own linear layer in torch.nn.functional (deepspeed 0.19.8, zero/partition_parameters.py), which
    # selective checkpointing does not go with (scaling/ds_config/read.py): so that comes first.
    ordered = sorted(cases.items(), key=lambda case: case[1][1].activation_checkpointing != "selective")
    for folder, (what, strategy) in ordered:
        by_size.setdefault(strategy.world_size, []).append(_arguments(folder, what, strategy, *flags))
    for world_size, argvs in by_size.items():
        on_ranks(world_size, _programs, argvs)
    return {folder: metrics(folder) for folder in cases}


def _arguments(folder: Path, what: Recipe, strategy: Strategy, *flags: str) -> list[str]:
    recipe_path, config_path = files(folder / "asked", what, strategy)
    argv = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(folder)]
    argv += ["--loss_kernel", strategy.loss_kernel]
    if strategy.activation_checkpointing == "selective":  # which no ds_config says
        argv += ["--activation_checkpointing", "selective"]
    return [*argv, *flags]


def _programs(argvs: list[list[str]]) -> None:
    """The program's main for each, in one process group."""
    from scaling.training import ranks

    ranks.complete_environment()
    here, leave = ranks.join(), ranks.leave
    ranks.join, ranks.leave = lambda: here, lambda: None
    try:
        for argv in argvs:
            train.main(argv)
    finally:
        leave()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]
