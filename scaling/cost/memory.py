"""Bytes per rank: model states, activations, logits and buffers, at the moments that can be the peak.

Structure is read from deepspeed 0.19.8, transformers 5.23 and Megatron-LM, and held against tensor bytes of real engine
steps (tests/cost/test_memory_measured.py) and against published runs (`scale validate`).

Alphabet: B micro batch, T sequence, D hidden, F intermediate, N heads, V vocabulary, L layers, W data-parallel ranks.
"""

from dataclasses import dataclass
from typing import Literal

from scaling.cost.job import Job
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.hardware import Cluster
from scaling.shape import Shape
from scaling.strategy import Strategy
from scaling.units import GIB

FP32_BYTES = 4

# Stage 0, and stage 1 where it accumulates in fp32 (BF16_Optimizer), flatten gradients for their all-reduce in pieces
# of at most this many elements (deepspeed runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
_FLAT_ELEMENTS = 500_000_000

# The share of a GPU that a plan may fill. The rest is for what the estimate misses.
USABLE_FRACTION = 0.92

# CUDA context 0.47 to 1.78 GiB by CUDA version on an A100, and about 1.5 GiB that NCCL takes at the first collective
# (stas00/ml-engineering). On a CPU: resident size of a rank that has imported torch, transformers and deepspeed.
_CUDA_CONTEXT_BYTES = int(0.6 * GIB)
_NCCL_BYTES = int(1.5 * GIB)
_CPU_CONTEXT_BYTES = int(0.45 * GIB)

