"""Published runs from a CSV file: each row as a job, a strategy and a cluster, or the reason why it is not one.

Nothing is guessed in silence: what a row leaves open makes it skipped, and the few things that its code stack fixes
(Megatron's test vocabulary, say) are listed as assumptions of the row.
"""

import csv
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scaling.cost.job import Attention, Job, Optimizer
from scaling.cost.memory import Rank
from scaling.cost.profile import Profile, find_profile
from scaling.errors import FileProblems, InputError
from scaling.files import read_text
from scaling.hardware import ACCELERATORS, ASSUMED_HOST_MEMORY_BYTES, Accelerator, Cluster
from scaling.registry import GPT2_VOCAB
from scaling.shape import Family, Shape
from scaling.strategy import Offload, Strategy
from scaling.units import GIB

UNKNOWN_GPU = "unknown"

PeakKind = Literal["allocated", "reserved", "process"]

COLUMNS = (
    "id", "model", "params", "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq_len", "gpus", "gpu_type",
    "gpu_mem_gib", "precision", "optimizer", "sharding", "offload", "tp", "pp", "sp_or_cp", "micro_batch", "grad_accum",
    "act_ckpt", "attention", "compile", "measured_peak_gib", "fits", "tokens_per_s_per_gpu", "notes",
)  # fmt: skip

# Which code wrote a row, by the prefix of its id (mcore-014, tt-001).
_STACKS = {
    "mcore": "megatron-core", "brg": "megatron-core", "nano": "nanotron", "tt": "torchtitan", "ao": "torchtitan",
    "lit": "litgpt", "lt": "litgpt", "tune": "torchtune", "hf": "transformers", "peft": "transformers-bf16",
    "stas": "deepspeed-defaults", "alst": "deepspeed-defaults", "ds": "deepspeed-defaults", "cai": "colossalai",
    "mpt": "llm-foundry",
}  # fmt: skip

