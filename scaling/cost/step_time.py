"""Seconds per optimizer step: arithmetic, memory traffic, communication, offload; and what follows for a whole run.

A roofline in eight terms: each is a quantity over the hardware's own rate, times a coefficient that says how far from
it training stays. The coefficients are few and shared; `scale validate` holds them against published runs.

Alphabet: T sequence, D hidden, L layers, W data-parallel ranks.
"""

from dataclasses import dataclass, fields

from scaling.cost.job import Job
from scaling.cost.memory import element_bytes, layer_saved_elements, loss_bytes
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.hardware import Accelerator, Cluster
from scaling.strategy import Strategy
from scaling.units import SECONDS_PER_DAY

# Assumed: host bandwidth of a two-socket node that the CPU optimizer shares, and PCIe 4.0 x16 one way per GPU.
_HOST_BYTES_PER_S = 150e9
_PCIE_BYTES_PER_S = 25e9


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One value per term of the roofline: ideal seconds of a step, or the coefficients that scale them.

    `matmul` and `attention` are FLOPs over the dense peak, recomputation included; `memory` and `optimizer` bytes over
    the memory bandwidth; `link` and `network` bytes over the links within and between nodes (a coefficient below 1 is
    overlap); `layers` milliseconds per layer and micro step, for launches and gathers; `offload` host and PCIe.
    """

    matmul: float
    attention: float
    memory: float
    optimizer: float
    link: float
    network: float
    layers: float
    offload: float = 1.0


# Least squares on relative errors of 129 published runs of llm-foundry (MPT 125M to 70B, 8 to 512 GPUs, A100-40,
# A100-80, H100), with a weak pull to round values; leaving each model out, the median error is 3.6 %. Matmul and
# attention are per GPU, against its dense peak; the others are shared.
_SHARED = {"memory": 1.2, "optimizer": 1.7, "link": 0.8, "network": 0.4, "layers": 2.7}
_FITTED = {
    "a100-40gb": Terms(matmul=1.32, attention=3.14, **_SHARED),
    "a100-80gb": Terms(matmul=1.26, attention=3.15, **_SHARED),
    "h100": Terms(matmul=1.50, attention=5.6, **_SHARED),
}
# For a GPU without published runs: how far the three above stay from their measured matmul ceiling.
_MATMUL_OVER_CEILING, _ATTENTION_OVER_CEILING = 1.16, 3.3
# A CPU's 16-bit elementwise kernels stay far below a plain copy, and a layer costs Python and hooks: docs/log.md.
_CPU = Terms(matmul=1.1, attention=1.6, memory=4.5, optimizer=4.5, link=1.0, network=1.0, layers=1.5)


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


def step_time(
    job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED, coefficients: Terms | None = None
) -> TimeEstimate:
    """The estimate for one optimizer step of `job` by `strategy` on `cluster`."""
    c = coefficients or coefficients_of(cluster.accelerator)
    ideal = ideal_terms(job, strategy, cluster, profile)
    again = recompute_terms(job, strategy, cluster)
    parts = {
        "compute_s": c.matmul * (ideal.matmul - again.matmul) + c.attention * (ideal.attention - again.attention),
        "recompute_s": c.matmul * again.matmul + c.attention * again.attention,
        "memory_bound_s": c.memory * ideal.memory + c.layers * ideal.layers,
        "communication_s": c.link * ideal.link + c.network * ideal.network,
        "optimizer_s": c.optimizer * ideal.optimizer + c.offload * ideal.offload,
    }
    step_s = sum(parts.values())
    tokens_per_second = strategy.global_batch_size * job.seq_length / step_s
    flops = job.shape.flops_per_token(job.seq_length, predicted_fraction=job.predicted_fraction) * tokens_per_second
    return TimeEstimate(
        **parts,
        step_s=step_s,
        tokens_per_second=tokens_per_second,
        mfu_fraction=flops / (cluster.world_size * cluster.accelerator.peak_flops(job.precision)),
        train_days=job.num_steps * step_s / SECONDS_PER_DAY,
    )


def coefficients_of(accelerator: Accelerator) -> Terms:
    """The coefficients for an accelerator: its own fit, a CPU's, or the fitted GPUs' distance from their ceiling."""
    if accelerator.name == "cpu":
        return _CPU
    if accelerator.name in _FITTED:
        return _FITTED[accelerator.name]
    over_peak = 1 / accelerator.matmul_fraction
    return Terms(matmul=_MATMUL_OVER_CEILING * over_peak, attention=_ATTENTION_OVER_CEILING * over_peak, **_SHARED)


def ideal_terms(job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED) -> Terms:
    """Each term of one optimizer step at the hardware's own rate, in seconds (`layers` in milliseconds' worth)."""
    shape, gpu = job.shape, cluster.accelerator
    peak, steps = gpu.peak_flops(job.precision), strategy.gradient_accumulation_steps
    tokens = strategy.micro_batch_size * job.seq_length  # of one micro step on one rank
    width = element_bytes(job.precision)
    again = recompute_terms(job, strategy, cluster)
    recomputes = strategy.activation_checkpointing == "full"

    matmul_flops = tokens * shape.flops_per_token(0, predicted_fraction=job.predicted_fraction)
    # Flash attention's backward makes the scores again: 5 matmuls to the forward's 2.
    attention_flops = 3.5 * attention_forward_flops(job, tokens)
    # Every saved element is written and read forward, read and its gradient written backward.
    saved = tokens * shape.num_layers * sum(layer_saved_elements(shape, profile)) * width
    moved = (6 if recomputes else 4) * saved + 3 * loss_bytes(job, strategy, profile)
    share = shape.num_params / (strategy.shards if strategy.zero_stage >= 1 else 1)
    offloaded = strategy.offload_optimizer == "cpu"
    # The optimizer reads and writes master, two moments and a gradient (28 bytes) and writes the parameter. On the
    # host, a node's ranks share the bandwidth; gradients go down PCIe and new parameters up.
    host = share * cluster.gpus_per_node * 28 / _HOST_BYTES_PER_S + share * (4 + 2) / _PCIE_BYTES_PER_S

    per_node, nodes = cluster.gpus_per_node, cluster.num_nodes
    sent = communication_bytes(job, strategy)
    return Terms(
        matmul=steps * matmul_flops / peak + again.matmul,
        attention=steps * attention_flops / peak + again.attention,
        memory=steps * moved / gpu.memory_bytes_per_s,
        optimizer=0.0 if offloaded else share * (28 + width) / gpu.memory_bytes_per_s,
        link=sent * (per_node - 1) / per_node / gpu.link_bytes_per_s,
        network=sent * (nodes - 1) / nodes / (gpu.network_bytes_per_s * per_node),
        layers=steps * shape.num_layers * 1e-3,
        offload=host if offloaded else 0.0,
    )


def recompute_terms(job: Job, strategy: Strategy, cluster: Cluster) -> Terms:
    """What full checkpointing adds to `matmul` and `attention`: the layers' forward once more."""
    nothing = dict.fromkeys((field.name for field in fields(Terms)), 0.0)
    if strategy.activation_checkpointing != "full":
        return Terms(**nothing)
    tokens = strategy.micro_batch_size * job.seq_length * strategy.gradient_accumulation_steps
    peak = cluster.accelerator.peak_flops(job.precision)
    layers = 2 * tokens * job.shape.num_layers * job.shape.layer_matmul_params
    return Terms(**nothing | {"matmul": layers / peak, "attention": attention_forward_flops(job, tokens) / peak})


def attention_forward_flops(job: Job, tokens: float) -> float:
    """Scores and values, 4 L D T per token; half of that under a causal mask, whose other half flash attention skips.

    The MFU convention counts the whole square.
    """
    square = 4 * job.shape.num_layers * job.shape.hidden_size * job.seq_length * tokens
    return square / 2 if job.causal else square


def communication_bytes(job: Job, strategy: Strategy) -> float:
    """Bytes of tensors that go over rings in an optimizer step; a rank sends (W - 1) / W of them.

    An all-reduce moves its tensor twice, a reduce-scatter or all-gather once. Stages 0 and 1 reduce once a step (stage
    1 all-reduces, in fp32 where it accumulates), stages 2 and 3 every micro step; stage 3 gathers the parameters for
    each forward and each backward. (Rajbhandari et al. 2020, section 7.)
    """
    P, steps = job.shape.num_params, strategy.gradient_accumulation_steps
    width = element_bytes(job.precision)
    accumulated = 4 if steps > 1 else width
    if strategy.shards == 1:
        return 0
    match strategy.zero_stage:
        case 0:
            return 2 * P * width
        case 1:
            return 2 * P * accumulated + P * width
        case 2:
            return steps * P * width + P * width
        case _:
            return steps * 3 * P * width
