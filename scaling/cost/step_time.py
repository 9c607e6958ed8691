"""Seconds per optimizer step: arithmetic, memory traffic, communication, offload; and what follows for a whole run.

A roofline in eight terms: each is a quantity over the hardware's own rate, times a coefficient that says how far from
it training stays. The coefficients are few and shared; `scale validate` holds them against published runs.

Alphabet: T sequence, D hidden, L layers, W data-parallel ranks.
"""

from dataclasses import dataclass

from scaling.cost.activations import (
    chunks_loss,
    layer_saved_elements,
    logit_bytes,
    loss_tokens,
    scores_bytes_per_token,
)
from scaling.cost.job import Job
from scaling.cost.memory import offload_share
from scaling.cost.model_states import FP32_BYTES, Held, accumulation_bytes, element_bytes, held_parameters
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.hardware import Accelerator, Cluster
from scaling.strategy import LOSS_CHUNK_TOKENS, Strategy, layers_per_rank
from scaling.units import SECONDS_PER_DAY

# Assumed: host bandwidth of a two-socket node that the CPU optimizer shares, and PCIe 4.0 x16 one way per GPU.
_HOST_BYTES_PER_S = 150e9
_PCIE_BYTES_PER_S = 25e9


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One value per term of the roofline: ideal seconds of a step, or the coefficients that scale them.

    `matmul` is FLOPs over the measured matmul ceiling and the matmuls' own memory traffic, `attention` FLOPs over that
    ceiling, both with recomputation; `memory` and `optimizer` bytes over the memory bandwidth; `link` and `network`
    bytes over the links within and between nodes (a coefficient below 1 is overlap); `layers` milliseconds per layer
    and micro step, for launches and gathers; `offload` host and PCIe.
    """

    matmul: float
    attention: float
    memory: float
    optimizer: float
    link: float
    network: float
    layers: float
    offload: float = 1.0


# Fitted by benchmarks/fit_step_time.py to 129 published runs of llm-foundry (MPT 125M to 70B, 8 to 512 GPUs, A100-40,
# A100-80, H100); leaving each model out, the median error is 3.3 %. Matmul and attention are per GPU, the others
# shared.
_SHARED = {"memory": 2.32, "optimizer": 2.09, "link": 0.97, "network": 0.65, "layers": 1.18}
_FITTED = {
    "a100-40gb": Terms(matmul=1.00, attention=2.69, **_SHARED),
    "a100-80gb": Terms(matmul=0.99, attention=2.71, **_SHARED),
    "h100": Terms(matmul=1.05, attention=4.39, **_SHARED),
}
_UNFITTED = Terms(matmul=1.02, attention=2.9, **_SHARED)
# A CPU's 16-bit elementwise kernels stay far below a plain copy, and a layer costs Python and hooks: docs/log.md.
_CPU = Terms(matmul=1.1, attention=1.6, memory=4.5, optimizer=4.5, link=1.0, network=1.0, layers=1.5)


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """`step_s` is the sum of the parts; communication counts only as far as it is not hidden.

    `mfu_fraction` is model FLOPs over the accelerators' dense peak, `hfu_fraction` with those of recomputation.
    """

    step_s: float
    compute_s: float
    recompute_s: float
    memory_bound_s: float
    communication_s: float
    optimizer_s: float
    tokens_per_second: float
    mfu_fraction: float
    hfu_fraction: float
    train_days: float


def step_time(
    job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED, coefficients: Terms | None = None
) -> TimeEstimate:
    """The estimate for one optimizer step of `job` by `strategy` on `cluster`."""
    c = coefficients or coefficients_of(cluster.accelerator)
    ideal = ideal_terms(job, strategy, cluster, profile)
    matmul_again, attention_again = recompute(job, strategy, cluster.accelerator)
    again_s = c.matmul * matmul_again + c.attention * attention_again
    parts = {  # at the profile's pace
        "compute_s": c.matmul * ideal.matmul + c.attention * ideal.attention - again_s,
        "recompute_s": again_s,
        "memory_bound_s": c.memory * ideal.memory + c.layers * ideal.layers,
        "communication_s": c.link * ideal.link + c.network * ideal.network,
        "optimizer_s": c.optimizer * ideal.optimizer + c.offload * ideal.offload,
    }
    parts = {name: profile.time_scale * seconds for name, seconds in parts.items()}
    step_s = sum(parts.values())
    tokens_per_second = strategy.global_batch_size * job.seq_length / step_s
    peak = cluster.world_size * cluster.accelerator.peak_flops(job.precision)
    flops = job.shape.flops_per_token(job.seq_length, predicted_fraction=job.predicted_fraction)
    # The layers' forward once more: a third of what they take, attention's whole square as the convention has it.
    recomputed = job.shape.flops_per_token(job.seq_length, predicted_fraction=0.0) / 3
    recomputes = strategy.activation_checkpointing == "full"
    return TimeEstimate(
        **parts,
        step_s=step_s,
        tokens_per_second=tokens_per_second,
        mfu_fraction=flops * tokens_per_second / peak,
        hfu_fraction=(flops + recomputed * recomputes) * tokens_per_second / peak,
        train_days=job.num_steps * step_s / SECONDS_PER_DAY,
    )


def coefficients_of(accelerator: Accelerator) -> Terms:
    """The coefficients for an accelerator: its own fit, a CPU's, or the fitted GPUs' distance from their ceiling."""
    if accelerator.name == "cpu":
        return _CPU
    return _FITTED.get(accelerator.name, _UNFITTED)


def ideal_terms(job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED) -> Terms:
    """Each term of one optimizer step at the hardware's own rate, in seconds (`layers` in milliseconds' worth)."""
    gpu, eager = cluster.accelerator, job.attention == "eager"
    layers = layers_per_rank(job.shape, strategy)
    tokens = strategy.micro_batch_size * job.seq_length / strategy.sequence_parallel_size
    busy = busy_micro_steps(strategy)
    weights, scores = forward_s(job, strategy, gpu)
    # A matrix passes gradients on and has its own, unless it is frozen. Flash attention's backward makes the scores
    # again: 5 matmuls to the forward's 2.
    matmul = (2 if job.adapter else 3) * weights + head_s(job, strategy, gpu)
    attention = (3 if eager else 3.5) * scores
    matmul_again, attention_again = recompute(job, strategy, gpu)
    moved = layers * tokens * moved_bytes_per_token(job, strategy, profile) + loss_traffic_bytes(job, strategy, profile)
    # The optimizer reads and writes master, two moments and a gradient (28 bytes) and writes the parameter.
    whole, trained = held_parameters(job, strategy)
    share = trained.sharded(strategy) if strategy.zero_stage >= 1 else trained.total
    offloaded = strategy.offload_optimizer != "none"
    link, network = communication(job, strategy, cluster, whole, trained)
    return Terms(
        # Eager attention is plain matmuls, and runs at their pace.
        matmul=busy * (matmul + (attention if eager else 0.0)) + matmul_again,
        attention=busy * (0.0 if eager else attention) + attention_again,
        memory=busy * moved / gpu.memory_bytes_per_s,
        optimizer=0.0 if offloaded else share * (28 + element_bytes(job.precision)) / gpu.memory_bytes_per_s,
        link=link,
        network=network,
        layers=busy * layers * 1e-3,
        offload=offload_s(job, strategy, cluster, profile),
    )


def recompute(job: Job, strategy: Strategy, gpu: Accelerator) -> tuple[float, float]:
    """What full checkpointing adds to the terms `matmul` and `attention`: the layers' forward once more."""
    if strategy.activation_checkpointing != "full":
        return 0.0, 0.0
    weights, scores = forward_s(job, strategy, gpu)
    busy = busy_micro_steps(strategy)
    return (busy * (weights + scores), 0.0) if job.attention == "eager" else (busy * weights, busy * scores)


