"""Recipe and ds_config -> a DeepSpeed engine. The one place that calls deepspeed.initialize."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups
from torch import nn
from transformers import PreTrainedModel

from scaling import models
from scaling.errors import ScaleError
from scaling.optim import layout
from scaling.optimizers import OPTIMIZERS
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import optimizer, parts, pipeline, sequence, tensor
from scaling.training.ranks import place_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_engine(
    recipe: Recipe,
    config: dict[str, Any],
    strategy: Strategy,
    *,
    resumes: bool = False,
    say: Callable[[str], None] = lambda said: None,
) -> Any:
    """A DeepSpeedEngine around the recipe's model and loss; `config` comes from ds_config.reconcile.

    An engine that `resumes` takes its weights from a checkpoint after this, and reads none from the recipe's.
    """
    # At stage 3 the weights of the first of those that share them are broadcast as they are sharded: only there must
    # they be.
    place = place_of(dist.get_rank(), strategy)
    initialised = strategy.zero_stage < 3 or place.data == place.sequence == 0
    model = _model(recipe, say, reads=not resumes, initialised=initialised)
    mpu = sequence.split(model, strategy) if strategy.sequence_parallel_size > 1 else None
    models.checkpoint_layers(model, strategy.activation_checkpointing, dropout=recipe.dropout)
    wrapped: nn.Module
    if strategy.pipeline_parallel_size > 1:
        wrapped = pipeline.stage_of(model, recipe, strategy)
    else:
        wrapped = models.WithLoss(model, loss_kernel=strategy.loss_kernel)
    optimizer.require_kernel(recipe, strategy)
    if strategy.tensor_parallel_size > 1:
        tensor.split(wrapped, recipe.shape, config, initialised=initialised, dropout=recipe.dropout)
    what = _stepped(recipe, strategy, wrapped)
    if strategy.zero_stage == 3:
        partition(wrapped, recipe, config, initialised=initialised)
    engine, *_ = deepspeed.initialize(model=wrapped, config=config, mpu=mpu, **what)
    if strategy.zero_stage == 0 and (pipeline.is_pipelined(engine) or engine.has_moe_layers):
        # Its own goes by the norm of the first stage's gradients, or by the mean of the norms of ranks that have other
        # experts (0.19.8, runtime/utils.py:393): docs/upstream.
        engine.clip_fp32_gradients = partial(_clip, engine)
    layout.require_aligned_shards(engine.optimizer)
    if "optimizer" in what:
        optimizer.attach(engine.basic_optimizer, engine)
    return engine


def _stepped(recipe: Recipe, strategy: Strategy, module: nn.Module) -> dict[str, Any]:
    """What deepspeed.initialize is given to step: an optimizer of ours, or the parameters for one by the ds_config."""
    if strategy.expert_parallel_size > 1:
        # Made once DeepSpeed has put each rank's own experts in the place of all.
        if not OPTIMIZERS[recipe.optimizer.name].named_in_ds_config:
            return {"optimizer": lambda _: optimizer.make(recipe.optimizer, module)}
        return {"model_parameters": optimizer.named(optimizer.parameter_groups(module, recipe.optimizer.weight_decay))}
    ours = optimizer.make(recipe.optimizer, module)
    if ours is not None:
        return {"optimizer": ours}
    return {"model_parameters": optimizer.parameter_groups(module, recipe.optimizer.weight_decay)}


def _model(recipe: Recipe, say: Callable[[str], None], *, reads: bool, initialised: bool) -> PreTrainedModel:
    """The model that the recipe starts from, `initialised` where this rank's weights are to be the engine's.

    All ranks raise what one of them cannot read.
    """
    if not (reads and recipe.weights):
        return models.build(recipe.shape, dropout=recipe.dropout, seed=recipe.seed, initialised=initialised)
    model, problem = None, None
    if initialised:
        try:
            model, said = models.pretrained(recipe.shape, recipe.weights, dropout=recipe.dropout, seed=recipe.seed)
            say(said)
        except ScaleError as error:
            problem = error
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, (problem.message, problem.hint) if problem else None)
    if found := next((each for each in everyones if each), None):
        message, hint = found
        raise ScaleError(message, hint=hint)
    return model or models.build(recipe.shape, dropout=recipe.dropout, initialised=False)


def partition(module: nn.Module, recipe: Recipe, config: dict[str, Any], *, initialised: bool) -> None:
    """Shards the parameters of a module on the host, one at a time, as ZeRO-3 wants them.

    Left to itself deepspeed.initialize moves the whole model to the device first (0.19.8, runtime/engine.py:2094),
    which a model that needs ZeRO-3 may not fit.
    """
    dtype = DTYPES[recipe.precision]
    for parameter in module.parameters():
        # What was never written is not read either: that would give it memory.
        parameter.data = parameter.data.to(dtype) if initialised else torch.empty_like(parameter.data, dtype=dtype)
    shares = groups.get_data_parallel_group() if parts.size() > 1 else dist.group.WORLD
    deepspeed.zero.Init(module=module, data_parallel_group=shares, config_dict_or_path=config)
    if dist.get_world_size(shares) > 1:
        for buffer in module.buffers():  # of which it takes no care
            moved = buffer.to(get_accelerator().current_device_name())  # where the process group can reach it
            dist.broadcast(moved, group=shares, group_src=0)
            buffer.copy_(moved)


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
        found = _stage_0_norm(engine)
        _step(engine)
        return found
    scale = loss_scale(engine)
    try:
        _step(engine)
    except Exception as error:  # 0.19.8, runtime/fp16/loss_scaler.py:258 raises no type of its own
        if "loss scale already at minimum" in str(error):
            raise LossScaleAtFloor(
                f"the loss scale is at its floor of {scale:g} and gradients still overflow"
            ) from None
        raise
    found = engine.get_global_grad_norm()
    return found * loss_scale(engine) / scale if engine.zero_optimization_stage() == 3 else found


def _step(engine: Any) -> None:
    """The update of the weights by what was accumulated, or what DeepSpeed does instead."""
    if pipeline.is_pipelined(engine):
        engine._exec_optimizer_step()
    else:
        engine.step()


def _stage_0_norm(engine: Any) -> torch.Tensor:
    """The global gradient norm where each rank has the whole gradient of what it has of the model.

    What several ranks have is counted on one: a weight that is on two stages, what tensor parallelism does not cut.
    """
    present = [p for p in engine.module.parameters() if p.grad is not None and not pipeline.is_copy(p)]
    own = _squares([p for p in present if parts.counted_here(p) and not is_moe_param(p)], engine.device)
    if pipeline.is_pipelined(engine):
        dist.all_reduce(own, group=engine.grid.get_pipe_parallel_group())
    elif parts.size() > 1:
        dist.all_reduce(own, group=groups.get_tensor_model_parallel_group())
    if experts := [p for p in present if is_moe_param(p)]:
        theirs = _squares(experts, engine.device)
        dist.all_reduce(theirs, group=groups._get_expert_parallel_group(experts[0].group_name))
        own = own + theirs
    return own.sqrt()


def _squares(parameters: list[nn.Parameter], device: torch.device) -> torch.Tensor:
    """The square of their gradients' norm, in fp32."""
    norms = [norm(parameter.grad) for parameter in parameters]
    return norm(torch.stack(norms)).square() if norms else torch.zeros((), device=device)


def _clip(engine: Any) -> None:
    """Scales gradients whose global norm is too large, as torch does."""
    torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), engine.gradient_clipping(), _stage_0_norm(engine))


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
            shown = [(wrapper, "step", None)]
            if not pipeline.is_pipelined(engine):  # whose own clipping stands in that place, and harms nothing
                shown.append((engine, "clip_fp32_gradients", None))
    scaler = vars(wrapper.loss_scaler) if engine.fp16_enabled() else {}
    before = dict(scaler)
    scaler |= {"cur_hysteresis": 2} if scaler else {}  # so that a scale at its floor is no error
    standing = [vars(owner).get(name) for owner, name, _ in shown]
    for owner, name, answer in shown:
        setattr(owner, name, partial(_answered, answer))
    try:
        _step(engine)
    finally:
        for (owner, name, _), own in zip(shown, standing, strict=True):
            if own is None:
                delattr(owner, name)
            else:  # a clipping of ours
                setattr(owner, name, own)
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
