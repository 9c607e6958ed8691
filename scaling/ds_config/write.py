"""(Recipe, Strategy) -> ds_config: every field with meaning written out, plain JSON, never "auto".

Never train_batch_size: DeepSpeed derives it wrongly with tensor or sequence parallelism, so batch arithmetic stays
ours. Defaults are not relied on: gradient_clipping became 1.0 in 0.19.3, offload pin_memory true in 0.19.5.
"""

import math
from typing import Any

from scaling.cost.memory import (
    NVME_OPTIMIZER_BUFFERS,
    NVME_PARAM_BUFFERS,
    live_parameters,
    nvme_buffer_size,
    sub_group_size,
)
from scaling.ds_config import parallel
from scaling.optimizers import OPTIMIZERS
from scaling.recipe import Adafactor, AdamW, Constant, Cosine, Linear, Lion, Recipe, Sgd
from scaling.strategy import Strategy


def emit(recipe: Recipe, strategy: Strategy, nvme_path: str | None = None) -> dict[str, Any]:
    """The complete configuration: machinery, and the recipe's mathematics for whoever trains without our loop.

    `nvme_path` is the folder on each node's NVMe, where the strategy offloads to one.
    """
    config = {
        "train_micro_batch_size_per_gpu": strategy.micro_batch_size,
        "gradient_accumulation_steps": strategy.gradient_accumulation_steps,
        **precision_blocks(recipe.precision, strategy),
        "gradient_clipping": recipe.gradient_clipping,
        "zero_optimization": zero_block(recipe, strategy, nvme_path),
        "zero_allow_untested_optimizer": False,
        **optimizer_keys(recipe, strategy),
    }
    scheduler = scheduler_block(recipe)
    if scheduler:
        config["scheduler"] = scheduler
    if strategy.activation_checkpointing == "full":
        config["activation_checkpointing"] = checkpointing_block(recipe.shape.num_layers)
    if strategy.uses_nvme:
        config["aio"] = aio_block()
    config |= parallel.blocks(recipe.shape, strategy)
    config |= {"prescale_gradients": False, "steps_per_print": 2**31 - 1, "wall_clock_breakdown": False}
    return config