def busy_micro_steps(strategy: Strategy) -> float:
    """Micro steps' worth of time in a step: a pipeline's are stretched by its idle ranks."""
    return strategy.gradient_accumulation_steps * pipeline_stretch(strategy)


def offload_s(job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED) -> float:
    """Seconds of a step's traffic with host and NVMe, and of the CPU's Adam, with nothing hidden behind compute.

    deepspeed 0.19.8 (stage3.py partition_grads, stage_1_and_2.py async_accumulate_grad_in_cpu_via_gpu): a gradient
    goes down PCIe after the first micro step, up and down again at each further one, and down in fp32 at the last;
    new parameters come up. Offloaded parameters come up for every forward and every backward, and go down only where
    the optimizer is on the device. Adam on the host moves 28 bytes a parameter. NVMe reads all four states and
    writes them, and reads the parameters as often as they come up. A node's ranks share its memory and its drives.
    """
    if not strategy.offloads:
        return 0.0
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


def forward_s(job: Job, strategy: Strategy, gpu: Accelerator) -> tuple[float, float]:
    """Seconds of one micro step's forward through a rank's layers: (their matrices, attention's scores and values).

    A matrix multiplication takes its FLOPs at the ceiling and its memory traffic; the latter is what makes small and
    narrow ones slow.
    """
    tokens = strategy.micro_batch_size * job.seq_length
    split = strategy.model_parallel_size * strategy.sequence_parallel_size
    flops = layers_forward_flops(job, tokens) / split
    traffic = layers_per_rank(job.shape, strategy) * matmul_traffic_bytes(job, strategy)
    weights = flops / gpu.matmul_ceiling(job.matmul_precision or job.precision) + traffic / gpu.memory_bytes_per_s
    return weights, attention_forward_flops(job, tokens) / split / gpu.matmul_ceiling(job.precision)


