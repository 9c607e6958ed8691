"""The optimizer of a recipe: the parameters by how they decay, and what DeepSpeed is handed instead of making it."""

import math
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
from torch import nn
from transformers.pytorch_utils import Conv1D

from scaling import optim
from scaling import recipe as recipes
from scaling.errors import InputError
from scaling.optimizers import OPTIMIZERS
from scaling.recipe import Recipe
from scaling.strategy import Strategy


def make(asked: recipes.Optimizer, module: nn.Module) -> torch.optim.Optimizer | None:
    """The optimizer to hand to deepspeed.initialize; None where DeepSpeed makes it, by the ds_config."""
    if OPTIMIZERS[asked.name].named_in_ds_config:
        return None
    if isinstance(asked, recipes.Muon):
        return _muon(asked, module)
    ours = getattr(optim, asked.name.capitalize())
    arguments = asked.model_dump(exclude={"name", "weight_decay"})
    return ours(parameter_groups(module, asked.weight_decay), **arguments)


def attach(ours: torch.optim.Optimizer, engine: Any) -> None:
    """Tells an optimizer of scaling.optim how `engine` cuts its tensors; DeepSpeed's Muon is told by its wrappers."""
    if hasattr(ours, "attach"):
        ours.attach(engine)


def require_kernel(recipe: Recipe, strategy: Strategy) -> None:
    """Raises InputError where DeepSpeed would break off: no kernel for this device."""
    row = OPTIMIZERS[recipe.optimizer.name]
    if row.needs_gpu and strategy.offload_optimizer == "none" and get_accelerator().device_name() == "cpu":
        raise InputError(
            "optimizer", recipe.optimizer.name, f"has no kernel that runs on a CPU: {row.implementation}",
            hint="offload the optimizer to the CPU",
        )  # fmt: skip


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, biases and norms do not (Devlin et al. 2018; Radford et al. 2019).

    Experts that are on some ranks alone are groups of their own, as DeepSpeed wants them.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    dimensions = [len(getattr(p, "ds_shape", p.shape)) for p in parameters]  # ZeRO-3 leaves a parameter none
    groups = [
        {"params": [p for p, d in zip(parameters, dimensions, strict=True) if d >= 2], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(parameters, dimensions, strict=True) if d < 2], "weight_decay": 0.0},
    ]
    if any(is_moe_param(p) for p in parameters):
        return split_params_into_different_moe_groups_for_optimizer(named(groups))
    return groups


def named(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`groups` with the names by which DeepSpeed splits experts off (0.19.8, moe/utils.py)."""
    return [{**group, "name": f"group {number}"} for number, group in enumerate(groups)]


def set_learning_rate(engine: Any, lr: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def _muon(asked: recipes.Muon, module: nn.Module) -> torch.optim.Optimizer:
    """DeepSpeed's Muon, made here: by a ds_config it takes for the layers' every matrix whose name has neither "embed"
    nor "lm_head" (0.19.8, __init__.py set_optimizer_flags), GPT-2's embeddings `wte` and `wpe` too.
    """
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    adam = {
        "use_muon": False, "lr": asked.adam_lr, "lr_ratio": asked.adam_lr / asked.lr, "betas": tuple(asked.adam_betas),
        "eps": asked.adam_eps,
    }  # fmt: skip
    # gram: the same polynomial as "standard", in fp16 where the device has it, three bits more than bf16.
    muon = {"use_muon": True, "momentum": asked.momentum, "ns_method": "gram"}
    groups: list[dict[str, Any]] = []
    ratios = _lengths_to_deepspeeds(module)
    for ratio in sorted(set(ratios.values())):
        matrices = [p for p in module.parameters() if ratios.get(p) == ratio]
        # The decay is lr x weight_decay, whatever the step's length.
        groups.append({
            "params": matrices, "lr": asked.lr * ratio, "lr_ratio": ratio, "weight_decay": asked.weight_decay / ratio,
            **muon,
        })  # fmt: skip
    for group in parameter_groups(module, asked.weight_decay):
        groups.append({**group, "params": [p for p in group["params"] if p not in ratios], **adam})
    for parameter in module.parameters():
        parameter.use_muon = parameter in ratios  # the mark by which DeepSpeed's wrappers know a matrix
    adamw = {"adam_optimizer": torch.optim.AdamW, "adam_optimizer_kwargs": {"fused": True}}
    return MuonWithAuxAdam([group for group in groups if group["params"]], **adamw)


def _lengths_to_deepspeeds(module: nn.Module) -> dict[nn.Parameter, float]:
    """The layers' matrices, each with the ratio of sqrt(max(1, outputs / inputs)) to what DeepSpeed takes for it.

    DeepSpeed reads outputs and inputs off the shape as nn.Linear has it; transformers' Conv1D, GPT-2's, is transposed.
    """
    found = {}
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            found[layer.weight] = 1.0
        elif isinstance(layer, Conv1D):
            inputs, outputs = layer.weight.shape
            found[layer.weight] = math.sqrt(max(1.0, outputs / inputs) / max(1.0, inputs / outputs))
    embedded = [layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)]  # a tied head's, too
    return {weight: ratio for weight, ratio in found.items() if all(weight is not other for other in embedded)}
