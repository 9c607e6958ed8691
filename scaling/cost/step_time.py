"""Seconds per optimizer step: arithmetic, memory traffic, communication, offload; and what follows for a whole run.

A roofline in eight terms: each is a quantity over the hardware's own rate, times a coefficient that says how far from
it training stays. The coefficients are few and shared; `scale validate` holds them against published runs.

Alphabet: T sequence, D hidden, L layers, W data-parallel ranks.
"""

from dataclasses import dataclass, fields

from scaling.cost.job import Job
from scaling.cost.memory import accumulation_bytes, element_bytes, layer_saved_elements, loss_bytes, offload_share
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
_SHARED = {"memory": 2.7, "optimizer": 2.15, "link": 1.1, "network": 0.55, "layers": 1.57}
_FITTED = {
    "a100-40gb": Terms(matmul=1.19, attention=3.09, **_SHARED),
    "a100-80gb": Terms(matmul=1.16, attention=3.12, **_SHARED),
    "h100": Terms(matmul=1.35, attention=5.49, **_SHARED),
}
# For a GPU without published runs: how far the three above stay from their measured matmul ceiling.
_MATMUL_OVER_CEILING, _ATTENTION_OVER_CEILING = 1.04, 3.3
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
    tokens = strategy.micro_batch_size * job.seq_length  # of one micro step on one data-parallel rank
    split = strategy.model_parallel_size * strategy.sequence_parallel_size
    width = element_bytes(job.precision)
    again = recompute_terms(job, strategy, cluster)
    recomputes = strategy.activation_checkpointing == "full"
    busy = steps * pipeline_stretch(strategy)  # micro steps' worth of time, the pipeline's idle ones included

    matmul_flops = tokens * shape.flops_per_token(0, predicted_fraction=job.predicted_fraction) / split
    # Flash attention's backward makes the scores again: 5 matmuls to the forward's 2.
    attention_flops = 3.5 * attention_forward_flops(job, tokens) / split
    # Every saved element is written and read forward, read and its gradient written backward.
    cut, uncut = layer_saved_elements(shape, profile)
    uncut_by = strategy.tensor_parallel_size if strategy.tensor_parallel_sequences else 1
    layers = shape.num_layers / strategy.pipeline_parallel_size
    saved = tokens / strategy.sequence_parallel_size * layers * (cut / strategy.tensor_parallel_size + uncut / uncut_by)
    moved = (6 if recomputes else 4) * saved * width + 3 * loss_bytes(job, strategy, profile)
    share = shape.num_params / strategy.model_parallel_size / (strategy.shards if strategy.zero_stage >= 1 else 1)
    offloaded = strategy.offload_optimizer != "none"
    # The optimizer reads and writes master, two moments and a gradient (28 bytes) and writes the parameter.
    link, network = communication(job, strategy, cluster)
    return Terms(
        matmul=busy * matmul_flops / peak + again.matmul,
        attention=busy * attention_flops / peak + again.attention,
        memory=busy * moved / gpu.memory_bytes_per_s,
        optimizer=0.0 if offloaded else share * (28 + width) / gpu.memory_bytes_per_s,
        link=link,
        network=network,
        layers=busy * layers * 1e-3,
        offload=offload_s(job, strategy, cluster, profile),
    )


def offload_s(job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED) -> float:
    """Seconds of a step's traffic with host and NVMe, and of the CPU's Adam, with nothing hidden behind compute.

    deepspeed 0.19.8 (stage3.py partition_grads, stage_1_and_2.py async_accumulate_grad_in_cpu_via_gpu): a gradient
    goes down PCIe after the first micro step, up and down again at each further one, and down in fp32 at the last;
    new parameters come up. Offloaded parameters come up for every forward and every backward, and go down only where
    the optimizer is on the device. Adam on the host moves 28 bytes a parameter. NVMe reads all four states and
    writes them, and reads the parameters as often as they come up. A node's ranks share its memory and its drives.
    """
    width, steps = element_bytes(job.precision), strategy.gradient_accumulation_steps
    summed = accumulation_bytes(strategy, job.precision, profile) if strategy.zero_stage == 3 else width
    pcie = host = nvme = 0.0  # bytes per parameter of a rank's share
    if strategy.offload_optimizer != "none":
        pcie += (2 * steps - 1) * summed + 4
        host += 28
        nvme += 2 * 16 if strategy.offload_optimizer == "nvme" else 0
    if strategy.offload_param != "none":
        pcie += 2 * steps * width
        nvme += (2 * steps + 1) * width if strategy.offload_param == "nvme" else 0
    if (strategy.offload_optimizer == "none") != (strategy.offload_param == "none"):
        pcie += width  # what was updated on one side is needed on the other
    share = offload_share(job, strategy)
    of_node = share * cluster.gpus_per_node * (host / _HOST_BYTES_PER_S + nvme / cluster.nvme_bytes_per_s)
    return share * pcie / _PCIE_BYTES_PER_S + of_node