Rank = Literal["first", "last", "any"]


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """One rank's memory at its peak, in bytes; the items sum to `peak_allocated_bytes`.

    `peak_moment` names the moment and `moments` holds the total at each: "loss" (logits beside all saved
    activations), "backward" (the last layer's working set beside them), "gradients" (the end of the backward, every
    gradient there) and "optimizer_step".
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
    shape, precision = job.shape, job.precision
    held = parameters_held(shape, strategy, rank)
    parameters, gradients, optimizer = model_states(job, strategy, held, profile)
    standing = gradients if profile.standing_gradients or keeps_gradients(strategy) else 0
    saved, layer, remade, working_set = activations(job, strategy, profile, rank)
    logits = loss_bytes(job, strategy, profile) if rank != "first" or strategy.pipeline_parallel_size == 1 else 0
    buffers = communication_buffers(shape, strategy, precision, profile)
    moments = {  # gradients, activations, logits, buffers
        "loss": (standing, saved, logits, buffers),
        "backward": (standing, saved + remade + working_set, 0, buffers),
        "gradients": (gradients, layer + working_set, 0, buffers),
        "optimizer_step": (gradients, 0, 0, step_temporaries(held, strategy, precision, profile)),
    }
    moment, parts = max(moments.items(), key=lambda item: sum(item[1]))
    gradients_bytes, activations_bytes, logits_bytes, buffers_bytes = parts
    peak = parameters + optimizer + sum(parts)
    multi = cluster.world_size > 1
    context = _CPU_CONTEXT_BYTES if cluster.is_cpu else _CUDA_CONTEXT_BYTES + multi * _NCCL_BYTES
    return MemoryEstimate(
        parameters_bytes=parameters,
        gradients_bytes=gradients_bytes,
        optimizer_bytes=optimizer,
        activations_bytes=activations_bytes,
        logits_bytes=logits_bytes,
        buffers_bytes=buffers_bytes,
        context_bytes=context,
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peak if cluster.is_cpu else int(peak * profile.reserved_over_allocated),
        capacity_bytes=cluster.accelerator.usable_memory_bytes,
        usable_bytes=int(usable_fraction * cluster.accelerator.usable_memory_bytes),
        host_bytes_per_node=host_bytes(job, strategy, cluster),
        host_capacity_bytes=cluster.host_memory_bytes,
        nvme_bytes_per_node=nvme_bytes(job, strategy, cluster),
        nvme_capacity_bytes=cluster.nvme_bytes,
        peak_moment=moment,
        moments={name: parameters + optimizer + sum(parts) for name, parts in moments.items()},
    )


def parameters_held(shape: Shape, strategy: Strategy, rank: Rank = "any") -> int:
    """Parameters of one rank before ZeRO: its pipeline stage, cut by tensor parallelism.

    Of a pipeline the first rank has the embeddings and the last the head; a tied head is a second copy there.
    """
    tp, pp = strategy.tensor_parallel_size, strategy.pipeline_parallel_size
    if tp == pp == 1:
        return shape.num_params
    parts = {name: count for name, count in shape.params_by_part.items() if name != "layers"}
    token_embedding = parts.pop("token_embedding")
    uncut_per_layer = shape.layer_params - shape.layer_matmul_params
    held = shape.num_layers * (shape.layer_matmul_params / tp + uncut_per_layer) / pp
    if pp == 1:
        return int(held + token_embedding / tp + parts.pop("head", 0) / tp + sum(parts.values()))
    head = shape.vocab_size * shape.hidden_size / tp
    if rank == "last":
        return int(held + head + parts.get("final_norm", 0) + parts.get("mlm_head", 0))
    return int(
        held
        + token_embedding / tp
        + sum(parts.values())
        - parts.get("final_norm", 0)
        - parts.get("mlm_head", 0)
        - parts.get("head", 0)
    )


def element_bytes(precision: str) -> int:
    return FP32_BYTES if precision == "fp32" else 2


def accumulation_bytes(strategy: Strategy, precision: str, profile: Profile = DEEPSPEED) -> int:
    """Bytes per gradient element between micro steps."""
    if precision == "fp32" or profile.sums == "fp32" or profile.parameter_bytes == FP32_BYTES:
        return FP32_BYTES
    if profile.sums == "parameter":
        return profile.parameter_bytes
    return FP32_BYTES if strategy.gradient_accumulation_steps > 1 else element_bytes(precision)


def model_states(job: Job, strategy: Strategy, held: int, profile: Profile = DEEPSPEED) -> tuple[int, int, int]:
    """(parameters, gradients, optimizer) in bytes on a rank that holds `held` parameters before ZeRO.

    Optimizer: an fp32 master copy and the moments, sharded from stage 1; DeepSpeed keeps a master copy even of fp32
    parameters from stage 1. Gradients: sharded from stage 2; at stage 1 the accumulated fp32 ones stand beside a
    micro-batch's 16-bit ones. (Rajbhandari et al. 2020, arXiv 1910.02054, figure 1, is the special case 2 + 2 + 12
    bytes per parameter.)
    """
    Z, stage, precision = strategy.shards, strategy.zero_stage, job.precision
    width = FP32_BYTES if precision == "fp32" else profile.parameter_bytes
    accumulated = accumulation_bytes(strategy, precision, profile)
    parameters = held * width // (Z if stage == 3 else 1)
    gradients = held * accumulated // (Z if stage >= 2 else 1)
    if stage <= 1 and profile.passing_gradients and accumulated != width:
        gradients += held * width
    if precision == "fp32":
        master = FP32_BYTES if stage >= 1 and profile.buckets else 0
        moment: float = FP32_BYTES
    else:
        master, moment = profile.master_bytes, profile.moment_bytes
        parameters += held * profile.cast_bytes
    if job.optimizer == "adamw8bit":
        moment = 1
    elif job.optimizer == "adafactor":  # a row and a column per matrix
        moment = 0
    optimizer = int(held * (master + 2 * moment)) // (Z if stage >= 1 else 1)
    if strategy.offload_optimizer != "none":
        optimizer = 0
        if stage >= 2:
            gradients = 0  # each bucket's share goes to the host as it is reduced
    if strategy.offload_param != "none" and stage == 3:
        parameters = 0
    return parameters, gradients, optimizer


def keeps_gradients(strategy: Strategy) -> bool:
    """Whether gradients live on through the forward: sums of earlier micro steps, or stage 3's standing shard."""
    return strategy.gradient_accumulation_steps > 1 or strategy.zero_stage == 3


def layer_saved_elements(shape: Shape, profile: Profile = DEEPSPEED) -> tuple[float, float]:
    """Elements per token that one layer saves for its backward: (those that tensor parallelism divides, the others).

    Counted by operation, as autograd saves them, with flash attention and without dropout. Divided: query, key and
    value, attention's output, and the MLP's pre-activation and activation (2 F), or a gated MLP's tensors. Not divided:
    each norm's input and output, 4 D. For gpt2 and bert alike that is 8 D + 2 F. Norm statistics and the log-sum-exp
    (below 1 %) are left out.
    """
    D, F = shape.hidden_size, shape.intermediate_size
    mlp = profile.gated_tensors * F if shape.gated_mlp else 2 * F
    cut = D + 2 * shape.key_value_size + D * (1 + profile.context_copies) + mlp
    uncut = 4 * D * (profile.rms_uncut if shape.family == "llama" else 1.0)
    return profile.cut * cut, profile.uncut * uncut


