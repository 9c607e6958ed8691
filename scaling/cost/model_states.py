"""Bytes of parameters, gradients and optimizer states on one rank, exact, by dtype and ZeRO stage."""

from typing import NamedTuple

from scaling.cost.job import Job
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.cost.stages import layers_of_rank
from scaling.optimizers import OPTIMIZERS
from scaling.shape import Shape
from scaling.strategy import Rank, Strategy, layers_per_rank

FP32_BYTES = 4


class Held(NamedTuple):
    """Parameters of one rank before ZeRO. ZeRO shards experts over fewer ranks, since fewer hold the same ones."""

    dense: float
    experts: float = 0.0

    @property
    def total(self) -> float:
        return self.dense + self.experts

    def sharded(self, strategy: Strategy) -> float:
        dense = self.dense / strategy.shards
        return dense + self.experts / strategy.expert_shards if self.experts else dense


def layer_held(shape: Shape, strategy: Strategy) -> Held:
    """Parameters of one layer on one rank before ZeRO, cut by tensor and expert parallelism."""
    experts = shape.num_experts * shape.expert_params if shape.num_experts > 1 else 0
    cut = shape.layer_matmul_params - experts + shape.output_biases
    return Held(
        cut / strategy.tensor_parallel_size + shape.layer_params - experts - cut, experts / strategy.expert_split
    )


def parameters_held(shape: Shape, strategy: Strategy, rank: Rank = "any", num_layers: int | None = None) -> Held:
    """Parameters of one rank before ZeRO: its pipeline stage, cut by tensor and expert parallelism.

    Of a pipeline the first rank has the embeddings and the last the head; a tied head is a second copy there.
    `num_layers` are the stage's, where they are not parted evenly.
    """
    tp, pp = strategy.tensor_parallel_size, strategy.pipeline_parallel_size
    if tp == pp == shape.num_experts == 1:
        return Held(shape.num_params)
    layers = num_layers or layers_per_rank(shape, strategy)
    layer, parts = layer_held(shape, strategy), dict[str, float](shape.params_by_part)
    del parts["layers"]
    if others := parts.pop("decoder_layers", 0):  # half of an encoder-decoder, split as the other half
        layer = layer._replace(dense=layer.dense + others / shape.num_layers / tp)
    embedding, head = parts.pop("token_embedding", 0), parts.pop("head", 0)
    if shape.traits.positions == "relative":
        parts["position_embedding"] /= tp  # by heads
    ends = {name: parts.pop(name, 0) for name in ("final_norm", "mlm_head")}  # the rest comes before the first layer
    if shape.traits.mlm_head:
        ends["mlm_head"] -= shape.vocab_size - shape.vocab_size / tp  # the decoder's own bias
    first, last = embedding / tp + sum(parts.values()), head / tp + sum(ends.values())
    if pp > 1:
        last += 0 if head else embedding / tp
        first, last = (0, last) if rank == "last" else (first, 0)
    return Held(layers * layer.dense + first + last, layers * layer.experts)


def held_parameters(
    job: Job, strategy: Strategy, rank: Rank = "any", profile: Profile = DEEPSPEED
) -> tuple[Held, Held]:
    """(all parameters, those that are trained) of one rank before ZeRO.

    Beside adapters everything else is frozen; sinusoidal positions are, whatever the rest."""
    held = parameters_held(job.shape, strategy, rank, layers_of_rank(job, strategy, profile, rank))
    if job.adapter is None:
        return held, held._replace(dense=held.dense - job.shape.untrained_params)
    trained = Held(job.adapter.params(job.shape) / strategy.model_parallel_size)
    return Held(held.dense + trained.dense, held.experts), trained


def element_bytes(precision: str) -> int:
    return FP32_BYTES if precision == "fp32" else 2


