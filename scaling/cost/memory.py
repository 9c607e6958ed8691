"""Bytes per rank: model states, activations, logits and buffers, at the moments that can be the peak.

Structure is read from deepspeed 0.19.8, transformers 5.23 and Megatron-LM, and held against tensor bytes of real engine
steps (tests/cost/test_memory_measured.py) and against published runs (`scale validate`).
"""

from dataclasses import dataclass, replace

from scaling.cost.activations import activations, loss_bytes, micro_step_tokens, one_matmul_makes_keys
from scaling.cost.job import Job
from scaling.cost.model_states import (
    FP32_BYTES,
    Held,
    accumulation_bytes,
    element_bytes,
    held_parameters,
    keeps_gradients,
    layer_held,
    model_states,
    moments_bytes,
    passing_bytes,
)
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.hardware import Cluster
from scaling.shape import Shape
from scaling.strategy import Rank, Strategy
from scaling.units import GIB, MIB

# Stage 0, and stage 1 where it accumulates in fp32 (BF16_Optimizer), flatten gradients for their all-reduce in pieces
# of at most this many elements (deepspeed runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
_FLAT_ELEMENTS = 500_000_000

# The share of a GPU that a plan may fill. The rest is for what the estimate misses.
USABLE_FRACTION = 0.92

