"""Bytes per rank: model states, activations, logits and buffers, at the moments that can be the peak.

Structure is read from deepspeed 0.19.8 and transformers 5.23 and held against tensor bytes of real engine steps
(tests/cost/test_memory_measured.py). Left out: tensor, pipeline, sequence and expert parallelism.

Alphabet: B micro batch, T sequence, D hidden, F intermediate, N heads, V vocabulary, L layers, W data-parallel ranks.
"""

from dataclasses import dataclass

from scaling.hardware import Cluster
from scaling.recipe import Recipe
from scaling.shape import Shape
from scaling.strategy import Strategy
from scaling.units import GIB

FP32_BYTES = 4
ADAM_STATE_BYTES = 2 * FP32_BYTES  # first and second moment (torch.optim.AdamW, DeepSpeedCPUAdam)

# Stage 0, and stage 1 where it accumulates in fp32 (BF16_Optimizer), flatten gradients for their all-reduce in pieces
# of at most this many elements (deepspeed runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE).
_FLAT_ELEMENTS = 500_000_000

# Reserved over allocated for fixed shapes: caching-allocator rounding and fragmentation. An assumption; variable
# sequence lengths cost 1.3 (PEFT's published full fine-tunes: 26.07 GB allocated, 34.3 GB reserved).
RESERVED_OVER_ALLOCATED = 1.08

# The share of a GPU that a plan may fill. The rest is for what the estimate misses.
USABLE_FRACTION = 0.92

# CUDA context 0.47 to 1.78 GiB by CUDA version on an A100, and about 1.5 GiB that NCCL takes at the first collective
# (stas00/ml-engineering). On a CPU: resident size of a rank that has imported torch, transformers and deepspeed.
_CUDA_CONTEXT_BYTES = int(0.6 * GIB)
_NCCL_BYTES = int(1.5 * GIB)
_CPU_CONTEXT_BYTES = int(0.45 * GIB)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """One rank's memory at its peak, in bytes; the items sum to `peak_allocated_bytes`.

    `peak_moment` names the moment and `moments` holds the total at each: "loss" (logits beside all saved
    activations), "backward" (the last layer's working set beside them), "gradients" (the end of the backward, every
    gradient there) and "optimizer_step".
    A GPU process takes `peak_reserved_bytes + context_bytes`; it fits within USABLE_FRACTION of `capacity_bytes`.
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
    host_bytes_per_node: int
    host_capacity_bytes: int
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
        return self.total_bytes <= USABLE_FRACTION * self.capacity_bytes

    @property
    def fits_host(self) -> bool:
        return self.host_bytes_per_node <= self.host_capacity_bytes

    @property
    def fits(self) -> bool:
        return self.fits_device and self.fits_host


def memory(recipe: Recipe, strategy: Strategy, cluster: Cluster) -> MemoryEstimate:
    """The estimate for training `recipe` by `strategy` on `cluster`."""
    shape, precision = recipe.shape, recipe.precision
    parameters, gradients, optimizer = model_states(shape, strategy, precision)
    standing = gradients if keeps_gradients(strategy) else 0
    saved, layer, working_set = activations(recipe, strategy)
    buffers = communication_buffers(shape, strategy, precision)
    recomputes = strategy.activation_checkpointing == "full"
    moments = {  # gradients, activations, logits, buffers
        "loss": (standing, saved + (0 if recomputes else layer), loss_bytes(recipe, strategy), buffers),
        "backward": (standing, saved + layer + working_set, 0, buffers),
        "gradients": (gradients, layer + working_set, 0, buffers),
        "optimizer_step": (gradients, 0, 0, step_temporaries(shape, strategy, precision)),
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
        peak_reserved_bytes=peak if cluster.is_cpu else int(peak * RESERVED_OVER_ALLOCATED),
        capacity_bytes=cluster.accelerator.memory_bytes,
        host_bytes_per_node=host_bytes(shape, strategy, cluster),
        host_capacity_bytes=cluster.host_memory_bytes,
        peak_moment=moment,
        moments={name: parameters + optimizer + sum(parts) for name, parts in moments.items()},
    )


def element_bytes(precision: str) -> int:
    return FP32_BYTES if precision == "fp32" else 2


def accumulation_bytes(strategy: Strategy, precision: str) -> int:
    """Bytes per gradient element: fp32 where micro-batches are summed, the model's own width where there is one."""
    return FP32_BYTES if strategy.gradient_accumulation_steps > 1 else element_bytes(precision)


def model_states(shape: Shape, strategy: Strategy, precision: str) -> tuple[int, int, int]:
    """(parameters, gradients, optimizer) in bytes on one rank.

    Optimizer: an fp32 master copy and Adam's two moments, sharded from stage 1; DeepSpeed keeps a master copy even
    of fp32 parameters from stage 1. Gradients: sharded from stage 2; at stage 1 the accumulated fp32 ones stand
    beside a micro-batch's 16-bit ones. (Rajbhandari et al. 2020, arXiv 1910.02054, figure 1, is the special case
    2 + 2 + 12 bytes per parameter.)
    """
    P, W = shape.num_params, strategy.data_parallel_size
    width, accumulated = element_bytes(precision), accumulation_bytes(strategy, precision)
    stage = strategy.zero_stage
    master = FP32_BYTES if stage >= 1 or precision != "fp32" else 0
    parameters = P * width // (W if stage == 3 else 1)
    gradients = P * accumulated // (W if stage >= 2 else 1)
    if stage <= 1 and accumulated != width:
        gradients += P * width
    optimizer = P * (master + ADAM_STATE_BYTES) // (W if stage >= 1 else 1)
    if strategy.offload_optimizer == "cpu":
        optimizer = 0
        if stage >= 2:
            gradients = 0  # each bucket's share goes to the host as it is reduced
    return parameters, gradients, optimizer


