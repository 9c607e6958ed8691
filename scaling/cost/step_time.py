"""Seconds per optimizer step: arithmetic, memory traffic, communication, offload; and what follows for a whole run.

A roofline with few constants. The efficiencies are from a six-term fit to 209 published runs of llm-foundry's
benchmark table (MPT 125M to 70B on A100 and H100); communication overlap is an assumption and marked so.
"""

from dataclasses import dataclass

from scaling.cost.memory import element_bytes, layer_saved_elements, loss_bytes
from scaling.hardware import Cluster
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.units import SECONDS_PER_DAY

# Shares of the measured matmul ceiling and of the memory bandwidth that training reaches. The fit's inverse
# efficiencies against the peak are 1.43 / 1.21 / 1.22 for matmuls (H100, A100-80, A100-40), 2.76 / 1.57 / 1.60 for
# attention, 3.72 / 1.80 / 2.91 for memory traffic; these are the means, against the ceiling where there is one.
_MATMUL_FRACTION = 0.92
_ATTENTION_FRACTION = 0.64
_BANDWIDTH_FRACTION = 0.39
# A CPU's 16-bit elementwise kernels stay further below a plain copy: docs/log.md, 2026-11-24.
_CPU_BANDWIDTH_FRACTION = 0.22
# Assumed: communication hides behind this much of the arithmetic, and a tenth of it never does.
_OVERLAP_FRACTION = 0.8
_EXPOSED_FRACTION = 0.1
# Assumed: kernel launches of one layer, forward and backward, when nothing else bounds it.
_LAYER_OVERHEAD_S = 1.5e-4
_CPU_LAYER_OVERHEAD_S = 1.5e-3  # Python, hooks and small kernels: docs/log.md, 2026-11-24
# Assumed: host bandwidth of a two-socket node that the CPU optimizer shares, and PCIe 4.0 x16 one way per GPU.
_HOST_BYTES_PER_S = 150e9
_PCIE_BYTES_PER_S = 25e9


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """`step_s` is the sum of the parts; communication counts only as far as it is not hidden.

    `mfu_fraction` is model FLOPs (no recomputation) over the accelerators' dense peak.
    """

    step_s: float
    compute_s: float
    recompute_s: float
    memory_bound_s: float
    communication_s: float
    optimizer_s: float
    tokens_per_second: float
    mfu_fraction: float
    train_days: float


def step_time(recipe: Recipe, strategy: Strategy, cluster: Cluster) -> TimeEstimate:
    """The estimate for one optimizer step of `recipe` by `strategy` on `cluster`."""
    shape, gpu = recipe.shape, cluster.accelerator
    W, steps = strategy.data_parallel_size, strategy.gradient_accumulation_steps
    T = recipe.data.seq_length
    tokens = strategy.micro_batch_size * T  # of one micro step on one rank
    width = element_bytes(recipe.precision)

    overhead = _CPU_LAYER_OVERHEAD_S if cluster.is_cpu else _LAYER_OVERHEAD_S
    bandwidth = gpu.memory_bytes_per_s * (_CPU_BANDWIDTH_FRACTION if cluster.is_cpu else _BANDWIDTH_FRACTION)
    ceiling = gpu.peak_flops(recipe.precision) * gpu.matmul_fraction
    attention_flops = 12 * shape.num_layers * shape.hidden_size * T * tokens
    if recipe.task == "causal-lm":
        attention_flops //= 2  # flash attention skips the masked half; the MFU convention counts it
    matmul_flops = tokens * shape.flops_per_token(0, predicted_fraction=recipe.predicted_fraction)
    compute = matmul_flops / (ceiling * _MATMUL_FRACTION) + attention_flops / (ceiling * _ATTENTION_FRACTION)
    # Full checkpointing runs the layers' forward, a third of their work, once more.
    layers = 6 * tokens * shape.num_layers * shape.layer_matmul_params / (ceiling * _MATMUL_FRACTION)
    again = strategy.activation_checkpointing == "full"
    recompute = again * (layers + attention_flops / (ceiling * _ATTENTION_FRACTION)) / 3

    # Every saved element is written and read forward, read and its gradient written backward.
    saved = tokens * shape.num_layers * layer_saved_elements(shape) * width
    moved = (4 + again) * saved + 3 * loss_bytes(recipe, strategy)
    memory_bound = moved / bandwidth + shape.num_layers * overhead

    busy = steps * (compute + recompute + memory_bound)
    transfer = communication_bytes(recipe, strategy) / cluster.collective_bytes_per_s
    communication = max(transfer * _EXPOSED_FRACTION, transfer - _OVERLAP_FRACTION * busy) if W > 1 else 0.0

    share = shape.num_params / (W if strategy.zero_stage >= 1 else 1)
    if strategy.offload_optimizer == "cpu":
        # The CPU optimizer reads and writes master, two moments and a gradient (28 bytes); gradients go down, new
        # parameters up.
        node_share = share * cluster.gpus_per_node
        optimizer = node_share * 28 / _HOST_BYTES_PER_S + share * (4 + 2) / _PCIE_BYTES_PER_S
    else:
        optimizer = share * (28 + width) / bandwidth

    step_s = busy + communication + optimizer
    tokens_per_second = recipe.tokens_per_step / step_s
    flops = shape.flops_per_token(T, predicted_fraction=recipe.predicted_fraction) * tokens_per_second
    return TimeEstimate(
        step_s=step_s,
        compute_s=steps * compute,
        recompute_s=steps * recompute,
        memory_bound_s=steps * memory_bound,
        communication_s=communication,
        optimizer_s=optimizer,
        tokens_per_second=tokens_per_second,
        mfu_fraction=flops / (cluster.world_size * gpu.peak_flops(recipe.precision)),
        train_days=recipe.num_steps * step_s / SECONDS_PER_DAY,
    )


def communication_bytes(recipe: Recipe, strategy: Strategy) -> float:
    """Bytes that one rank sends in an optimizer step over a ring.

    An all-reduce moves 2 (W - 1) / W of its tensor, a reduce-scatter or all-gather half of that. Stages 0 and 1 reduce
    once a step (stage 1 all-reduces, in fp32 where it accumulates), stages 2 and 3 every micro step; stage 3
    gathers the parameters for each forward and each backward. (Rajbhandari et al. 2020, section 7.)
    """
    P, W, steps = recipe.shape.num_params, strategy.data_parallel_size, strategy.gradient_accumulation_steps
    ring = (W - 1) / W
    width = element_bytes(recipe.precision)
    accumulated = 4 if steps > 1 else width
    match strategy.zero_stage:
        case 0:
            return 2 * ring * P * width
        case 1:
            return 2 * ring * P * accumulated + ring * P * width
        case 2:
            return steps * ring * P * width + ring * P * width
        case _:
            return steps * 3 * ring * P * width
