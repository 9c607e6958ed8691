"""Recipe and ds_config -> a DeepSpeed engine. The one place that calls deepspeed.initialize."""

import math
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups
from torch import nn

from scaling import models
from scaling.optim import layout
from scaling.optimizers import OPTIMIZERS
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import optimizer, sequence


def make_engine(recipe: Recipe, config: dict[str, Any], strategy: Strategy) -> Any:
    """A DeepSpeedEngine around the recipe's model and loss; `config` comes from ds_config.reconcile."""
    # At stage 3 the first rank's weights are broadcast as they are sharded: only there must they be.
    initialised = strategy.zero_stage < 3 or dist.get_rank() == 0
    model = models.build(recipe.shape, dropout=recipe.dropout, seed=recipe.seed, initialised=initialised)
    mpu = sequence.split(model, strategy) if strategy.sequence_parallel_size > 1 else None
    models.checkpoint_layers(model, strategy.activation_checkpointing, dropout=recipe.dropout)
    wrapped = models.WithLoss(model, loss_kernel=strategy.loss_kernel)
    optimizer.require_kernel(recipe, strategy)
    splits_experts = strategy.expert_parallel_size > 1
    # Ours is made once DeepSpeed has put each rank's own experts in the place of all.
    ours = None if splits_experts else optimizer.make(recipe.optimizer, wrapped)
    parameters = optimizer.parameter_groups(wrapped, recipe.optimizer.weight_decay)
    if strategy.zero_stage == 3:
        partition(wrapped, recipe, config, initialised=initialised)
    # Without one of ours DeepSpeed makes it, by the ds_config.
    what: dict[str, Any] = (
        {"model_parameters": optimizer.named(parameters) if splits_experts else parameters}
        if ours is None
        else {"optimizer": ours}
    )
    if splits_experts and not OPTIMIZERS[recipe.optimizer.name].named_in_ds_config:
        what["optimizer"] = lambda _: optimizer.make(recipe.optimizer, wrapped)
    engine, *_ = deepspeed.initialize(model=wrapped, config=config, mpu=mpu, **what)
    layout.require_aligned_shards(engine.optimizer)
    if "optimizer" in what:
        optimizer.attach(engine.basic_optimizer, engine)
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
    deepspeed.zero.Init(module=module, config_dict_or_path=config)


def gradient_divisor(strategy: Strategy) -> int:
    """What DeepSpeed divides the sum of the ranks' gradients by, and the loop's loss is multiplied by.

    Under sequence parallelism the ranks' number at stage 3, where gradients are scattered as they are averaged (0.19.8,
    runtime/comm/coalesced_collectives.py:132), and the data parallel size below (zero/stage_1_and_2.py:1688,
    runtime/engine.py:3884): docs/upstream.
    """
    return strategy.shards if strategy.zero_stage == 3 else strategy.data_parallel_size


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
        found = _whole_norm(engine)
        if engine.has_moe_layers:
            engine.clip_fp32_gradients = partial(_clip, engine, found)
        engine.step()
        return found
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


def _whole_norm(engine: Any) -> torch.Tensor:
    """The norm of all gradients where each rank has them whole; each rank's experts are others."""
    present = [p for p in engine.module.parameters() if p.grad is not None]
    shared = norm(torch.stack([norm(p.grad) for p in present if not is_moe_param(p)]))
    experts = [p for p in present if is_moe_param(p)]
    if not experts:
        return shared
    squares = torch.stack([norm(p.grad) for p in experts]).square().sum()
    dist.all_reduce(squares, group=groups._get_expert_parallel_group(experts[0].group_name))
    return (shared.square() + squares).sqrt()


def _clip(engine: Any, whole_norm: torch.Tensor) -> None:
    """Clips as torch does: DeepSpeed goes by the mean of the ranks' norms (0.19.8, runtime/utils.py:413)."""
    torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), engine.gradient_clipping(), whole_norm)


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