def keeps_gradients(strategy: Strategy) -> bool:
    """Whether gradients live on through the forward: sums of earlier micro steps, or stage 3's standing shard."""
    return strategy.gradient_accumulation_steps > 1 or strategy.zero_stage == 3


def layer_saved_elements(shape: Shape) -> int:
    """Elements per token that one layer saves for its backward, in the model's width; flash-like attention, no dropout.

    Counted by operation, as autograd saves them. gpt2: first norm's input and output 2 D, query, key and value 3 D,
    attention's output D, second norm's input and output 2 D, the MLP's pre-activation and activation 2 F.
    bert: the layer's input D, query, key and value 3 D, attention's output D, each norm's input and the first one's
    output 3 D, and 2 F. Norm statistics and the log-sum-exp (below 1 %) are left out.
    """
    return 8 * shape.hidden_size + 2 * shape.intermediate_size


def activations(recipe: Recipe, strategy: Strategy) -> tuple[int, int, int]:
    """(what waits for the backward, the tensors of the layer at work, its gradients), in bytes.

    Without checkpointing the layer at work is one of those that waited; with it, its tensors are made again.
    """
    shape = recipe.shape
    tokens = strategy.micro_batch_size * recipe.data.seq_length
    width = element_bytes(recipe.precision)
    # Dropout keeps its mask, a byte per element: after the embedding, the attention and the MLP.
    masks = 3 * shape.hidden_size if recipe.dropout else 0
    layer = tokens * (layer_saved_elements(shape) * width + masks)
    # Gradients of the MLP's activation and pre-activation (2 F), of the residual and of a norm's input (2 D).
    gradients = tokens * (2 * shape.intermediate_size + 2 * shape.hidden_size) * width
    if strategy.activation_checkpointing == "full":
        checkpoints = shape.num_layers * tokens * shape.hidden_size * width
        return checkpoints, layer, gradients
    return (shape.num_layers - 1) * layer, layer, gradients


def loss_bytes(recipe: Recipe, strategy: Strategy) -> int:
    """Logits and what the loss makes of them (scaling/models/loss.py), at the loss's backward.

    Logits in the model's width, their fp32 copy, the log-probabilities and the fp32 gradient: 4 more each; for a
    16-bit model the copy is dropped before the gradient comes. Only positions with a target have logits.
    """
    shape = recipe.shape
    targets = strategy.micro_batch_size * recipe.data.seq_length * recipe.predicted_fraction
    width = element_bytes(recipe.precision)
    per_logit = width + (2 * FP32_BYTES + width if width < FP32_BYTES else 2 * FP32_BYTES)
    return int(targets * shape.vocab_size * per_logit)


def communication_buffers(shape: Shape, strategy: Strategy, precision: str) -> int:
    """Buckets, gathered parameters and unsharded gradients that live through forward and backward, in bytes.

    Stages 1 and 2 hold two reduce buckets (overlapped) and the gradient of the largest module before it is copied
    into one. Stage 3 holds the live parameters that emit() allows (ds_config/write.py), two buckets and the largest
    module's gradient.
    """
    width = element_bytes(precision)
    buckets, module = 2 * strategy.reduce_bucket_size, shape.largest_layer_params
    if strategy.zero_stage == 0 or strategy.data_parallel_size == 1:
        return module * width
    live = live_parameters(shape, strategy.reduce_bucket_size) if strategy.zero_stage == 3 else 0
    return (live + buckets + module) * width


def live_parameters(shape: Shape, prefetch: int) -> int:
    """Parameters that stage 3 may hold gathered: the module at work, the next one, and what is prefetched."""
    return 2 * shape.largest_layer_params + prefetch


def step_temporaries(shape: Shape, strategy: Strategy, precision: str) -> int:
    """What the optimizer step adds to the model states, in bytes.

    Stages 1 to 3 copy the rank's gradients to fp32 for the master weights and gather the updated parameters in
    buckets; a 16-bit stage-1 run that accumulates flattens its fp32 gradients for the all-reduce. torch's fused AdamW
    itself needs nothing. Offloaded, both stay on the host.
    """
    P, W, stage = shape.num_params, strategy.data_parallel_size, strategy.zero_stage
    width = element_bytes(precision)
    gathering = 2 * strategy.allgather_bucket_size * width
    if stage == 0:
        return min(_FLAT_ELEMENTS, P) * width if W > 1 else 0
    if strategy.offload_optimizer == "cpu":
        return gathering
    if stage == 1 and accumulation_bytes(strategy, precision) != width:
        return min(_FLAT_ELEMENTS, P) * FP32_BYTES
    return P * FP32_BYTES // W + gathering


def host_bytes(shape: Shape, strategy: Strategy, cluster: Cluster) -> int:
    """Host memory of one node: every rank's un-sharded fp32 copy while it builds the model, or what is offloaded.

    Offloading the optimizer keeps master copy, moments and fp32 gradients in host memory, pinned, and a 16-bit
    staging copy (18 bytes per parameter of the node's share). The build and the offload overlap at start-up.
    """
    P, ranks = shape.num_params, cluster.gpus_per_node
    building = ranks * P * FP32_BYTES
    if strategy.offload_optimizer == "none":
        return building
    share = P * ranks // strategy.data_parallel_size
    return building + share * (FP32_BYTES + ADAM_STATE_BYTES + FP32_BYTES + 2)