# CUDA context 0.47 to 1.78 GiB by CUDA version on an A100, and about 1.5 GiB that NCCL takes at the first collective
# (stas00/ml-engineering). On a CPU: resident size of a rank that has imported torch, transformers and deepspeed.
_CUDA_CONTEXT_BYTES = int(0.6 * GIB)
_CONTEXT_BYTES = {"v100-16gb": 1343 * MIB, "v100-32gb": 1343 * MIB}  # as transformers' documentation measured it
_NCCL_BYTES = int(1.5 * GIB)
_CPU_CONTEXT_BYTES = int(0.45 * GIB)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """One rank's memory at its peak, in bytes; the items sum to `peak_allocated_bytes`.

    `peak_moment` names the moment and `moments` holds the total at each: "init" (the states, and the parameter that is
    being sharded), "loss" (logits beside all saved activations), "backward" (the last layer's working set beside them),
    "gradients" (the end of the backward, every gradient there), "optimizer_step" and "save" (the states: each rank
    writes its own).
    A GPU process takes `peak_reserved_bytes + context_bytes`; it fits within `usable_bytes`.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    buffers_bytes: int
    context_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    capacity_bytes: int
    usable_bytes: int
    host_bytes_per_node: int
    host_capacity_bytes: int
    nvme_bytes_per_node: int
    nvme_capacity_bytes: int
    peak_moment: str
    moments: dict[str, int]

    @property
    def model_states_bytes(self) -> int:
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        return self.peak_reserved_bytes + self.context_bytes

    @property
    def fits_device(self) -> bool:
        return self.total_bytes <= self.usable_bytes

    @property
    def fits_host(self) -> bool:
        return self.host_bytes_per_node <= self.host_capacity_bytes

    @property
    def fits_nvme(self) -> bool:
        return self.nvme_bytes_per_node <= self.nvme_capacity_bytes

    @property
    def fits(self) -> bool:
        return self.fits_device and self.fits_host and self.fits_nvme


def memory(
    job: Job,
    strategy: Strategy,
    cluster: Cluster,
    profile: Profile = DEEPSPEED,
    *,
    rank: Rank = "any",
    usable_fraction: float = USABLE_FRACTION,
) -> MemoryEstimate:
    """The estimate for training `job` by `strategy` on `cluster`.

    `rank` chooses a pipeline rank; "any" is the one that needs most, the first (most micro-batches in flight) or the
    last (the logits).
    """
    if rank == "any" and strategy.pipeline_parallel_size > 1:
        ends = [
            memory(job, strategy, cluster, profile, rank=end, usable_fraction=usable_fraction)
            for end in ("first", "last")
        ]
        return max(ends, key=lambda estimate: estimate.peak_allocated_bytes)
    if cluster.is_cpu:
        job = replace(job, on_cpu=True)
    whole, trained = held_parameters(job, strategy, rank, profile)
    parameters, gradients, optimizer = model_states(job, strategy, whole, trained, profile)
    standing = gradients if profile.standing_gradients or keeps_gradients(strategy) else 0
    saved, layer, remade, working_set = activations(job, strategy, profile, rank)
    lasting = max(0, standing - passing_bytes(job, strategy, trained, profile))  # after a step
    are_parameters_own = job.precision == "fp32" or (job.precision == "fp16" and profile.buckets)
    if are_parameters_own and strategy.zero_stage < 3 and not profile.standing_gradients:
        lasting = 0  # the step frees them; in bf16 the sums are buffers that stay
    logits = loss_bytes(job, strategy, profile) if rank != "first" or strategy.pipeline_parallel_size == 1 else 0
    buffers = communication_buffers(job, strategy, trained, profile)
    on_host = 0  # activations that would wait here
    if strategy.offload_activations:
        on_host = activations(job, replace(strategy, offload_activations=False), profile, rank)[0] - saved
    moments = {  # gradients, activations, logits, buffers
        "init": (0, 0, 0, job.shape.vocab_size * job.shape.hidden_size * element_bytes(job.precision)),
        "loss": (standing, saved, logits, buffers),
        "backward": (standing, saved + remade + working_set, 0, buffers),
        "gradients": (gradients, layer + working_set, 0, buffers),
        "optimizer_step": (gradients, 0, 0, step_temporaries(trained, strategy, job.precision, profile)),
        "save": (lasting, 0, 0, 0),
    }
    totals = {name: parameters + optimizer + sum(parts) for name, parts in moments.items()}
    moment = max(totals, key=totals.__getitem__)
    gradients_bytes, activations_bytes, logits_bytes, buffers_bytes = moments[moment]
    peak = totals[moment]
    return MemoryEstimate(
        parameters_bytes=parameters,
        gradients_bytes=gradients_bytes,
        optimizer_bytes=optimizer,
        activations_bytes=activations_bytes,
        logits_bytes=logits_bytes,
        buffers_bytes=buffers_bytes,
        context_bytes=context_bytes(cluster),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peak if cluster.is_cpu else int(peak * profile.reserved_over_allocated),
        capacity_bytes=cluster.accelerator.usable_memory_bytes,
        usable_bytes=int(usable_fraction * cluster.accelerator.usable_memory_bytes),
        host_bytes_per_node=host_bytes(job, strategy, cluster) + cluster.gpus_per_node * on_host,
        host_capacity_bytes=cluster.host_memory_bytes,
        nvme_bytes_per_node=nvme_bytes(job, strategy, cluster),
        nvme_capacity_bytes=cluster.nvme_bytes,
        peak_moment=moment,
        moments=totals,
    )


def context_bytes(cluster: Cluster) -> int:
    """What a rank's process takes beside tensors: the CUDA context and NCCL, or Python's libraries on a CPU."""
    if cluster.is_cpu:
        return _CPU_CONTEXT_BYTES
    context = _CONTEXT_BYTES.get(cluster.accelerator.name, _CUDA_CONTEXT_BYTES)
    return context + (_NCCL_BYTES if cluster.world_size > 1 else 0)


def communication_buffers(job: Job, strategy: Strategy, trained: Held, profile: Profile = DEEPSPEED) -> int:
    """Buckets, gathered parameters and unsharded gradients that live through forward and backward, in bytes.

    As we configure DeepSpeed, stages 1 and 2 hold two reduce buckets (overlapped) and the gradient of the largest
    module before it is copied into one; stage 3 holds the live parameters that emit() allows (ds_config/write.py), two
    buckets and the largest module's gradient. Other stacks: what stands gathered beside a sharded model, a constant.
    """
    shape, width = job.shape, element_bytes(job.precision)
    if not profile.buckets:
        gathered = 0.0
        if strategy.zero_stage == 3:
            ends = 2 * shape.vocab_size * shape.hidden_size / strategy.tensor_parallel_size
            gathered = profile.gathered_layers * layer_held(shape, strategy).total + ends
        elif strategy.zero_stage == 0 and strategy.shards > 1 and not profile.standing_gradients:
            gathered = trained.total  # DistributedDataParallel's buckets: every gradient
        return profile.constant_bytes + int(gathered * width)
    # A stage receives hidden states in one buffer and their gradients in another, which stay (0.19.8, pipe/engine.py).
    exchanged = 2 * micro_step_tokens(job, strategy) * shape.hidden_size if strategy.pipeline_parallel_size > 1 else 0
    constant = profile.constant_bytes + int(exchanged * width)
    buckets, module = 2 * strategy.reduce_bucket_size, min(largest_module(shape, strategy), int(trained.total))
    stage, sums_wider = strategy.zero_stage, accumulation_bytes(strategy, job.precision, profile) != width
    # Stages 1 and 2 make their buckets with nobody to reduce to as well (0.19.8, zero/stage_1_and_2.py:3256).
    if stage == 0 or (strategy.is_alone and (stage == 3 or (stage == 1 and sums_wider))):
        return constant + module * width
    live = live_parameters(shape, strategy) if stage == 3 else 0
    return constant + (live + buckets + module) * width


def largest_module(shape: Shape, strategy: Strategy) -> int:
    """Parameters of the largest module that is gathered at once: of spread experts a rank has its part."""
    if strategy.expert_parallel_size == 1:
        return shape.largest_layer_params
    return max(int(layer_held(shape, strategy).total), shape.vocab_size * shape.hidden_size)


def live_parameters(shape: Shape, strategy: Strategy) -> int:
    """Parameters that stage 3 may hold gathered: the module at work, the next one, and what is prefetched."""
    return 2 * largest_module(shape, strategy) + strategy.reduce_bucket_size


def step_temporaries(held: Held, strategy: Strategy, precision: str, profile: Profile = DEEPSPEED) -> int:
    """What the optimizer step adds to the model states, in bytes.

    DeepSpeed's stages 1 to 3 copy the rank's gradients to fp32 for the master weights and gather the updated
    parameters in buckets; a 16-bit stage-1 run that accumulates flattens its fp32 gradients for the all-reduce.
    torch's fused AdamW itself needs nothing. Offloaded, both stay on the host.
    """
    share = held.sharded(strategy) if strategy.zero_stage >= 1 else held.total
    if not profile.buckets:
        return profile.constant_bytes + int(share * profile.step_bytes)
    stage, width, flat = strategy.zero_stage, element_bytes(precision), min(_FLAT_ELEMENTS, held.total)
    gathering = 2 * strategy.allgather_bucket_size * width
    if stage == 0:
        needed = flat * width if strategy.shards > 1 else 0
    elif strategy.offload_optimizer != "none":
        needed = gathering
    elif stage == 1 and accumulation_bytes(strategy, precision, profile) != width:
        needed = flat * FP32_BYTES
    else:
        needed = share * FP32_BYTES + gathering
    return profile.constant_bytes + int(needed)


# DeepSpeed's numbers of buffers, which ds_config/write.py spells out: for NVMe optimizer states one for each of
# parameter, gradient and two moments; for NVMe parameters those that wait for a gather.
NVME_OPTIMIZER_BUFFERS, NVME_PARAM_BUFFERS = 4, 5
_SUB_GROUP, _NVME_SUB_GROUP = 1_000_000_000, 100_000_000


def host_bytes(job: Job, strategy: Strategy, cluster: Cluster) -> int:
    """Host memory of one node: un-sharded fp32 copies while the model is built, and what is offloaded.

    Below stage 3 every rank builds the model whole; at stage 3 the first alone, whose values the others are given as it
    is sharded (training/engine.py). Offloaded, per parameter of a rank's share (deepspeed 0.19.8,
    runtime/zero/stage3.py and stage_1_and_2.py): an optimizer on the host has master copy, moments and a gradient in
    fp32, and beside them stage 3's gradient partition in the width of its sums, or below it a 16-bit staging copy and,
    where it accumulates, a 16-bit sum. On NVMe only the partition stays, and buffers of a sub group each. Parameters on
    the host keep their width; on NVMe they pass through buffers of the largest one, and a sub group waits to be
    written. Build and offload overlap at start-up.
    """
    built = job.shape.num_params * FP32_BYTES * (1 if strategy.zero_stage == 3 else cluster.gpus_per_node)
    if not strategy.offloads:
        return built
    Z, width = strategy.shards, element_bytes(job.precision)
    share, trained = offload_share(job, strategy), trained_share(job, strategy)
    sub_group = min(share, sub_group_size(strategy))
    if strategy.zero_stage == 3:
        partition = accumulation_bytes(strategy, job.precision)
    else:
        partition = width * (2 if strategy.gradient_accumulation_steps > 1 else 1)
    optimizer = {
        "none": 0,
        "cpu": int(trained * (2 * FP32_BYTES + moments_bytes(job, FP32_BYTES, offloaded=True) + partition)),
        "nvme": trained * partition + NVME_OPTIMIZER_BUFFERS * sub_group * FP32_BYTES,
    }
    parameters = {
        "none": 0,
        "cpu": share * width,
        "nvme": (NVME_PARAM_BUFFERS * nvme_buffer_size(job.shape, Z) + sub_group) * width,
    }
    offloaded = optimizer[strategy.offload_optimizer] + parameters[strategy.offload_param]
    return built + cluster.gpus_per_node * offloaded


def nvme_bytes(job: Job, strategy: Strategy, cluster: Cluster) -> int:
    """NVMe of one node: master copy, two moments and gradient in fp32, and the parameters in their width."""
    if not strategy.uses_nvme:
        return 0
    optimizer = 4 * FP32_BYTES if strategy.offload_optimizer == "nvme" else 0
    parameters = element_bytes(job.precision) if strategy.offload_param == "nvme" else 0
    return cluster.gpus_per_node * offload_share(job, strategy) * (optimizer + parameters)


def offload_share(job: Job, strategy: Strategy) -> int:
    """Parameters whose states one rank may offload: its shard, from stage 1 on."""
    return job.shape.num_params // (strategy.model_parallel_size * strategy.shards)


def trained_share(job: Job, strategy: Strategy) -> int:
    """Those of them that are trained: all, or the adapters'."""
    if job.adapter is None:
        trained = job.shape.num_params - job.shape.untrained_params
        return trained // (strategy.model_parallel_size * strategy.shards)
    return job.adapter.params(job.shape) // (strategy.model_parallel_size * strategy.shards)