def activations(
    job: Job, strategy: Strategy, profile: Profile = DEEPSPEED, rank: Rank = "any"
) -> tuple[int, int, int, int]:
    """(what waits for the backward, all of one layer's tensors, those of them made again, its gradients), in bytes."""
    shape, tp = job.shape, strategy.tensor_parallel_size
    tokens = strategy.micro_batch_size * job.seq_length / strategy.sequence_parallel_size
    width = element_bytes(job.precision)
    uncut_by = tp if strategy.tensor_parallel_sequences else 1
    cut, uncut = layer_saved_elements(shape, profile)
    # Dropout keeps its mask, a byte per element: after the attention and after the MLP.
    masks = 2 * shape.hidden_size if job.dropout else 0
    scores = 0.0
    if job.attention == "eager":
        scores = shape.num_attention_heads * job.seq_length * profile.score_bytes * width / 2 / tp
    layer = tokens * (cut * width / tp + (uncut * width + masks) / uncut_by + scores)
    # Gradients of the MLP's activation and pre-activation (2 F), of the residual and of a norm's input (2 D).
    gradients = tokens * (2 * shape.intermediate_size / tp + 2 * shape.hidden_size / uncut_by) * width
    waiting = shape.num_layers / strategy.pipeline_parallel_size * in_flight(strategy, rank)
    checkpoint = tokens * shape.hidden_size * width / uncut_by
    match strategy.activation_checkpointing:
        case "full":
            kept, remade = checkpoint, layer
        case "selective":  # the scores are made again, and what of the rest is not kept
            kept = (layer - tokens * scores) * profile.selective_fraction
            remade = layer - kept
        case _:
            kept, remade = layer, 0.0
    return int(waiting * kept), int(layer), int(remade), int(gradients)


def in_flight(strategy: Strategy, rank: Rank) -> float:
    """Micro-batches whose activations a pipeline rank holds at once.

    1F1B: as many as there are ranks from it to the end. Interleaved in v chunks: (2 (p - r - 1) + (v - 1) p + 1) / v
    micro-batches' worth at rank r (Narayanan et al. 2021; Megatron-LM core/pipeline_parallel/schedules.py).
    """
    p, v, m = strategy.pipeline_parallel_size, strategy.virtual_pipeline_size, strategy.gradient_accumulation_steps
    behind = 0 if rank == "last" else p - 1
    if v == 1:
        return min(behind + 1, m)
    return min((2 * behind + (v - 1) * p + 1) / v, m)


def loss_bytes(job: Job, strategy: Strategy, profile: Profile = DEEPSPEED) -> int:
    """Logits and what the loss makes of them, at the loss's backward.

    In 16 bit, for ours (scaling/models/loss.py): the logits 2, log-probabilities 4, their gradient 4, and the 16-bit
    one 2 per logit; in fp32 4 + 4 + 4. Only positions with a target have logits; a fused loss holds none.
    """
    if job.fused_loss:
        return 0
    tokens = strategy.micro_batch_size * job.seq_length / strategy.sequence_parallel_size
    per_logit = 3 * FP32_BYTES if job.precision == "fp32" else profile.logit_bytes
    return int(tokens * job.predicted_fraction * job.shape.vocab_size * per_logit / strategy.tensor_parallel_size)


def communication_buffers(shape: Shape, strategy: Strategy, precision: str, profile: Profile = DEEPSPEED) -> int:
    """Buckets, gathered parameters and unsharded gradients that live through forward and backward, in bytes.

    As we configure DeepSpeed, stages 1 and 2 hold two reduce buckets (overlapped) and the gradient of the largest
    module before it is copied into one; stage 3 holds the live parameters that emit() allows (ds_config/write.py), two
    buckets and the largest module's gradient. Other stacks: what stands gathered beside a sharded model, a constant.
    """
    width = element_bytes(precision)
    if not profile.buckets:
        gathered = profile.gathered_layers * shape.layer_params + 2 * shape.vocab_size * shape.hidden_size
        whole = gathered / strategy.tensor_parallel_size if strategy.zero_stage == 3 else 0
        return profile.constant_bytes + int(whole * width)
    buckets, module = 2 * strategy.reduce_bucket_size, shape.largest_layer_params
    if strategy.zero_stage == 0 or (strategy.shards == 1 and strategy.offload_param == "none"):
        return profile.constant_bytes + module * width
    live = live_parameters(shape, strategy.reduce_bucket_size) if strategy.zero_stage == 3 else 0
    return profile.constant_bytes + (live + buckets + module) * width


def live_parameters(shape: Shape, prefetch: int) -> int:
    """Parameters that stage 3 may hold gathered: the module at work, the next one, and what is prefetched."""
    return 2 * shape.largest_layer_params + prefetch