def head_s(job: Job, strategy: Strategy, gpu: Accelerator) -> float:
    """Seconds of one micro step's logits, forward and backward, spread over the ranks; never in 8 bits."""
    tokens = strategy.micro_batch_size * job.seq_length
    everything = tokens * job.shape.flops_per_token(0, predicted_fraction=job.predicted_fraction)
    flops = everything - 3 * layers_forward_flops(job, tokens)
    return flops / strategy.model_parallel_size / strategy.sequence_parallel_size / gpu.matmul_ceiling(job.precision)


def layers_forward_flops(job: Job, tokens: float) -> float:
    """The layers' matrices, 2 per weight that a token meets; attention's scores and the head apart."""
    return 2 * tokens * job.shape.num_layers * (job.shape.active_matmul_params + job.shape.router_params)


def attention_forward_flops(job: Job, tokens: float) -> float:
    """Scores and values, 4 L N H T per token; half of that under a causal mask, whose other half flash attention skips.

    The MFU convention counts the whole square.
    """
    square = 4 * job.shape.num_layers * job.shape.query_size * job.seq_length * tokens
    return square / 2 if job.causal and job.attention == "flash" else square


def matmul_traffic_bytes(job: Job, strategy: Strategy) -> float:
    """What one layer's matmuls read and write forward, for a micro step on one rank: inputs, weights and outputs."""
    shape, tp, experts = job.shape, strategy.tensor_parallel_size, job.shape.experts_per_token
    tokens = strategy.micro_batch_size * job.seq_length / strategy.sequence_parallel_size
    whole = 2 * (1 + experts) * shape.hidden_size
    mlp = experts * (3 if shape.gated_mlp else 2) * shape.intermediate_size
    cut = 2 * shape.query_size + 2 * shape.key_value_size + mlp
    weights = shape.attention_matmul_params / tp + shape.num_experts * shape.expert_params / strategy.expert_split
    return (tokens * (whole + cut / tp) + weights) * element_bytes(job.precision)


def moved_bytes_per_token(job: Job, strategy: Strategy, profile: Profile) -> float:
    """Memory traffic of one layer for a token, forward and backward, matmuls' own apart.

    Every saved element is written and read forward, read and its gradient written backward (and the first two once
    more where the forward is made again). Casting to 8 bits or fewer reads each matmul's input and output gradient once
    more and writes a byte.
    """
    shape, tp = job.shape, strategy.tensor_parallel_size
    accesses = 6 if strategy.activation_checkpointing == "full" else 4
    cut, uncut = layer_saved_elements(job, profile)
    uncut_by = tp if strategy.tensor_parallel_sequences else 1
    moved = accesses * (cut / tp + uncut / uncut_by) * element_bytes(job.precision)
    if job.attention == "eager":
        moved += accesses * scores_bytes_per_token(job, strategy, profile)
    if job.matmul_precision in ("fp8", "fp4"):
        inputs = 2 * shape.hidden_size + shape.query_size + shape.intermediate_size
        gradients = inputs + 2 * shape.key_value_size + (shape.intermediate_size if shape.gated_mlp else 0)
        moved += 3 * (inputs + gradients) / tp
    return moved


