"""How a ds_config spells the parallel sizes beside data parallelism: written here, and read back here."""

from typing import Any

from scaling.ds_config.tensor import partition_config
from scaling.errors import InputError
from scaling.plan.layouts import Sizes
from scaling.shape import Shape
from scaling.strategy import Strategy

KEYS = {"tensor_parallel", "pipeline", "sequence_parallel_size", "expert_parallel"}


def blocks(shape: Shape, strategy: Strategy) -> dict[str, Any]:
    """The keys for the sizes above 1."""
    keys: dict[str, Any] = {}
    if strategy.tensor_parallel_size > 1:
        keys["tensor_parallel"] = {
            "autotp_size": strategy.tensor_parallel_size,
            "partition_config": partition_config(shape),
        }
    if strategy.pipeline_parallel_size > 1:
        keys["pipeline"] = {"stages": strategy.pipeline_parallel_size}
    if strategy.sequence_parallel_size > 1:
        keys["sequence_parallel_size"] = strategy.sequence_parallel_size
    if strategy.expert_parallel_size > 1:
        keys["expert_parallel"] = _expert_parallel(shape, strategy)
    return keys


def _expert_parallel(shape: Shape, strategy: Strategy) -> dict[str, Any]:
    """AutoEP, told how transformers 5.23.0 routes in its Mixtral: no token dropped, and no loss for balance.

    DeepSpeed's own preset for Mixtral breaks off with that transformers (docs/upstream), so each part is named.
    """
    return {
        "enabled": True,
        "autoep_size": strategy.expert_parallel_size,
        "expert_tensor_parallel_size": 1,
        # scaling.models.WithLoss holds the model under one more name than AutoEP looks for.
        "moe_layer_pattern": r"model\.model\.layers\.\d+\.mlp",
        "router_pattern": "gate",
        "expert_pattern": "experts",
        "expert_w1": "gate_up_proj",
        "expert_w2": "down_proj",
        "expert_w3": None,
        "expert_activation": "swiglu",
        "top_k": shape.experts_per_token,
        "score_func": "softmax",
        "score_apply": "post",
        "route_norm": True,
        "route_scale": 1.0,
        "routed_scaling_factor": 1.0,
        "load_balance_coeff": None,
        "combine_impl": "weighted_sum",
        "use_grouped_mm": True,
    }


def sizes(config: dict[str, Any]) -> Sizes:
    """What a configuration asks for. Raises InputError for what is not a size."""
    return Sizes(
        tensor=_size(config, "tensor_parallel", "autotp_size"),
        pipeline=_size(config, "pipeline", "stages"),
        sequence=_size(config, "sequence_parallel_size"),
        expert=_size(config, "expert_parallel", "autoep_size"),
    )


def _size(config: dict[str, Any], *path: str) -> int:
    found: Any = config
    for depth, key in enumerate(path):
        if not isinstance(found, dict):
            raise InputError(
                ".".join(path[:depth]), found, "is not an object", hint=f'write "{path[depth - 1]}": {{...}}'
            )
        found = found.get(key, 1 if depth == len(path) - 1 else {})
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise InputError(".".join(path), found, "is not a whole number of at least 1")
    return found