def machinery(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the recipe's optimizer and schedule, for whoever makes those."""
    return {key: value for key, value in config.items() if key not in ("optimizer", "scheduler")}


def precision_blocks(precision: str, strategy: Strategy) -> dict[str, Any]:
    """fp16 or bf16, and the width in which micro-batches are summed: fp32, so that the split does not matter."""
    blocks: dict[str, Any] = {}
    if precision == "bf16":
        blocks["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif precision == "fp16":
        blocks["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "consecutive_hysteresis": False,
            "min_loss_scale": 1,
        }
    blocks["data_types"] = {"grad_accum_dtype": grad_accum_dtype(precision, strategy)}
    return blocks


def grad_accum_dtype(precision: str, strategy: Strategy) -> str:
    """fp32 where micro steps are summed, so that their number does not show; a single one keeps its own width.

    At stage 1 in bf16 this also decides DeepSpeed's optimizer class, and so what its checkpoints look like.
    """
    return "fp32" if strategy.gradient_accumulation_steps > 1 else precision


def zero_block(recipe: Recipe, strategy: Strategy, nvme_path: str | None = None) -> dict[str, Any]:
    """zero_optimization, with the keys that mean something at this stage and no others."""
    stage, shape = strategy.zero_stage, recipe.shape
    block: dict[str, Any] = {"stage": stage}
    if stage == 0:
        return block
    block |= {
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": not OPTIMIZERS[recipe.optimizer.name].all_reduces,
        "reduce_bucket_size": strategy.reduce_bucket_size,
    }
    if stage <= 2:
        block |= {
            "allgather_partitions": True,
            "allgather_bucket_size": strategy.allgather_bucket_size,
            "round_robin_gradients": False,
        }
    else:
        block |= {
            "sub_group_size": sub_group_size(strategy),
            "stage3_prefetch_bucket_size": strategy.reduce_bucket_size,
            # Biases and norms (at most 4 D elements each in these models) stay whole: too small to gather.
            "stage3_param_persistence_threshold": 10 * shape.hidden_size,
            "stage3_max_live_parameters": live_parameters(shape, strategy),
            "stage3_max_reuse_distance": 0,  # release after forward; the default keeps 1e9 parameters gathered
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if strategy.offload_optimizer != "none":
        block["offload_optimizer"] = {"device": strategy.offload_optimizer, "pin_memory": True}
    if strategy.offload_optimizer == "nvme":
        block["offload_optimizer"] |= {
            "nvme_path": nvme_path,
            "buffer_count": NVME_OPTIMIZER_BUFFERS,
            "pipeline_read": False,  # overlapping needs more buffers, each as large as a sub group
            "pipeline_write": False,
            "fast_init": False,
        }
    if strategy.offload_param != "none":
        block["offload_param"] = {"device": strategy.offload_param, "pin_memory": True}
    if strategy.offload_param == "nvme":
        block["offload_param"] |= {
            "nvme_path": nvme_path,
            "buffer_count": NVME_PARAM_BUFFERS,
            "buffer_size": nvme_buffer_size(shape, strategy.shards),
            "max_in_cpu": 0,  # the default keeps up to 1e9 parameters of each rank in host memory after all
        }
    return block


def aio_block() -> dict[str, Any]:
    """Asynchronous file access, for NVMe: DeepSpeed's own values, written out."""
    return {
        "block_size": 1_048_576,
        "queue_depth": 8,
        "intra_op_parallelism": 1,
        "single_submit": False,
        "overlap_events": True,
        "use_gds": False,
    }


def optimizer_keys(recipe: Recipe, strategy: Strategy) -> dict[str, Any]:
    """What DeepSpeed is told of the optimizer: which one to make, or that it shall take the one it is given.

    Given one, there is no block: DeepSpeed's own LAMB is none under ZeRO, and its Muon would choose the matrices by
    their names.
    """
    block, row = optimizer_block(recipe, strategy), OPTIMIZERS[recipe.optimizer.name]
    if block is not None:
        # Sound at this stage, or it would have been refused: what ZeRO does not know works element by element.
        return {"optimizer": block, "zero_allow_untested_optimizer": not row.known_to_zero}
    return {"zero_force_ds_cpu_optimizer": False} if strategy.offload_optimizer != "none" else {}


def optimizer_block(recipe: Recipe, strategy: Strategy) -> dict[str, Any] | None:
    """The optimizer that DeepSpeed makes; None where scale/train.py hands it one (scaling/training/engine.py).

    AdamW: torch's fused kernel, which needs no compiler; DeepSpeed's CPU kernel where it is offloaded.
    """
    optimizer, offloaded = recipe.optimizer, strategy.offload_optimizer != "none"
    params: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    match optimizer:
        case AdamW():
            params |= {"betas": list(optimizer.betas), "eps": optimizer.eps}
            return {"type": "AdamW", "params": params if offloaded else {**params, "torch_adam": True, "fused": True}}
        case Lion():
            return {"type": "Lion", "params": {**params, "betas": list(optimizer.betas)}}
        case Sgd():
            params |= {"momentum": optimizer.momentum, "dampening": 0.0, "nesterov": optimizer.nesterov, "fused": True}
            return {"type": "SGD", "params": params}
        case Adafactor():
            mean_square, rms = optimizer.eps  # torch squares its first (2.13, optim/_adafactor.py)
            params |= {"beta2_decay": optimizer.beta2_decay, "eps": [math.sqrt(mean_square), rms]}
            return {"type": "Adafactor", "params": {**params, "d": optimizer.clipping_threshold, "foreach": False}}
    return None


def scheduler_block(recipe: Recipe) -> dict[str, Any] | None:
    """The schedule in DeepSpeed's words, warm-up named linear (its default is logarithmic).

    None where DeepSpeed has no words: no warm-up, a linear decay that ends above zero, a decay of another shape, or a
    batch that grows, since its schedulers count steps (0.19.8, runtime/lr_schedules.py). Our loop sets the rate itself,
    by scaling/training/schedule.py; DeepSpeed's own schedulers lag it by one step.
    """
    schedule, lr = recipe.schedule, recipe.optimizer.lr
    if schedule.warmup_steps < 2 or recipe.batch_ramp:
        return None
    warmup: dict[str, Any] = {"warmup_num_steps": schedule.warmup_steps, "warmup_type": "linear"}
    match schedule:
        case Constant():
            return {"type": "WarmupLR", "params": {"warmup_min_lr": 0.0, "warmup_max_lr": lr, **warmup}}
        case Linear() if schedule.min_lr_fraction == 0:
            params = {"total_num_steps": recipe.num_steps, "warmup_min_lr": 0.0, "warmup_max_lr": lr, **warmup}
            return {"type": "WarmupDecayLR", "params": params}
        case Cosine():
            params = {
                "total_num_steps": recipe.num_steps,
                "warmup_min_ratio": 0.0,
                "cos_min_ratio": schedule.min_lr_fraction,
                **warmup,
            }
            return {"type": "WarmupCosineLR", "params": params}
    return None


def checkpointing_block(num_layers: int) -> dict[str, Any]:
    """Full activation checkpointing. DeepSpeed itself never applies this block to a plain module; our loop does."""
    return {
        "partition_activations": False,
        "contiguous_memory_optimization": False,
        "cpu_checkpointing": False,
        "number_checkpoints": num_layers,
        "synchronize_checkpoint_boundary": False,
        "profile": False,
    }
