"""A user's ds_config, read strictly: the strategy that it spells, and where it contradicts the recipe."""

import json
from pathlib import Path
from typing import Any, cast, get_args

from scaling.ds_config import parallel, write
from scaling.errors import FileProblems, InputError, ScaleError, did_you_mean
from scaling.files import read_text
from scaling.optimizers import OPTIMIZERS, unsound
from scaling.parallelism import altered, unsplittable
from scaling.plan.layouts import Sizes, offload_ignored
from scaling.recipe import Recipe
from scaling.strategy import Offload, Strategy, bucket_size

# The keys that scale/train.py honours or checks; DeepSpeed 0.19.8 itself ignores what it does not know.
_KEYS = {
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping",
    "bf16", "fp16", "data_types", "zero_optimization", "zero_allow_untested_optimizer", "optimizer", "scheduler",
    "activation_checkpointing", "prescale_gradients", "gradient_predivide_factor", "communication_data_type",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler",
    "tensorboard", "wandb", "csv_monitor", "aio", "checkpoint", "zero_force_ds_cpu_optimizer", "log_level",
    *parallel.KEYS,
}  # fmt: skip


def load(path: str | Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError or FileProblems: absent, not JSON, repeated or unknown keys."""
    text = read_text(path, "ds_config")
    try:
        config = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise FileProblems(
            f"{path}:{error.lineno}:{error.colno}", [f"ds_config is not JSON: {error.msg}"],
            hint="`scale plan --out DIR` writes one",
        ) from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise FileProblems(str(path), [f"ds_config is not usable JSON: {error}"]) from None
    if not isinstance(config, dict):
        raise FileProblems(str(path), ["ds_config is not a JSON object"], hint="`scale plan --out DIR` writes one")
    unknown = [f"{key}: unknown key; {did_you_mean(key, _KEYS)}" for key in config if key not in _KEYS]
    if unknown:
        raise FileProblems(str(path), unknown, hint="DeepSpeed would ignore what it does not know")
    return config


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} appears twice")
    return dict(pairs)


def strategy_of(config: dict[str, Any], recipe: Recipe, world_size: int) -> Strategy:
    """The strategy that `config` spells, on `world_size` ranks.

    The accumulation follows from the recipe's global batch, whatever the file says.
    Raises InputError naming a field that is missing, not a number, or does not divide the batch.
    """
    zero = _block(config, "zero_optimization")
    stage = _integer(zero, "stage", "zero_optimization.stage", least=0, default=0)
    if stage > 3:
        raise InputError("zero_optimization.stage", stage, "is not a ZeRO stage", hint="0, 1, 2 or 3")
    micro = _integer(config, "train_micro_batch_size_per_gpu", "train_micro_batch_size_per_gpu")
    optimizer, param = _offload(zero, "offload_optimizer"), _offload(zero, "offload_param")
    if ignored := offload_ignored(stage, optimizer, param):
        raise InputError(
            "zero_optimization.stage", stage, f"does not offload so: {ignored}", hint="stage 3, or no offload"
        )
    bucket = bucket_size(recipe.shape)
    allgather = _integer(zero, "allgather_bucket_size", "zero_optimization.allgather_bucket_size", default=bucket)
    if allgather % 2:
        raise InputError("zero_optimization.allgather_bucket_size", allgather, "is odd, which DeepSpeed refuses")
    sizes = parallel.sizes(config)
    data_parallel_size = _data_parallel_size(sizes, world_size)
    strategy = Strategy(
        zero_stage=stage,
        offload_optimizer=optimizer,
        offload_param=param,
        data_parallel_size=data_parallel_size,
        tensor_parallel_size=sizes.tensor,
        pipeline_parallel_size=sizes.pipeline,
        sequence_parallel_size=sizes.sequence,
        expert_parallel_size=sizes.expert,
        micro_batch_size=micro,
        gradient_accumulation_steps=_accumulation(recipe, micro, data_parallel_size),
        activation_checkpointing="full" if config.get("activation_checkpointing") else "none",
        reduce_bucket_size=_integer(zero, "reduce_bucket_size", "zero_optimization.reduce_bucket_size", default=bucket),
        allgather_bucket_size=allgather,
    )
    problem, hint = unsplittable(recipe.shape, strategy, recipe.data.seq_length)
    if problem:
        raise ScaleError(f"ds_config: {problem}", hint=hint)
    curriculum = recipe.data.curriculum
    if curriculum and recipe.seq_divisor % sizes.sequence:
        raise InputError(
            "data.curriculum", f"{curriculum.start} + n x {curriculum.increment}",
            f"are lengths that sequence_parallel_size {sizes.sequence} does not always divide",
            hint=f"multiples of {sizes.sequence}",
        )  # fmt: skip
    if data_parallel_size % sizes.expert:
        raise InputError(
            "expert_parallel.autoep_size", sizes.expert, f"does not divide {data_parallel_size} data parallel ranks"
        )
    return strategy


def _data_parallel_size(sizes: Sizes, world_size: int) -> int:
    split = sizes.tensor * sizes.pipeline * sizes.sequence
    if world_size % split:
        factors = f"tensor {sizes.tensor} x pipeline {sizes.pipeline} x sequence {sizes.sequence}"
        raise InputError(
            "world_size", world_size, f"is not a multiple of {factors}", hint=f"a multiple of {split} ranks"
        )
    return world_size // split


def _offload(zero: dict[str, Any], key: str) -> Offload:
    """Where the optimizer or the parameters live."""
    block = _block(zero, key, "zero_optimization.")
    device = block.get("device", "none")
    if device not in get_args(Offload):
        hint = ", ".join(get_args(Offload))
        raise InputError(f"zero_optimization.{key}.device", device, "is not a place to offload to", hint=hint)
    if device == "nvme" and not isinstance(block.get("nvme_path"), str):
        raise InputError(f"zero_optimization.{key}.nvme_path", block.get("nvme_path"), "is not a path",
                         hint="name a folder on the NVMe drive")  # fmt: skip
    return cast(Offload, device)


def _block(parent: dict[str, Any], key: str, path: str = "") -> dict[str, Any]:
    """The object under `key`, empty where there is none."""
    block = parent.get(key, {})
    if not isinstance(block, dict):
        raise InputError(f"{path}{key}", block, "is not an object", hint=f'write "{key}": {{...}}')
    return block


def _integer(block: dict[str, Any], key: str, field: str, *, least: int = 1, default: int | None = None) -> int:
    value = block.get(key, default)
    if value is None:
        raise ScaleError(f"{field}: missing from the ds_config", hint=f'write "{key}": {max(least, 1)}')
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(field, value, f"is not a whole number of at least {least}")
    return value


def reconcile(config: dict[str, Any], recipe: Recipe, strategy: Strategy) -> tuple[dict[str, Any], list[str]]:
    """The configuration to hand to DeepSpeed for `recipe` by `strategy`, and what was filled in.

    The recipe's mathematics is authoritative: what the file leaves out is filled in from it, what the file
    contradicts is refused. The scheduler block is checked and then left out, because the training loop sets the
    learning rate. Raises FileProblems.
    """
    notes = []
    steps = strategy.gradient_accumulation_steps
    if steps != config.get("gradient_accumulation_steps", 1):
        said = config.get("gradient_accumulation_steps", "none")
        notes.append(f"gradient_accumulation_steps: {steps} (the ds_config says {said}): {strategy.batch_equation}")
    ours = write.optimizer_keys(recipe, strategy)
    if "optimizer" in ours and "optimizer" not in config:
        notes.append("optimizer: the recipe's, since the ds_config has none")
    problems = _contradictions(config, recipe, strategy)
    if reason := unsound(recipe.optimizer.name, strategy.zero_stage, strategy.offload_optimizer):
        problems.append(f"zero_optimization: {reason}")
    scattered = strategy.zero_stage > 0 and _block(config, "zero_optimization").get("reduce_scatter", True)
    if scattered and OPTIMIZERS[recipe.optimizer.name].all_reduces:
        problems.append("zero_optimization.reduce_scatter: DeepSpeed 0.19.8 loses Muon's gradients; false works")
    if not _block(config, "zero_optimization").get("reduce_scatter", True):
        # 0.19.8: runtime/zero/stage_1_and_2.py:884 asserts it for experts; stage 3 averages otherwise (stage3.py:1878).
        refused = {"expert", "sequence"} & set(strategy.parallelism)
        problems += [f"zero_optimization.reduce_scatter: {kind} parallelism needs true" for kind in sorted(refused)]
    if strategy.zero_stage == 0 and recipe.precision != "fp32":
        problems.append(
            f"zero_optimization.stage: 0 with {recipe.precision} takes an extra optimizer step in DeepSpeed 0.19.8"
        )
    if reason := altered(recipe.optimizer.name, strategy.parallelism):
        problems.append(reason)
    if strategy.pipeline_parallel_size > 1 and config.get("wall_clock_breakdown"):
        problems.append("wall_clock_breakdown: breaks off in a pipeline, whose timers start twice; false works")
    if problems:
        raise FileProblems(
            "ds_config contradicts the recipe", problems, hint="the recipe decides: change one of the two"
        )
    ready = {key: value for key, value in config.items() if key not in ("scheduler", "train_batch_size")}
    if strategy.zero_stage == 3 and strategy.activation_checkpointing == "selective":
        # DeepSpeed's linear layer adds the bias into the matmul's output, which is kept (0.19.8, zero/linear.py:88).
        ready["zero_optimization"] = {**ready["zero_optimization"], "memory_efficient_linear": False}
    ready |= {
        "gradient_accumulation_steps": steps,
        "gradient_clipping": recipe.gradient_clipping,
        **parallel.blocks(recipe.shape, strategy),
        **ours,
        **write.precision_blocks(recipe.precision, strategy),
    }
    return ready, notes


def _accumulation(recipe: Recipe, micro_batch_size: int, world_size: int) -> int:
    """Micro steps of the largest batch; those of a ramp are fewer, and whole as well."""
    rows, ramp = micro_batch_size * world_size, recipe.batch_ramp
    if recipe.batch_divisor % rows:
        share = recipe.batch_divisor // world_size
        fitting = [m for m in range(1, share + 1) if recipe.batch_divisor % (m * world_size) == 0]
        what = "a start and an increment" if ramp else "a global batch"
        hint = f"micro batches that divide it on {world_size} ranks: {', '.join(map(str, fitting[:12]))}"
        hint = hint if fitting else f"{what} that {world_size} ranks divide"
        problem = f"a multiple of {micro_batch_size} micro x {world_size} data parallel"
        if ramp:
            batches = f"{ramp.start} + n x {ramp.increment}"
            raise InputError("batch_ramp", batches, f"is not always {problem}", hint=hint)
        raise InputError("global_batch_size", recipe.global_batch_size, f"is not {problem}", hint=hint)
    return recipe.global_batch_size // rows


def _contradictions(config: dict[str, Any], recipe: Recipe, strategy: Strategy) -> list[str]:
    """Every place where the file states another mathematics than the recipe."""
    problems = []
    enabled = [name for name in ("bf16", "fp16") if _switch(config, name)]
    stated = enabled[0] if enabled else "fp32"
    if stated != recipe.precision:
        problems.append(f"{stated}: the recipe trains in {recipe.precision}")
    expected = {
        "gradient_clipping": recipe.gradient_clipping,
        "optimizer": write.optimizer_block(recipe, strategy),
        "scheduler": write.scheduler_block(recipe),
        "train_batch_size": recipe.global_batch_size,
        "tensor_parallel": parallel.blocks(recipe.shape, strategy).get("tensor_parallel", {"autotp_size": 1}),
        "pipeline": parallel.blocks(recipe.shape, strategy).get("pipeline", {"stages": 1}),
        "expert_parallel": parallel.blocks(recipe.shape, strategy).get("expert_parallel"),  # which says how to route
    }
    if "optimizer" in config and expected["optimizer"] is None:
        name = recipe.optimizer.name
        made = OPTIMIZERS[name].implementation
        problems.append(f"optimizer: the recipe's {name} is {made}, which is handed to DeepSpeed; remove the block")
        del expected["optimizer"]
    for key, ours in expected.items():
        if key in config:
            problems += _differences(key, config[key], ours)
    return problems


def _switch(config: dict[str, Any], name: str) -> bool:
    value = _block(config, name).get("enabled", False)
    if not isinstance(value, bool):
        raise InputError(f"{name}.enabled", value, "is neither true nor false")
    return value


def _differences(path: str, theirs: Any, ours: Any) -> list[str]:
    """One line per leaf of `theirs` that `ours` does not repeat; 1 and 1.0 are the same."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        lines = []
        for key in theirs:
            lines += _differences(f"{path}.{key}", theirs[key], ours.get(key))
        return lines
    if theirs == ours:
        return []
    return [f"{path}: {theirs!r} here, {ours!r} by the recipe"]