def accumulation_bytes(strategy: Strategy, precision: str, profile: Profile = DEEPSPEED) -> int:
    """Bytes per gradient element between micro steps."""
    if precision == "fp32" or profile.sums == "fp32" or profile.parameter_bytes == FP32_BYTES:
        return FP32_BYTES
    if profile.sums == "parameter":
        return profile.parameter_bytes
    return FP32_BYTES if strategy.gradient_accumulation_steps > 1 else element_bytes(precision)


def model_states(
    job: Job, strategy: Strategy, whole: Held, trained: Held, profile: Profile = DEEPSPEED
) -> tuple[int, int, int]:
    """(parameters, gradients, optimizer) in bytes on a rank that holds `whole` parameters before ZeRO.

    Optimizer: an fp32 master copy and the moments, sharded from stage 1; DeepSpeed keeps a master copy even of fp32
    parameters from stage 1. Gradients: sharded from stage 2; at stage 1 the accumulated fp32 ones stand beside a
    micro-batch's 16-bit ones. (Rajbhandari et al. 2020, arXiv 1910.02054, figure 1, is the special case 2 + 2 + 12
    bytes per parameter.) What is not `trained` is parameters and nothing more.
    """
    stage, precision = strategy.zero_stage, job.precision
    width = FP32_BYTES if precision == "fp32" else profile.parameter_bytes
    accumulated = accumulation_bytes(strategy, precision, profile)
    parameters = width * (whole.sharded(strategy) if stage == 3 else whole.total)
    gradients = accumulated * (trained.sharded(strategy) if stage >= 2 else trained.total)
    gradients += passing_bytes(job, strategy, trained, profile)
    if precision != "fp32":
        parameters += profile.cast_bytes * whole.total
    optimizer = optimizer_bytes(job, stage, profile) * (trained.sharded(strategy) if stage >= 1 else trained.total)
    if job.step_in_backward:
        gradients = 0.0
    if strategy.offload_optimizer != "none":
        optimizer = 0.0
        if stage >= 2:
            gradients = 0.0  # each bucket's share goes to the host as it is reduced
    if strategy.offload_param != "none" and stage == 3:
        parameters = 0.0
    return int(parameters), int(gradients), int(optimizer)


def optimizer_bytes(job: Job, zero_stage: int, profile: Profile = DEEPSPEED) -> float:
    """Bytes of master copy and moments per trained parameter."""
    if job.precision == "fp32":
        master = FP32_BYTES if zero_stage >= 1 and profile.buckets else 0
        moment = FP32_BYTES
    else:
        master, moment = profile.master_bytes, profile.moment_bytes
    return master + moments_bytes(job, moment)


def moments_bytes(job: Job, width: int, *, offloaded: bool = False) -> float:
    """Bytes of moments per trained parameter in a stack that keeps them `width` wide.

    Muon has one for the layers' matrices and Adam's two for the rest (Jordan et al. 2024).
    """
    row, count = OPTIMIZERS[job.optimizer], float(OPTIMIZERS[job.optimizer].moments)
    if job.optimizer == "muon":
        shape = job.shape
        decoder = shape.layer_matmul_params + shape.attention_matmul_params
        matrices = shape.num_layers * shape.layer_matmul_params + (shape.num_decoder_layers or 0) * decoder
        count += 1 - matrices / shape.num_params
    if offloaded and row.offloaded_moments is not None:
        count = row.offloaded_moments
    return count * (row.moment_bytes or width)


def passing_bytes(job: Job, strategy: Strategy, trained: Held, profile: Profile = DEEPSPEED) -> int:
    """Of the gradients those of one micro step, in their own width beside sums in fp32: they do not outlive a step."""
    width = FP32_BYTES if job.precision == "fp32" else profile.parameter_bytes
    summed_wider = accumulation_bytes(strategy, job.precision, profile) != width
    return int(width * trained.total) if strategy.zero_stage <= 1 and profile.passing_gradients and summed_wider else 0


def keeps_gradients(strategy: Strategy) -> bool:
    """Whether gradients live on through the forward: sums of earlier micro steps, or stage 3's standing shard."""
    return strategy.gradient_accumulation_steps > 1 or strategy.zero_stage == 3