def sub_group_size(strategy: Strategy) -> int:
    """Elements that stage 3's optimizer updates at a time; few for NVMe, whose buffers are as large as a sub group."""
    return _NVME_SUB_GROUP if strategy.offload_optimizer == "nvme" else _SUB_GROUP


def nvme_buffer_size(shape: Shape, shards: int) -> int:
    """Elements of the largest parameter's shard, which a buffer of NVMe parameters must hold, rounded up to 1,024.

    DeepSpeed's default of 1e8 breaks off mid-run where a shard is larger (swap_tensor/partitioned_param_swapper.py).
    The largest is an embedding or a matrix of a layer: the fused queries, keys and values, or one of the MLP.
    """
    D = shape.hidden_size
    fused = shape.query_size + 2 * shape.key_value_size if one_matmul_makes_keys(shape) else shape.query_size
    positions = shape.max_position_embeddings if shape.traits.positions in ("learned", "sinusoidal") else 0
    positions += shape.traits.position_offset
    mlp = shape.intermediate_size * (2 if shape.family in ("modernbert", "mixtral") else 1)  # gate and up in one
    mlp *= shape.num_experts  # one tensor holds every expert's
    widest = max(shape.vocab_size, positions, mlp, fused, shape.num_channels * shape.patch_size**2)
    return -(-widest * D // (shards * 1024)) * 1024
