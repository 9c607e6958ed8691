"""Seconds per optimizer step: arithmetic, memory traffic, communication, offload; and what follows for a whole run.

A roofline in eight terms: each is a quantity over the hardware's own rate, times a coefficient that says how far from
it training stays. The coefficients are few and shared; `scale validate` holds them against published runs.

Alphabet: T sequence, D hidden, L layers, W data-parallel ranks.
"""

from dataclasses import dataclass, replace

from scaling.cost.activations import (
    chunks_loss,
    layer_saved_elements,
    logit_bytes,
    loss_tokens,
    micro_step_tokens,
    one_matmul_makes_keys,
    scores_bytes_per_token,
    selects_attention,
)
from scaling.cost.job import Job
from scaling.cost.memory import offload_share, trained_share
from scaling.cost.model_states import (
    FP32_BYTES,
    Held,
    accumulation_bytes,
    element_bytes,
    held_parameters,
    moments_bytes,
)
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.hardware import Accelerator, Cluster
from scaling.optimizers import OPTIMIZERS
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
    and micro step, for launches and gathers; `offload` host, PCIe and NVMe, of optimizer and parameters: offloaded
    activations are left out, as if they hid behind the arithmetic.
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
# The same chips with other links, memory or power: the same kernels at the same distance from their ceiling.
_CHIP_OF = {
    "a100-40gb-pcie": "a100-40gb", "a100-80gb-pcie": "a100-80gb", "a800-80gb": "a100-80gb", "h100-pcie": "h100",
    "h100-nvl": "h100", "h800": "h100", "h200": "h100", "gh200": "h100", "gh200-144gb": "h100",
}  # fmt: skip
# A CPU's 16-bit elementwise kernels stay far below a plain copy, and a layer costs Python and hooks: docs/log.md.
_CPU = Terms(matmul=1.1, attention=1.6, memory=4.5, optimizer=4.5, link=1.0, network=1.0, layers=1.5)


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """`step_s` is the sum of the parts; communication counts only as far as it is not hidden.

    `mfu_fraction` is model FLOPs over the accelerators' dense peak at the precision of the matmuls, `hfu_fraction` with
    those of recomputation.
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


def step_time(job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED) -> TimeEstimate:
    """The estimate for one optimizer step of `job` by `strategy` on `cluster`."""
    c = coefficients_of(cluster.accelerator)
    ideal, (matmul_again, attention_again) = ideal_terms(job, strategy, cluster, profile)
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
    peak = cluster.world_size * cluster.accelerator.peak_flops(job.matmul_precision or job.precision)
    # A forward is a third of what the layers take; attention's is of the whole square, as the convention has it.
    of_matrices, of_scores = repeated_forward(job, strategy, profile)
    matrices, scores, _ = job.flops_by_part
    recomputed = (of_matrices * matrices + of_scores * scores) / 3
    return TimeEstimate(
        **parts,
        step_s=step_s,
        tokens_per_second=tokens_per_second,
        mfu_fraction=job.flops_per_token * tokens_per_second / peak,
        hfu_fraction=(job.flops_per_token + recomputed) * tokens_per_second / peak,
        train_days=job.num_steps * step_s / SECONDS_PER_DAY,
    )


def coefficients_of(accelerator: Accelerator) -> Terms:
    """The coefficients for an accelerator: its own fit, a CPU's, or the fitted GPUs' distance from their ceiling."""
    if accelerator.name == "cpu":
        return _CPU
    return _FITTED.get(_CHIP_OF.get(accelerator.name, accelerator.name), _UNFITTED)


def ideal_terms(
    job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED
) -> tuple[Terms, tuple[float, float]]:
    """Each term of one optimizer step at the hardware's own rate, in seconds (`layers` in milliseconds' worth).

    And what of `matmul` and of `attention` is made again for the backward.
    """
    gpu, eager = cluster.accelerator, job.attention == "eager"
    layers = layers_at_work(job, strategy)
    tokens = micro_step_tokens(job, strategy)
    busy = busy_micro_steps(strategy)
    weights, scores = forward_s(job, strategy, gpu)
    # A matrix passes gradients on and has its own, unless it is frozen. Flash attention's backward makes the scores
    # again: 5 matmuls to the forward's 2.
    matmul = (2 if job.adapter else 3) * (weights + head_forward_s(job, strategy, gpu))
    attention = (3 if eager else 3.5) * scores
    of_matrices, of_scores = repeated_forward(job, strategy, profile)
    again = of_matrices * weights, of_scores * scores
    if eager:  # plain matmuls, which run at their pace
        matmul, attention, again = matmul + attention, 0.0, (sum(again), 0.0)
    moved = layers * tokens * moved_bytes_per_token(job, strategy, profile) + loss_traffic_bytes(job, strategy, profile)
    # The optimizer reads and writes master and moments and reads a gradient, and writes the parameter.
    updated = updated_bytes(job, profile)
    whole, trained = held_parameters(job, strategy)
    share = trained.sharded(strategy) if strategy.zero_stage >= 1 else trained.total
    offloaded = strategy.offload_optimizer != "none"
    link, network = communication(job, strategy, cluster, whole, trained)
    terms = Terms(
        matmul=busy * (matmul + again[0]),
        attention=busy * (attention + again[1]),
        memory=busy * moved / gpu.memory_bytes_per_s,
        optimizer=0.0 if offloaded else share * (updated + element_bytes(job.precision)) / gpu.memory_bytes_per_s,
        link=link,
        network=network,
        layers=busy * layers * 1e-3,
        offload=offload_s(job, strategy, cluster, profile),
    )
    return terms, (busy * again[0], busy * again[1])


def updated_bytes(job: Job, profile: Profile) -> float:
    """Bytes per parameter that an optimizer reads and writes, 28 with Adam's two moments; Muon's matmuls apart.

    A trust ratio needs all of a tensor's update before any of it is applied: master and moments are read once more.
    """
    moments = moments_bytes(job, FP32_BYTES if job.precision == "fp32" else profile.moment_bytes)
    again = FP32_BYTES + moments if OPTIMIZERS[job.optimizer].reads_twice else 0
    return 3 * FP32_BYTES + 2 * moments + again


def repeated_forward(job: Job, strategy: Strategy, profile: Profile) -> tuple[float, float]:
    """(of the layers' matrices, of attention) the share that runs forward once more for the backward.

    Full checkpointing repeats all. Of "matmuls" the second, fourth, ... are: key (unless one matrix makes it with the
    query), output, a gated MLP's other input (unless one matrix makes both), all of experts, and attention where it is
    not kept; of "scores" attention alone (cost/activations.py). A tiled MLP repeats its own whatever else is (deepspeed
    0.19.8, runtime/sequence_parallel/ulysses_sp.py, TiledMLP).
    """
    shape = job.shape
    experts = shape.experts_per_token * shape.expert_params
    tiled = experts / shape.active_matmul_params if job.tiled_mlp else 0.0
    match strategy.activation_checkpointing:
        case "full":
            return 1.0 + tiled, 1.0
        case "selective" if profile.selective == "scores":
            return tiled, 1.0
        case "selective":
            second = shape.attention_matmul_params / (4 if one_matmul_makes_keys(shape) else 2)
            if shape.num_experts > 1:
                second += experts
            elif shape.gated_mlp and not one_matmul_makes_keys(shape):
                second += experts / 3
            return second / shape.active_matmul_params + tiled, 0.0 if selects_attention(job) else 1.0
        case _:
            return tiled, 0.0


def busy_micro_steps(strategy: Strategy) -> float:
    """Micro steps' worth of time in a step: a pipeline's are stretched by its idle ranks."""
    return strategy.gradient_accumulation_steps * pipeline_stretch(strategy)


def offload_s(job: Job, strategy: Strategy, cluster: Cluster, profile: Profile = DEEPSPEED) -> float:
    """Seconds of a step's traffic with host and NVMe, and of the optimizer on the CPU; nothing hides behind compute.

    deepspeed 0.19.8 (stage3.py partition_grads, stage_1_and_2.py async_accumulate_grad_in_cpu_via_gpu): a gradient
    goes down PCIe after the first micro step, up and down again at each further one, and down in fp32 at the last;
    new parameters come up. Offloaded parameters come up for every forward and every backward, and go down only where
    the optimizer is on the device. The optimizer on the host moves `updated_bytes` a parameter. NVMe reads all states
    and writes them, and reads the parameters as often as they come up. A node's ranks share its memory and its drives.
    Beside adapters only theirs have an optimizer.
    """
    if not strategy.offloads:
        return 0.0
    width, steps = element_bytes(job.precision), strategy.gradient_accumulation_steps
    summed = accumulation_bytes(strategy, job.precision, profile) if strategy.zero_stage == 3 else width
    share, trained = offload_share(job, strategy), trained_share(job, strategy)
    pcie = host = nvme = 0.0  # bytes of a rank
    if strategy.offload_optimizer != "none":
        pcie += trained * ((2 * steps - 1) * summed + 4)
        host += trained * updated_bytes(job, profile)
        nvme += trained * 2 * 16 if strategy.offload_optimizer == "nvme" else 0
    if strategy.offload_param != "none":
        pcie += share * 2 * steps * width
        nvme += share * (2 * steps + 1) * width if strategy.offload_param == "nvme" else 0
    if (strategy.offload_optimizer == "none") != (strategy.offload_param == "none"):
        pcie += trained * width  # what was updated on one side is needed on the other
    of_node = cluster.gpus_per_node * (host / _HOST_BYTES_PER_S + nvme / cluster.nvme_bytes_per_s)
    return pcie / _PCIE_BYTES_PER_S + of_node


def pipeline_stretch(strategy: Strategy) -> float:
    """Time over busy time of a pipeline: 1 + (p - 1) / (m v) (Narayanan et al. 2021, section 2.2)."""
    p, v = strategy.pipeline_parallel_size, strategy.virtual_pipeline_size
    return 1 + (p - 1) / (strategy.gradient_accumulation_steps * v)


def forward_s(job: Job, strategy: Strategy, gpu: Accelerator) -> tuple[float, float]:
    """Seconds of one micro step's forward through a rank's layers: (their matrices, attention's scores and values).

    A matrix multiplication takes its FLOPs, 2 per weight that a token meets, at the ceiling and its memory traffic; the
    latter is what makes small and narrow ones slow. Of a pipeline the rank with most layers sets the pace.
    """
    shape = job.shape
    layers = layers_at_work(job, strategy)
    tokens = layers * micro_step_tokens(job, strategy) / strategy.tensor_parallel_size
    flops = 2 * tokens * (shape.active_matmul_params + shape.router_params)
    traffic = layers * matmul_traffic_bytes(job, strategy)
    weights = flops / gpu.matmul_ceiling(job.matmul_precision or job.precision) + traffic / gpu.memory_bytes_per_s
    return weights, tokens * attention_forward_flops(job) / gpu.matmul_ceiling(job.precision)


def layers_at_work(job: Job, strategy: Strategy) -> float:
    """Layers of the pipeline rank that has most; a decoder's beside an encoder count by their share of the FLOPs."""
    shape, layers = job.shape, layers_per_rank(job.shape, strategy)
    if not shape.num_decoder_layers:
        return layers
    return layers * job.flops_by_part[0] / (6 * shape.num_layers * (shape.active_matmul_params + shape.router_params))


def head_forward_s(job: Job, strategy: Strategy, gpu: Accelerator) -> float:
    """Seconds of one micro step's logits, spread over the ranks; never in 8 bits."""
    flops = micro_step_tokens(job, strategy) * job.flops_by_part[2] / 3
    return flops / strategy.model_parallel_size / gpu.matmul_ceiling(job.precision)


def attention_forward_flops(job: Job) -> float:
    """A layer's scores and values, 4 N H T per token, or half of it: flash attention skips what a causal mask hides.

    The MFU convention counts the whole square.
    """
    square = 4.0 * job.shape.query_size * job.seq_length
    return square / 2 if job.causal and job.attention == "flash" else square


def matmul_traffic_bytes(job: Job, strategy: Strategy) -> float:
    """What one layer's matmuls read and write forward, for a micro step on one rank: inputs, weights and outputs."""
    shape, tp, experts = job.shape, strategy.tensor_parallel_size, job.shape.experts_per_token
    tokens = micro_step_tokens(job, strategy)
    whole = 2 * (1 + experts) * shape.hidden_size
    mlp = experts * (3 if shape.gated_mlp else 2) * shape.intermediate_size
    cut = 2 * shape.query_size + 2 * shape.key_value_size + mlp
    weights = shape.attention_matmul_params / tp + shape.num_experts * shape.expert_params / strategy.expert_split
    return (tokens * (whole + cut / tp) + weights) * element_bytes(job.precision)


def moved_bytes_per_token(job: Job, strategy: Strategy, profile: Profile) -> float:
    """Memory traffic of one layer for a token, forward and backward, matmuls' own apart.

    Every saved element is written and read forward, read and its gradient written backward (and the first two once
    more where the forward is made again, be it all of it or what lies between the matmuls). Casting to 8 bits or fewer
    reads each matmul's input and output gradient once more and writes a byte.
    """
    shape, tp = job.shape, strategy.tensor_parallel_size
    choice = strategy.activation_checkpointing
    accesses = 6 if choice == "full" or (choice == "selective" and profile.selective == "matmuls") else 4
    untiled = replace(job, tiled_mlp=False) if job.tiled_mlp else job  # tile by tile, but all of it
    cut, uncut = layer_saved_elements(untiled, profile)
    uncut_by = tp if strategy.tensor_parallel_sequences else 1
    moved = accesses * (cut / tp + uncut / uncut_by) * element_bytes(job.precision)
    if job.attention == "eager":
        moved += accesses * scores_bytes_per_token(job, strategy, profile)
    if job.matmul_precision in ("fp8", "fp4"):
        D, F, experts = shape.hidden_size, shape.intermediate_size, shape.experts_per_token
        inputs = D + shape.query_size + experts * (D + F)
        gradients = inputs + 2 * shape.key_value_size + (experts * F if shape.gated_mlp else 0)
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
    forward is made again, so is its part. A pipeline passes one activation on, forward and backward; that of a chunk in
    between hides behind the other chunks.
    """
    shape, gpu, linked = job.shape, cluster.accelerator, cluster.linked_ranks
    tp, sp, pp = strategy.tensor_parallel_size, strategy.sequence_parallel_size, strategy.pipeline_parallel_size
    experts, split, steps = strategy.expert_parallel_size, strategy.expert_split, strategy.gradient_accumulation_steps
    token = micro_step_tokens(job, strategy) * element_bytes(job.precision)  # bytes of one element each
    activation = token * shape.hidden_size
    layers = steps * layers_at_work(job, strategy)
    forwards = 2 if strategy.activation_checkpointing == "full" else 1
    queries, keys_values = token * shape.query_size / tp, token * 2 * shape.key_value_size / tp
    if strategy.sequence_parallelism == "ulysses":
        exchanged = (forwards + 1) * (2 * queries + keys_values)
    else:
        exchanged = (forwards + 2) * keys_values * sp
    link = network = 0.0
    for volume, inside, size, shared in (
        (layers * (forwards + 1) * 2 * 2 * activation, 1, tp, True),
        (layers * exchanged, tp, sp, False),
        (layers * (forwards + 1) * 2 * shape.experts_per_token * activation / tp, tp, experts, False),
        (zero_bytes(job, strategy, whole.dense, trained.dense), tp, strategy.shards, True),
        (zero_bytes(job, strategy, whole.experts, trained.experts), split, strategy.expert_shards, True),
    ):
        if size == 1:
            continue
        # A ring of `size` ranks that stand `inside` apart: so many of them are linked. Of what all of them end up with
        # each sends its part to the next node; of what each has for one other rank, everything.
        together = min(size, max(1, linked // inside))
        nodes = -(-size // together)
        link += volume * (together - 1) / together / cluster.link_bytes_per_s(together)
        network += volume * (nodes - 1) / nodes / (gpu.network_bytes_per_s * (together if shared else 1))
    if pp > 1:
        passed = steps * 2 * activation
        if cluster.world_size <= linked:
            link += passed / cluster.link_bytes_per_s(2)
        else:
            network += passed / gpu.network_bytes_per_s
    return link, network


def zero_bytes(job: Job, strategy: Strategy, whole: float, trained: float) -> float:
    """Bytes of tensors that go over a ring of data-parallel ranks in an optimizer step; each sends (W - 1) / W of them.

    `whole` and `trained` are the parameters that a rank holds before ZeRO, and those that have gradients. An all-reduce
    moves its tensor twice, a reduce-scatter or all-gather once. Stages 0 and 1 reduce once a step (stage 1 all-reduces,
    in fp32 where it accumulates), stages 2 and 3 every micro step; stage 3 gathers the parameters for each forward and
    each backward. Muon's gradients are all-reduced there too. (Rajbhandari et al. 2020, section 7.)
    """
    steps, width = strategy.gradient_accumulation_steps, element_bytes(job.precision)
    accumulated = 4 if steps > 1 else width
    scattered = 2 if OPTIMIZERS[job.optimizer].all_reduces else 1
    match strategy.zero_stage:
        case 0:
            return 2 * trained * width
        case 1:
            return 2 * trained * accumulated + trained * width
        case 2:
            return steps * scattered * trained * width + trained * width
        case _:
            return steps * (2 * whole + scattered * trained) * width