def pipeline_stretch(strategy: Strategy) -> float:
    """Time over busy time of a pipeline: 1 + (p - 1) / (m v) (Narayanan et al. 2021, section 2.2)."""
    p, v = strategy.pipeline_parallel_size, strategy.virtual_pipeline_size
    return 1 + (p - 1) / (strategy.gradient_accumulation_steps * v)


def recompute_terms(job: Job, strategy: Strategy, cluster: Cluster) -> Terms:
    """What full checkpointing adds to `matmul` and `attention`: the layers' forward once more."""
    nothing = dict.fromkeys((field.name for field in fields(Terms)), 0.0)
    if strategy.activation_checkpointing != "full":
        return Terms(**nothing)
    tokens = strategy.micro_batch_size * job.seq_length * strategy.gradient_accumulation_steps
    shared = tokens * pipeline_stretch(strategy) / strategy.model_parallel_size / strategy.sequence_parallel_size
    peak = cluster.accelerator.peak_flops(job.precision)
    layers = 2 * shared * job.shape.num_layers * job.shape.layer_matmul_params
    return Terms(**nothing | {"matmul": layers / peak, "attention": attention_forward_flops(job, shared) / peak})


def attention_forward_flops(job: Job, tokens: float) -> float:
    """Scores and values, 4 L D T per token; half of that under a causal mask, whose other half flash attention skips.

    The MFU convention counts the whole square.
    """
    square = 4 * job.shape.num_layers * job.shape.hidden_size * job.seq_length * tokens
    return square / 2 if job.causal else square


def communication(job: Job, strategy: Strategy, cluster: Cluster) -> tuple[float, float]:
    """Seconds of an optimizer step's traffic (within a node, between nodes) at the links' own rates.

    Ranks are numbered tensor parallel first, then sequence, data and pipeline parallel, so that the chattiest group
    stays in a node. Tensor parallelism all-reduces a layer's activations twice forward and twice backward (and twice
    more where the forward is made again); Ulysses sends queries, keys, values and outputs all-to-all, forward and
    backward; a pipeline passes one activation on, forward and backward.
    """
    gpu, per_node = cluster.accelerator, cluster.gpus_per_node
    tp, sp, pp = strategy.tensor_parallel_size, strategy.sequence_parallel_size, strategy.pipeline_parallel_size
    steps = strategy.gradient_accumulation_steps
    activation = strategy.micro_batch_size * job.seq_length / sp * job.shape.hidden_size * element_bytes(job.precision)
    layers = job.shape.num_layers / pp
    passes = 6 if strategy.activation_checkpointing == "full" else 4
    link = network = 0.0
    for volume, inside, size in (
        (steps * layers * passes * 2 * activation, 1, tp),
        (steps * layers * 2 * passes * activation, tp, sp),
        (communication_bytes(job, strategy) / strategy.model_parallel_size, tp, strategy.shards),
    ):
        # A ring of `size` ranks that stand `inside` apart: so many of them share a node.
        together = min(size, max(1, per_node // inside))
        nodes = size // together
        link += volume * (together - 1) / together / cluster.link_bytes_per_s(together)
        network += volume * (nodes - 1) / nodes / (gpu.network_bytes_per_s * together)
    if pp > 1:
        network += steps * 2 * activation / gpu.network_bytes_per_s
    return link, network


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