# What is not modelled: a pattern in any of the fields that tell, and the reason to skip.
_NOT_MODELLED = (
    ("notes", r"\bq?lora\b", "LoRA is not modelled"),
    ("notes", r"num-experts|moe-", "mixture of experts is not modelled"),
    ("notes", r"multi-latent-attention", "multi-latent attention is not modelled"),
    ("notes", r"mtp-num-layers", "multi-token prediction is not modelled"),
    ("notes", r"fp8-format", "8-bit compute is not modelled"),
    ("notes", r"optimizer-in-backward", "an optimizer step within the backward is not modelled"),
    ("notes", r"tiled mlp", "tiled MLPs are not modelled"),
    ("notes", r"some full yamls list devices", "how many devices the run used is not certain"),
    ("notes", r"UNRELIABLE|is odd", "the source itself is doubtful"),
    ("notes", r"lengths vary|variable length|seq not stated", "the sequence length varies or is not stated"),
    ("precision", r"float8|fp8|fp4", "8-bit compute is not modelled"),
    ("optimizer", r"in bwd", "an optimizer step within the backward is not modelled"),
    ("optimizer", r"muon|paged", "this optimizer is not modelled"),
    ("offload", r"activation|act ", "activation offload is not modelled"),
    ("offload", r"zero3 cpu|zero-offload|ao ", "this offload is not modelled"),
    ("compile", r"thunder", "Thunder's compiler is not modelled"),
    ("sp_or_cp", r"fpdt", "FPDT is not modelled"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One usable row. `rank` is the pipeline rank whose peak was published."""

    id: str
    stack: str
    profile: Profile
    job: Job
    strategy: Strategy
    cluster: Cluster
    rank: Rank
    measured_peak_bytes: float | None
    peak_kind: PeakKind
    ran: bool | None
    tokens_per_second: float | None
    assumptions: tuple[str, ...]

    @property
    def configuration(self) -> tuple[object, ...]:
        """Equal for rows that differ in nothing that the estimate sees."""
        job = replace(self.job, shape=replace(self.job.shape, name=""))
        return (self.stack, self.profile, job, self.strategy, self.cluster.accelerator.memory_bytes)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    id: str
    reason: str


class _Skip(Exception):
    """Raised while a row is read: its message is the reason."""


def load(path: str | Path, *, stack: str | None = None) -> tuple[list[Run], list[Skipped]]:
    """The runs of `path` and the rows that are none. `stack` is for rows whose id names no known stack.

    Raises InputError or FileProblems where the file is not such a table.
    """
    if stack is not None:
        find_profile(stack)
    lines = read_text(path, "runs").splitlines()
    table = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
    if missing:
        raise FileProblems(str(path), [f"column {name!r} is missing" for name in missing])
    runs: list[Run] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for row in table:
        row = {name: (value or "").strip() for name, value in row.items() if name}
        if row["id"] in seen:
            row["id"] = f"{row['id']} (line {table.line_num})"
        seen.add(row["id"])
        try:
            runs.append(_run(row, stack))
        except (_Skip, InputError) as reason:
            skipped.append(Skipped(id=row["id"], reason=str(reason)))
    return runs, skipped


def _run(row: dict[str, str], stack: str | None) -> Run:
    prefix = row["id"].split("-")[0]
    name = _STACKS.get(prefix) or stack
    if name is None:
        raise _Skip(f"no profile for the stack of {prefix!r} rows; name one with --stack")
    for field, pattern, reason in _NOT_MODELLED:
        if re.search(pattern, row[field], flags=re.IGNORECASE):
            raise _Skip(reason)
    if not (row["measured_peak_gib"] or row["fits"] or row["tokens_per_s_per_gpu"]):
        raise _Skip("nothing was measured")
    name = "megatron-deepspeed" if re.search(r"strategy (UL|TP)", row["notes"]) else name
    if name == "transformers" and "amp" in row["precision"]:
        name = "transformers-amp"
    profile = find_profile(name)
    if row["compile"] == "yes":
        profile = replace(_fused(profile), logit_bytes=min(profile.logit_bytes, 10.0))
    elif _has_liger(row["notes"]):
        profile = _fused(profile)
    strategy = _strategy(row, name)
    assumptions: list[str] = []
    job = _job(row, strategy, name, assumptions)
    cluster = _cluster(row)
    unknown = cluster.accelerator.name == UNKNOWN_GPU and not row["gpu_mem_gib"]
    if unknown:
        assumptions.append(f"an unknown gpu, {row['gpu_type']!r}: no verdict on what fits")
    peak, speed = row["measured_peak_gib"], row["tokens_per_s_per_gpu"]
    return Run(
        id=row["id"],
        stack=name,
        profile=profile,
        job=job,
        strategy=strategy,
        cluster=cluster,
        rank=_rank(row, name),
        measured_peak_bytes=_number(row, "measured_peak_gib") * GIB if peak else None,
        peak_kind=_peak_kind(row["notes"]),
        ran=None if unknown else {"yes": True, "no": False}.get(row["fits"]),
        tokens_per_second=_number(row, "tokens_per_s_per_gpu") * _whole(row, "gpus") if speed else None,
        assumptions=tuple(assumptions),
    )


def _rank(row: dict[str, str], stack: str) -> Rank:
    """The pipeline rank whose peak a row gives: Megatron's tests say the last, nanotron logs from rank 0."""
    if "LAST rank" in row["notes"]:
        return "last"
    return "first" if stack == "nanotron" else "any"


def _fused(profile: Profile) -> Profile:
    """torch.compile and Liger's kernels fuse norms and gated activations."""
    return replace(profile, rms_uncut=1.0, gated_tensors=3, context_copies=0.0)


def _number(row: dict[str, str], name: str) -> float:
    """A positive number, or the reason to skip the row."""
    text = row[name]
    try:
        value = float(text)
    except ValueError:
        raise _Skip(f"{name} is {text!r}" if text else f"{name} is not given") from None
    if not 0 < value < math.inf:
        raise _Skip(f"{name} is {text!r}")
    return value


def _whole(row: dict[str, str], name: str, default: int | None = None) -> int:
    if not row[name] and default is not None:
        return default
    value = _number(row, name)
    if value != int(value):
        raise _Skip(f"{name} is {row[name]!r}")
    return int(value)


def _strategy(row: dict[str, str], stack: str) -> Strategy:
    tp, pp = _whole(row, "tp"), _whole(row, "pp")
    parts = row["sp_or_cp"]
    split = _sequence_split(parts)
    gpus = _whole(row, "gpus")
    if gpus % (tp * pp * split):
        raise _Skip(f"{gpus} GPUs are not a multiple of tp {tp} x pp {pp} x {split}")
    layers = _whole(row, "layers")
    if layers % pp:
        raise _Skip(f"{layers} layers do not divide by pp {pp}")
    stage = _zero_stage(row["sharding"])
    checkpointing = row["act_ckpt"]
    if checkpointing not in ("none", "selective", "full"):
        raise _Skip(f"act_ckpt is {checkpointing!r}" if checkpointing else "act_ckpt is not given")
    steps = _whole(row, "grad_accum", default=1 if pp == 1 else None)
    chunk = re.search(r"num-layers-per-virtual-pipeline-stage=(\d+)", row["notes"])
    optimizer_offload: Offload = "cpu" if "optimizer cpu" in row["offload"] else "none"
    parameter_offload: Offload = "cpu" if "param" in row["offload"] else "none"
    return Strategy(
        zero_stage=stage,
        offload_optimizer=optimizer_offload,
        offload_param=parameter_offload,
        data_parallel_size=gpus // (tp * pp * split),
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        sequence_parallel_size=split,
        virtual_pipeline_size=layers // pp // int(chunk[1]) if chunk and pp > 1 else 1,
        tensor_parallel_sequences="tp-sp" in parts or (stack == "torchtitan" and tp > 1),  # torchtitan has no other
        micro_batch_size=_whole(row, "micro_batch"),
        gradient_accumulation_steps=steps,
        activation_checkpointing=checkpointing,  # type: ignore[arg-type]  # checked above
        reduce_bucket_size=500_000_000,
        allgather_bucket_size=500_000_000,
    )


def _zero_stage(sharding: str) -> int:
    """ZeRO's stage in the words of each stack: torch's FSDP shards all, or gradients and states, or nothing."""
    if not sharding:
        raise _Skip("sharding is not given")
    word, _, strategy = re.split(r"[ (]", sharding)[0].partition("-")
    fsdp = {"": 3, "FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0}
    stages = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
    stage = fsdp.get(strategy) if word in ("fsdp", "fsdp2") else stages.get(sharding.split(" ")[0])
    if stage is None:
        raise _Skip(f"sharding is {sharding!r}")
    return stage


def _sequence_split(text: str) -> int:
    """Ranks that share a sequence: cpN or ulyssesN; "tp-sp" and "1" share none beyond the tensor-parallel ranks."""
    sizes = [int(size) for size in re.findall(r"(?:cp|ulysses)(\d+)", text)]
    rest = re.sub(r"(?:cp|ulysses)\d+|tp-sp", "", text).strip(" +,")
    if rest not in ("", "1") or 0 in sizes:
        raise _Skip(f"sp_or_cp is {text!r}")
    return math.prod(sizes)


def _job(row: dict[str, str], strategy: Strategy, stack: str, assumptions: list[str]) -> Job:
    notes, attention = row["notes"], row["attention"]
    if not attention:
        raise _Skip("attention is not given")
    optimizers: tuple[tuple[str, Optimizer], ...] = (
        ("8bit", "adamw8bit"), ("8-bit", "adamw8bit"), ("adafactor", "adafactor"), ("adam", "adamw"), ("lamb", "adamw"),
    )  # fmt: skip
    optimizer = next((name for word, name in optimizers if word in row["optimizer"].lower()), None)
    if optimizer is None:
        raise _Skip(f"optimizer is {row['optimizer']!r}" if row["optimizer"] else "optimizer is not given")
    if not row["precision"]:
        raise _Skip("precision is not given")
    shape = _shape(row, strategy, stack, assumptions)
    # Megatron and BERT drop a tenth unless told otherwise; the others do not drop at all.
    drops = (stack == "megatron-core" and "hidden-dropout=0" not in notes) or shape.family == "bert"
    kept: Attention = "eager" if attention.startswith("eager") else "flash"
    return Job(
        shape=shape,
        seq_length=_whole(row, "seq_len"),
        precision="fp32" if row["precision"] == "fp32" else "bf16",
        optimizer=optimizer,
        dropout=0.1 if drops else 0.0,
        predicted_fraction=0.0 if "classification" in notes else 1.0,
        causal=shape.family != "bert",
        attention=kept,
        fused_loss=_has_liger(notes),
    )


def _has_liger(notes: str) -> bool:
    """Whether Liger's kernels ran, its fused linear cross-entropy among them; "Liger-Kernel=no" says they did not."""
    return bool(re.search(r"liger", notes, re.IGNORECASE)) and "Liger-Kernel=no" not in notes


def _shape(row: dict[str, str], strategy: Strategy, stack: str, assumptions: list[str]) -> Shape:
    notes, model = row["notes"], row["model"].lower()
    family: Family = "llama"
    if "bert" in model:
        family = "bert"
    elif stack == "megatron-core" or re.search(r"gpt|phi|pythia|falcon|stablelm|mpt|opt", model):
        family = "gpt2"
    gated = family == "llama" or "swiglu=True" in notes
    vocab_size = _whole(row, "vocab", default=GPT2_VOCAB if stack == "megatron-core" else None)
    if stack == "megatron-core":
        if not row["vocab"]:
            assumptions.append(f"vocabulary {GPT2_VOCAB}, GPT-2's, of Megatron's tests")
        multiple = 128 * strategy.tensor_parallel_size  # --make-vocab-size-divisible-by
        vocab_size = -(-vocab_size // multiple) * multiple
        assumptions.append(f"vocabulary padded to {vocab_size}, a multiple of {multiple}")
    shape = Shape(
        name=row["model"],
        family=family,
        num_layers=_whole(row, "layers"),
        hidden_size=_whole(row, "hidden"),
        num_attention_heads=_whole(row, "heads"),
        num_key_value_heads=_whole(row, "kv_heads", default=_whole(row, "heads")),
        intermediate_size=_whole(row, "ffn"),
        vocab_size=vocab_size,
        max_position_embeddings=1 if "position-embedding-type=rope" in notes else _whole(row, "seq_len"),
        gated_mlp=gated,
        tied_embeddings="untie" not in notes if family == "gpt2" else family == "bert",
    )
    if family == "llama" and row["params"]:
        # Tied or not: whichever count is the published one.
        params = _number(row, "params")
        both = (shape, replace(shape, tied_embeddings=True))
        return min(both, key=lambda candidate: abs(candidate.num_params - params))
    return shape


def _peak_kind(notes: str) -> PeakKind:
    """What "peak" means in a row, by its notes; allocated where they do not say."""
    if re.search(r"NVML|nvidia-smi", notes):
        return "process"
    if re.search(r"reserved", notes, re.IGNORECASE) and "not said" not in notes:
        return "reserved"
    return "allocated"


def _cluster(row: dict[str, str]) -> Cluster:
    gpus = _whole(row, "gpus")
    known = _accelerator(row["gpu_type"])
    memory = row["gpu_mem_gib"]
    accelerator = known or replace(ACCELERATORS["a100-80gb"], name=UNKNOWN_GPU)
    if memory:
        accelerator = replace(
            accelerator, memory_bytes=int(_number(row, "gpu_mem_gib") * GIB), reported_memory_bytes=None
        )
    per_node = min(gpus, accelerator.gpus_per_node)
    return Cluster(
        accelerator=accelerator,
        num_nodes=max(1, gpus // per_node),
        gpus_per_node=per_node,
        host_memory_bytes=ASSUMED_HOST_MEMORY_BYTES,
    )


def _accelerator(text: str) -> Accelerator | None:
    """ "A100-80GB" -> the a100-80gb row."""
    key = text.lower().replace(" ", "-")
    return next((row for name, row in ACCELERATORS.items() if key in (name, f"{name}-80gb")), None)