def step_temporaries(held: int, strategy: Strategy, precision: str, profile: Profile = DEEPSPEED) -> int:
    """What the optimizer step adds to the model states, in bytes.

    DeepSpeed's stages 1 to 3 copy the rank's gradients to fp32 for the master weights and gather the updated
    parameters in buckets; a 16-bit stage-1 run that accumulates flattens its fp32 gradients for the all-reduce.
    torch's fused AdamW itself needs nothing. Offloaded, both stay on the host.
    """
    if not profile.buckets:
        return profile.constant_bytes
    Z, stage = strategy.shards, strategy.zero_stage
    width = element_bytes(precision)
    gathering = 2 * strategy.allgather_bucket_size * width
    if stage == 0:
        needed = min(_FLAT_ELEMENTS, held) * width if Z > 1 else 0
    elif strategy.offload_optimizer != "none":
        needed = gathering
    elif stage == 1 and accumulation_bytes(strategy, precision, profile) != width:
        needed = min(_FLAT_ELEMENTS, held) * FP32_BYTES
    else:
        needed = held * FP32_BYTES // Z + gathering
    return profile.constant_bytes + needed


# DeepSpeed's numbers of buffers, which ds_config/write.py spells out: for NVMe optimizer states one for each of
# parameter, gradient and two moments; for NVMe parameters those that wait for a gather.
NVME_OPTIMIZER_BUFFERS, NVME_PARAM_BUFFERS = 4, 5
_SUB_GROUP, _NVME_SUB_GROUP = 1_000_000_000, 100_000_000


def host_bytes(job: Job, strategy: Strategy, cluster: Cluster) -> int:
    """Host memory of one node: every rank's un-sharded fp32 copy while it builds the model, and what is offloaded.

    Per parameter of a rank's share (deepspeed 0.19.8, runtime/zero/stage3.py and stage_1_and_2.py): an optimizer on
    the host has master copy, two moments and a gradient in fp32, and beside them stage 3's gradient partition in the
    width of its sums, or below it a 16-bit staging copy and, where it accumulates, a 16-bit sum. On NVMe only the
    partition stays, and buffers of a sub group each. Parameters on the host keep their width; on NVMe they pass
    through buffers of the largest one, and a sub group waits to be written. Build and offload overlap at start-up.
    """
    P, Z, width = job.shape.num_params, strategy.shards, element_bytes(job.precision)
    share, sub_group = offload_share(job, strategy), min(offload_share(job, strategy), sub_group_size(strategy))
    if strategy.zero_stage == 3:
        partition = accumulation_bytes(strategy, job.precision)
    else:
        partition = width * (2 if strategy.gradient_accumulation_steps > 1 else 1)
    optimizer = {
        "none": 0,
        "cpu": share * (4 * FP32_BYTES + partition),
        "nvme": share * partition + NVME_OPTIMIZER_BUFFERS * sub_group * FP32_BYTES,
    }
    parameters = {
        "none": 0,
        "cpu": share * width,
        "nvme": (NVME_PARAM_BUFFERS * nvme_buffer_size(job.shape, Z) + sub_group) * width,
    }
    rank = P * FP32_BYTES + optimizer[strategy.offload_optimizer] + parameters[strategy.offload_param]
    return cluster.gpus_per_node * rank


def nvme_bytes(job: Job, strategy: Strategy, cluster: Cluster) -> int:
    """NVMe of one node: master copy, two moments and gradient in fp32, and the parameters in their width."""
    optimizer = 4 * FP32_BYTES if strategy.offload_optimizer == "nvme" else 0
    parameters = element_bytes(job.precision) if strategy.offload_param == "nvme" else 0
    return cluster.gpus_per_node * offload_share(job, strategy) * (optimizer + parameters)


def offload_share(job: Job, strategy: Strategy) -> int:
    """Parameters whose states one rank may offload: its shard, from stage 1 on."""
    return job.shape.num_params // (strategy.model_parallel_size * strategy.shards)


def sub_group_size(strategy: Strategy) -> int:
    """Elements that stage 3's optimizer updates at a time; few for NVMe, whose buffers are as large as a sub group."""
    return _NVME_SUB_GROUP if strategy.offload_optimizer == "nvme" else _SUB_GROUP


def nvme_buffer_size(shape: Shape, shards: int) -> int:
    """Elements of the largest parameter's shard, which a buffer of NVMe parameters must hold, rounded up to 1,024.

    DeepSpeed's default of 1e8 breaks off mid-run where a shard is larger (swap_tensor/partitioned_param_swapper.py).
    The largest is an embedding or a matrix of a layer: the fused queries, keys and values, or one of the MLP.
    """
    D = shape.hidden_size
    widest = max(shape.vocab_size, shape.max_position_embeddings, shape.intermediate_size, D + 2 * shape.key_value_size)
    return -(-widest * D // (shards * 1024)) * 1024
