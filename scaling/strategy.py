"""One way to train: the machinery that a plan fixes. Nothing here changes the loss."""

from dataclasses import dataclass
from typing import Literal

from scaling.shape import Shape

Offload = Literal["none", "cpu", "nvme"]
Checkpointing = Literal["none", "selective", "full"]
SequenceParallelism = Literal["ulysses", "ring"]
LossKernel = Literal["full", "chunked"]
Rank = Literal["first", "last", "any"]  # of a pipeline

# Tokens whose logits a chunked loss holds at once: enough that adding up the head's gradient in fp32, 10 bytes for
# 4,096 FLOPs, stays a small part of it.
LOSS_CHUNK_TOKENS = 2048

_LARGEST_BUCKET = 100_000_000  # elements: 0.2 GB in 16 bit, far beyond what saturates NVLink or a 400 Gb/s network
_SMALLEST_BUCKET = 65_536


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Sizes multiply: world_size = data x tensor x pipeline x sequence parallel sizes.

    `sequence_parallel_size` splits the sequence over ranks of its own: "ulysses" trades it for heads around attention
    (Jacobs et al. 2023), "ring" passes keys and values on (Liu et al. 2023; Megatron's context parallelism).
    `tensor_parallel_sequences` also splits it over the tensor-parallel ranks between their matmuls (Korthikanti et al.
    2022). `expert_parallel_size` ranks of those that share no data hold different experts, each expert cut by
    `expert_tensor_parallel_size` (None: as everything else is). `virtual_pipeline_size` is the chunks of layers per
    pipeline rank (Narayanan et al. 2021). `offload_activations` moves what waits for the backward to the host.
    A "chunked" loss has the logits of LOSS_CHUNK_TOKENS tokens at a time, and makes their gradient at once.
    `reduce_bucket_size` and `allgather_bucket_size` are elements; the first is also ZeRO-3's prefetch bound.
    """

    zero_stage: int
    offload_optimizer: Offload
    offload_param: Offload = "none"
    offload_activations: bool = False
    data_parallel_size: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    sequence_parallel_size: int = 1
    sequence_parallelism: SequenceParallelism = "ulysses"
    expert_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None
    virtual_pipeline_size: int = 1
    tensor_parallel_sequences: bool = False
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: Checkpointing
    loss_kernel: LossKernel = "full"
    reduce_bucket_size: int
    allgather_bucket_size: int

    @property
    def world_size(self) -> int:
        return self.data_parallel_size * self.model_parallel_size * self.sequence_parallel_size

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation_steps * self.data_parallel_size

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model between them."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def shards(self) -> int:
        """Ranks over which ZeRO shards a parameter: data and sequence parallel ranks alike hold the same ones."""
        return self.data_parallel_size * self.sequence_parallel_size

    @property
    def is_alone(self) -> bool:
        """Whether each rank has its parameters for itself, so that ZeRO gathers and reduces nothing."""
        return self.shards == 1 and self.offload_param == "none"

    @property
    def expert_split(self) -> int:
        """Ranks of a pipeline stage that hold one copy of its experts between them."""
        return self.expert_parallel_size * (self.expert_tensor_parallel_size or self.tensor_parallel_size)

    @property
    def expert_shards(self) -> int:
        """Ranks over which ZeRO shards an expert: those that hold the same part of it."""
        return max(1, self.shards * self.tensor_parallel_size // self.expert_split)

    @property
    def offloads(self) -> bool:
        return self.offload_optimizer != "none" or self.offload_param != "none"

    @property
    def uses_nvme(self) -> bool:
        return "nvme" in (self.offload_optimizer, self.offload_param)

    @property
    def batch_equation(self) -> str:
        return (
            f"global batch {self.global_batch_size} = {self.micro_batch_size} micro x "
            f"{self.gradient_accumulation_steps} accumulation x {self.data_parallel_size} data parallel"
        )

    @property
    def parallelism(self) -> dict[str, int]:
        """The kinds of parallelism used beside data parallelism, each with its size: {"tensor": 4}."""
        return parallelism(
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            self.sequence_parallel_size,
            self.expert_parallel_size,
        )

    def __str__(self) -> str:
        family = family_name(self.zero_stage, self.offload_optimizer, self.offload_param, self.activation_checkpointing)
        family = ", ".join([family, *(f"{kind} parallel {size}" for kind, size in self.parallelism.items())])
        loss = ", chunked loss" if self.loss_kernel == "chunked" else ""
        return f"{family}{loss}, micro batch {self.micro_batch_size} x {self.gradient_accumulation_steps}"


def family_name(
    zero_stage: int, offload_optimizer: Offload, offload_param: Offload, activation_checkpointing: Checkpointing
) -> str:
    """A strategy without its batch split, in words: "ZeRO-2, optimizer on cpu, full checkpointing"."""
    parts = [f"ZeRO-{zero_stage}"]
    if offload_optimizer == offload_param != "none":
        parts.append(f"optimizer and parameters on {offload_param}")
    else:
        offloads = {"optimizer": offload_optimizer, "parameters": offload_param}
        parts += [f"{what} on {device}" for what, device in offloads.items() if device != "none"]
    parts.append(
        "no checkpointing" if activation_checkpointing == "none" else f"{activation_checkpointing} checkpointing"
    )
    return ", ".join(parts)


def parallelism(
    tensor_parallel_size: int, pipeline_parallel_size: int, sequence_parallel_size: int, expert_parallel_size: int
) -> dict[str, int]:
    """Those of the sizes that split anything, by kind, data parallelism apart: {"tensor": 4, "pipeline": 2}."""
    sizes = {
        "tensor": tensor_parallel_size,
        "pipeline": pipeline_parallel_size,
        "sequence": sequence_parallel_size,
        "expert": expert_parallel_size,
    }
    return {kind: size for kind, size in sizes.items() if size > 1}


def layers_per_rank(shape: Shape, strategy: Strategy) -> int:
    """Layers of the pipeline rank that has most."""
    return -(-shape.num_layers // strategy.pipeline_parallel_size)


def bucket_size(shape: Shape) -> int:
    """Elements per communication bucket: an eighth of the model, even, between 64k and 100M.

    DeepSpeed's default of 5e8 takes 1 GB in 16 bit whatever the model; a tiny model would be all bucket.
    Stages 1 and 2 refuse an odd allgather bucket (deepspeed 0.19.8, runtime/zero/stage_1_and_2.py:389).
    """
    size = min(max(shape.num_params // 8, _SMALLEST_BUCKET), _LARGEST_BUCKET)
    return size - size % 2


def smaller_bucket_sizes(shape: Shape) -> tuple[int, ...]:
    """A quarter and a sixteenth of `bucket_size`, for a plan that does not fit otherwise: more, smaller collectives."""
    usual = bucket_size(shape)
    sizes = (max(usual // part, _SMALLEST_BUCKET) for part in (4, 16))
    return tuple(sorted({size - size % 2 for size in sizes if size < usual}, reverse=True))