def loss_traffic_bytes(job: Job, strategy: Strategy, profile: Profile) -> float:
    """Memory traffic of a micro step's loss: what it keeps of each logit, written and read, and read once more.

    A fused loss keeps its tiles on the chip. A chunked one adds each chunk's gradient of the head to the sum in fp32.
    """
    if job.fused_loss:
        return 0.0
    tokens, head = loss_tokens(job, strategy), job.shape.vocab_size / strategy.tensor_parallel_size
    moved = 3 * tokens * head * logit_bytes(job, profile)
    if chunks_loss(job, strategy):
        moved += (
            tokens / LOSS_CHUNK_TOKENS * head * job.shape.hidden_size * (2 * FP32_BYTES + element_bytes(job.precision))
        )
    return moved


def communication(job: Job, strategy: Strategy, cluster: Cluster, whole: Held, trained: Held) -> tuple[float, float]:
    """Seconds of an optimizer step's traffic (within a node, between nodes) at the links' own rates.

    Ranks are numbered tensor parallel first, then sequence, expert, data and pipeline parallel, so that the chattiest
    group stays in a node. Tensor parallelism all-reduces a layer's activations twice forward and twice backward.
    Ulysses sends queries, keys, values and outputs all-to-all, forward and backward; a ring passes keys and values
    from rank to rank, and their gradients back. Experts get their tokens and give them back, all-to-all. Where the
    forward is made again, so is its part. A pipeline passes one activation on, forward and backward.
    """
    shape, gpu, linked = job.shape, cluster.accelerator, cluster.linked_ranks
    tp, sp, pp = strategy.tensor_parallel_size, strategy.sequence_parallel_size, strategy.pipeline_parallel_size
    steps = strategy.gradient_accumulation_steps
    token = strategy.micro_batch_size * job.seq_length / sp * element_bytes(job.precision)  # bytes of one element each
    activation = token * shape.hidden_size
    layers = steps * layers_per_rank(shape, strategy)
    forwards = 2 if strategy.activation_checkpointing == "full" else 1
    queries, keys_values = token * shape.query_size / tp, token * 2 * shape.key_value_size / tp
    if strategy.sequence_parallelism == "ulysses":
        exchanged = (forwards + 1) * (2 * queries + keys_values)
    else:
        exchanged = (forwards + 2) * keys_values * sp
    link = network = 0.0
    for volume, inside, size in (
        (layers * (forwards + 1) * 2 * 2 * activation, 1, tp),
        (layers * exchanged, tp, sp),
        (layers * (forwards + 1) * 2 * shape.experts_per_token * activation / tp, tp, strategy.expert_parallel_size),
        (zero_bytes(job, strategy, whole.dense, trained.dense), tp, strategy.shards),
        (zero_bytes(job, strategy, whole.experts, trained.experts), strategy.expert_split, strategy.expert_shards),
    ):
        if size == 1:
            continue
        # A ring of `size` ranks that stand `inside` apart: so many of them are linked.
        together = min(size, max(1, linked // inside))
        nodes = size // together
        link += volume * (together - 1) / together / cluster.link_bytes_per_s(together)
        network += volume * (nodes - 1) / nodes / (gpu.network_bytes_per_s * together)
    if pp > 1:
        network += steps * 2 * activation / gpu.network_bytes_per_s
    return link, network


def zero_bytes(job: Job, strategy: Strategy, whole: float, trained: float) -> float:
    """Bytes of tensors that go over a ring of data-parallel ranks in an optimizer step; each sends (W - 1) / W of them.

    `whole` and `trained` are the parameters that a rank holds before ZeRO, and those that have gradients. An all-reduce
    moves its tensor twice, a reduce-scatter or all-gather once. Stages 0 and 1 reduce once a step (stage 1 all-reduces,
    in fp32 where it accumulates), stages 2 and 3 every micro step; stage 3 gathers the parameters for each forward and
    each backward. (Rajbhandari et al. 2020, section 7.)
    """
    steps, width = strategy.gradient_accumulation_steps, element_bytes(job.precision)
    accumulated = 4 if steps > 1 else width
    match strategy.zero_stage:
        case 0:
            return 2 * trained * width
        case 1:
            return 2 * trained * accumulated + trained * width
        case 2:
            return steps * trained * width + trained * width
        case _:
            return steps * (2 * whole + trained) * width
