"""Recipe and ds_config -> a DeepSpeed engine. The one place that calls deepspeed.initialize."""

import math
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups as deepspeeds_groups
from torch import nn

from scaling import models
from scaling.optim import layout
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import optimizer, parts, tensor
from scaling.training.ranks import place_of


def make_engine(recipe: Recipe, config: dict[str, Any], strategy: Strategy) -> Any:
    """A DeepSpeedEngine around the recipe's model and loss; `config` comes from ds_config.reconcile."""
    # At stage 3 the weights of the first of those that share them are broadcast as they are sharded: only there must
    # they be.
    initialised = strategy.zero_stage < 3 or place_of(dist.get_rank(), strategy).data == 0
    model = models.build(recipe.shape, dropout=recipe.dropout, seed=recipe.seed, initialised=initialised)
    models.checkpoint_layers(model, strategy.activation_checkpointing, dropout=recipe.dropout)
    wrapped = models.WithLoss(model, loss_kernel=strategy.loss_kernel)
    optimizer.require_kernel(recipe, strategy)
    if strategy.tensor_parallel_size > 1:
        tensor.split(wrapped, recipe.shape, config, initialised=initialised)
    ours = optimizer.make(recipe.optimizer, wrapped)
    groups = optimizer.parameter_groups(wrapped, recipe.optimizer.weight_decay)
    if strategy.zero_stage == 3:
        partition(wrapped, recipe, config, initialised=initialised)
    # Without one of ours DeepSpeed makes it, by the ds_config.
    what = {"model_parameters": groups} if ours is None else {"optimizer": ours}
    engine, *_ = deepspeed.initialize(model=wrapped, config=config, **what)
    layout.require_aligned_shards(engine.optimizer)
    if ours is not None:
        optimizer.attach(ours, engine)
    return engine


def partition(module: nn.Module, recipe: Recipe, config: dict[str, Any], *, initialised: bool) -> None:
    """Shards the parameters of a module on the host, one at a time, as ZeRO-3 wants them.

    Left to itself deepspeed.initialize moves the whole model to the device first (0.19.8, runtime/engine.py:2094),
    which a model that needs ZeRO-3 may not fit.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.precision]
    for parameter in module.parameters():
        # What was never written is not read either: that would give it memory.
        parameter.data = parameter.data.to(dtype) if initialised else torch.empty_like(parameter.data, dtype=dtype)
    shares = deepspeeds_groups.get_data_parallel_group() if parts.size() > 1 else None
    deepspeed.zero.Init(module=module, data_parallel_group=shares, config_dict_or_path=config)


def gradient_divisor(strategy: Strategy) -> int:
    """What DeepSpeed divides the sum of the ranks' gradients by, and the loop's loss is multiplied by."""
    return strategy.data_parallel_size


def loss_scale(engine: Any) -> float:
    """What DeepSpeed multiplies the loss by before the backward: 1, except in fp16."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else 1.0


def step_and_gradient_norm(engine: Any) -> torch.Tensor | float:
    """Takes the optimizer step and returns the global gradient norm before clipping.

    At stage 0, which trains in fp32 alone, DeepSpeed reports none (0.19.8: get_global_grad_norm() is None); there every
    rank holds the whole reduced gradient, and the norm is computed here. At stage 3 it divides by the loss scale of the
    next step, which differs where fp16 has just moved it (zero/stage3.py:step).
    """
    if engine.zero_optimization_stage() == 0:
        named = [p for p in engine.module.parameters() if p.grad is not None and parts.counted_here(p)]
        found = norm(torch.stack([norm(p.grad) for p in named]))
        engine.step()
        return parts.norm_over_parts(found)
    scale = loss_scale(engine)
    try:
        engine.step()
    except Exception as error:  # 0.19.8, runtime/fp16/loss_scaler.py:258 raises no type of its own
        if "loss scale already at minimum" in str(error):
            raise LossScaleAtFloor(
                f"the loss scale is at its floor of {scale:g} and gradients still overflow"
            ) from None
        raise
    found = engine.get_global_grad_norm()
    return found * loss_scale(engine) / scale if engine.zero_optimization_stage() == 3 else found


class LossScaleAtFloor(Exception):
    """fp16 has no smaller loss scale to try."""


def discard_gradients(engine: Any) -> None:
    """Ends a step without its update: what was accumulated is dropped, and the loss scale stays.

    DeepSpeed's wrappers drop a step whose gradient norm is not a number (0.19.8, zero/stage_1_and_2.py:3043,
    zero/stage3.py:2888, bf16_optimizer.py:402), so that is what they are shown. Without one, at stage 0, neither is
    anything clipped nor does the optimizer step: DeepSpeed's Muon would step what has no gradient too.
    """
    wrapper, infinite = engine.optimizer, torch.tensor(math.inf)
    shown: list[tuple[Any, str, Any]]
    match type(wrapper).__name__:
        case "DeepSpeedZeroOptimizer":
            shown = [(wrapper, "scaled_global_norm", infinite)]
        case "DeepSpeedZeroOptimizer_Stage3":
            shown = [(wrapper, "_get_norm_groups", [infinite])]
        case "BF16_Optimizer":
            shown = [(wrapper, "get_grads_for_norm", ([infinite], {}))]
        case _:
            shown = [(engine, "clip_fp32_gradients", None), (wrapper, "step", None)]
    scaler = vars(wrapper.loss_scaler) if engine.fp16_enabled() else {}
    before = dict(scaler)
    scaler |= {"cur_hysteresis": 2} if scaler else {}  # so that a scale at its floor is no error
    for owner, name, answer in shown:
        setattr(owner, name, partial(_answered, answer))
    try:
        engine.step()
    finally:
        for owner, name, _ in shown:
            delattr(owner, name)
        scaler |= before


def _answered(answer: Any, *args: Any, **kwargs: Any) -> Any:
    return answer


def norm(tensor: torch.Tensor) -> torch.Tensor:
    """The 2-norm in fp32."""
    return torch.linalg.vector_norm(row_norms(tensor), dtype=torch.float32)


def row_norms(tensor: torch.Tensor) -> torch.Tensor:
    """2-norms whose own 2-norm is that of `tensor`: on a CPU one for each row, elsewhere a single one in fp32.

    torch's on a CPU is a running sum, 1.3e-3 too small for a vocabulary of 30,522 x 768, and copies 16 bits to 32
    first. By rows it is right to 4e-7, and in bf16 as fast: each row's is rounded to 16 bits, and rows average that.
    """
    if tensor.device.type == "cpu":
        return torch.linalg.vector_norm(tensor, dim=-1).flatten()
    return torch.linalg.vector_norm(tensor, dtype=torch.float32).view(1)
