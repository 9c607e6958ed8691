"""Published runs from a CSV file: each row as a job, a strategy and a cluster, or the reason why it is not one.

Nothing is guessed in silence: what a row leaves open makes it skipped, and the few things that its code base or its
model's name fix (scaling/validate/stacks.py) are listed as assumptions of the row.
"""

import csv
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from scaling.cost.job import Adapter, Attention, Job
from scaling.cost.profile import Profile, find_profile
from scaling.errors import FileProblems, InputError
from scaling.files import read_text
from scaling.hardware import ACCELERATORS, ASSUMED_HOST_MEMORY_BYTES, Accelerator, Cluster, MatmulPrecision
from scaling.optimizers import Name
from scaling.shape import Shape
from scaling.strategy import Checkpointing, Rank, Strategy
from scaling.units import BITS_PER_BYTE, GIB
from scaling.validate.stacks import ADAPTERS, DIMENSIONS, HEAD_DIMS, STACKS, PeakKind, Stack

COLUMNS = (
    "id", "model", "params", "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq_len", "gpus", "gpu_type",
    "gpu_mem_gib", "precision", "optimizer", "sharding", "offload", "tp", "pp", "sp_or_cp", "micro_batch", "grad_accum",
    "act_ckpt", "attention", "compile", "measured_peak_gib", "fits", "tokens_per_s_per_gpu", "notes",
)  # fmt: skip

# What is not modelled: a pattern in the field that tells, and the reason to skip.
_NOT_MODELLED = (
    ("layers", r"\+", "encoder-decoders are not modelled"),
    ("notes", r"qlora", "quantised frozen weights are not modelled"),
    ("notes", r"multi-latent-attention", "multi-latent attention is not modelled"),
    ("notes", r"mtp-num-layers", "multi-token prediction is not modelled"),
    ("notes", r"^full;.*some full yamls list devices", "how many devices the run used is not certain"),
    ("notes", r"UNRELIABLE|is odd", "the source itself is doubtful"),
    ("notes", r"lengths vary|variable length|seq not stated", "the sequence length varies or is not stated"),
    ("optimizer", r"4-?bit", "4-bit optimizer states are not modelled"),
    ("optimizer", r"paged", "of paged optimizer states it is open how much is on the device"),
    ("offload", r"zero3 cpu|zero-offload|ao ", "this offload is not modelled"),
    ("compile", r"thunder", "Thunder's compiler is not modelled"),
    ("sp_or_cp", r"fpdt", "FPDT is not modelled"),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One usable row. `rank` is the pipeline rank whose peak was published, `gpu` the GPU as the row names it.

    `ran` is None where it is not known or where the row lacks what a verdict on memory needs; a measured peak or speed
    that cannot be compared is None as well, and `assumptions` says so.
    """

    id: str
    stack: str
    profile: Profile
    job: Job
    strategy: Strategy
    cluster: Cluster
    gpu: str
    rank: Rank
    measured_peak_bytes: float | None
    peak_kind: PeakKind
    ran: bool | None
    tokens_per_second: float | None
    assumptions: tuple[str, ...]

    @property
    def model(self) -> Shape:
        """What is the same in a model by other names, at other sequence lengths and vocabularies padded otherwise."""
        return replace(self.job.shape, name="", max_position_embeddings=1, vocab_size=1)

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
    other = Stack(profile=find_profile(stack).name) if stack is not None else None
    lines = read_text(path, "runs").splitlines()
    table = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
    if missing:
        raise FileProblems(str(path), [f"column {name!r} is missing" for name in missing])
    runs: list[Run] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for fields in table:
        row = _Row({name: (value or "").strip() for name, value in fields.items() if name})
        run_id = row["id"] if row["id"] not in seen else f"{row['id']} (line {table.line_num})"
        seen.add(run_id)
        try:
            runs.append(_run(row, run_id, other))
        except (_Skip, InputError) as reason:
            skipped.append(Skipped(id=run_id, reason=str(reason)))
    return runs, skipped


class _Row(dict[str, str]):
    """A row's fields by column, and what had to be assumed to read it."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields)
        self.assumptions: list[str] = []

    def assume(self, column: str, value: object, why: str) -> None:
        """Fills a blank."""
        if not self[column]:
            self[column] = str(value)
            self.assumptions.append(f"{column} {value}: {why}")

    def number(self, column: str) -> float:
        """A positive number, or the reason to skip the row."""
        text = self[column]
        try:
            value = float(text)
        except ValueError:
            raise _Skip(f"{column} is {text!r}" if text else f"{column} is not given") from None
        if not 0 < value < math.inf:
            raise _Skip(f"{column} is {text!r}")
        return value

    def whole(self, column: str, default: int | None = None) -> int:
        if not self[column] and default is not None:
            return default
        value = self.number(column)
        if value != int(value):
            raise _Skip(f"{column} is {self[column]!r}")
        return int(value)

    def noted(self, key: str) -> int | None:
        """The number of `key=number` or `key number` in the notes."""
        found = re.search(rf"\b{key}[= ](\d+)", self["notes"])
        return int(found[1]) if found else None


def _run(row: _Row, run_id: str, other: Stack | None) -> Run:
    prefix = row["id"].split("-")[0]
    stack = STACKS.get(prefix) or other
    if stack is None:
        raise _Skip(f"no profile for the stack of {prefix!r} rows; name one with --stack")
    for column, pattern, reason in _NOT_MODELLED:
        if re.search(pattern, row[column], flags=re.IGNORECASE):
            raise _Skip(reason)
    if not (row["measured_peak_gib"] or row["fits"] or row["tokens_per_s_per_gpu"]):
        raise _Skip("nothing was measured")
    source, dimensions = DIMENSIONS.get(row["model"].lower(), ("", {}))
    for column, size in dimensions.items():
        row.assume(column, size, source)
    recipes = "the recipes of its code base"
    if stack.attention:
        row.assume("attention", stack.attention, recipes)
    if stack.checkpointing:
        row.assume("act_ckpt", stack.checkpointing, f"{recipes}, so nothing is said of memory")
    strategy = _strategy(row, stack)
    job = _job(row, strategy, stack)
    cluster = _cluster(row)
    profile = _profile(row, stack)
    # A peak hangs on how activations were kept and states were sharded, a verdict on the GPU's memory, too.
    open_peak = any("nothing is said of memory" in text for text in row.assumptions)
    open_verdict = open_peak or any("no verdict" in text for text in row.assumptions)
    peak, speed = row["measured_peak_gib"], row["tokens_per_s_per_gpu"]
    untimed = _untimed(row, job, cluster.accelerator)
    if speed and untimed:
        row.assumptions.append(f"its speed is not compared: {untimed}")
    return Run(
        id=run_id,
        stack=profile.name,
        profile=profile,
        job=job,
        strategy=strategy,
        cluster=cluster,
        gpu=row["gpu_type"],
        rank="last" if "LAST rank" in row["notes"] else stack.rank,
        measured_peak_bytes=row.number("measured_peak_gib") * GIB if peak and not open_peak else None,
        peak_kind=_peak_kind(row["notes"], stack),
        ran=None if open_verdict else {"yes": True, "no": False}.get(row["fits"]),
        tokens_per_second=row.number("tokens_per_s_per_gpu") * row.whole("gpus") if speed and not untimed else None,
        assumptions=tuple(row.assumptions),
    )


def _untimed(row: _Row, job: Job, accelerator: Accelerator) -> str:
    """Why a row's speed is none of a training run on a GPU that the estimate knows; empty where it is one."""
    if "deterministic" in row["notes"]:
        return "it is a deterministic mode's, not a training run's"
    if accelerator.name == UNKNOWN_GPU:
        return f"gpu {row['gpu_type']!r} is not known"
    try:
        accelerator.peak_flops(job.matmul_precision or job.precision)
    except InputError as error:
        return str(error)
    return ""


def _profile(row: _Row, stack: Stack) -> Profile:
    """The stack's profile, with norms and gated activations fused where torch.compile or Liger's kernels ran."""
    name = stack.profile
    if re.search(r"strategy [A-Z+]*(UL|TP)", row["notes"]):
        name = "megatron-deepspeed"
    elif stack.amp_profile and "amp" in row["precision"]:
        name = stack.amp_profile
    profile = find_profile(name)
    if row["compile"] == "yes" and stack.compiled_logit_bytes is not None:
        month = re.search(r"_(20\d{4})", row.get("source", ""))
        if month is None:
            row.assumptions.append(f"software of {stack.compiled_since} or later, which compiles the loss")
        if month is None or month[1] >= stack.compiled_since:
            profile = replace(profile, logit_bytes=stack.compiled_logit_bytes)
    if row["compile"] == "yes" or _has_liger(row["notes"]):
        return replace(profile, rms_uncut=1.0, gated_tensors=3)
    return profile


def _strategy(row: _Row, stack: Stack) -> Strategy:
    gpus, layers = row.whole("gpus"), row.whole("layers")
    only = 1 if gpus == 1 else None  # one GPU splits nothing
    tp, pp = row.whole("tp", default=only), row.whole("pp", default=only)
    split, kind = _sequence_split(row["sp_or_cp"], tp)
    if gpus % (tp * pp * split):
        raise _Skip(f"{gpus} GPUs are not a multiple of tp {tp} x pp {pp} x {split}")
    if pp > layers:
        raise _Skip(f"pp {pp} is more than {layers} layers")
    micro, data_parallel = row.whole("micro_batch"), gpus // (tp * pp * split)
    batch, chunks = row.noted("GBS"), row.noted("VP")
    if batch and not row["grad_accum"]:
        if batch % (micro * data_parallel):
            raise _Skip(f"GBS {batch} is not a multiple of micro_batch {micro} x {data_parallel} data parallel")
        row["grad_accum"] = str(batch // (micro * data_parallel))  # the table gives the global batch instead
    layers_per_chunk = row.noted("num-layers-per-virtual-pipeline-stage")
    if layers_per_chunk:
        chunks = layers // pp // layers_per_chunk
    offload = row["offload"]
    strategy = Strategy(
        zero_stage=_zero_stage(row),
        offload_optimizer="cpu" if "optimizer cpu" in offload else "none",
        offload_param="cpu" if "param" in offload else "none",
        offload_activations="activation" in offload,
        data_parallel_size=data_parallel,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        sequence_parallel_size=split,
        sequence_parallelism="ulysses" if kind == "ulysses" else "ring",
        expert_parallel_size=row.noted("expert-model-parallel-size") or 1,
        expert_tensor_parallel_size=row.noted("expert-tensor-parallel-size"),
        virtual_pipeline_size=chunks if chunks and pp > 1 else 1,
        tensor_parallel_sequences=tp > 1 and (kind == "tp-sp" or "tp-sp" in row["sp_or_cp"] or stack.splits_sequences),
        micro_batch_size=micro,
        gradient_accumulation_steps=row.whole("grad_accum", default=1 if pp == 1 else None),
        activation_checkpointing=_checkpointing(row["act_ckpt"]),
        reduce_bucket_size=500_000_000,
        allgather_bucket_size=500_000_000,
    )
    if strategy.shards * tp % strategy.expert_split:
        raise _Skip(
            f"{strategy.shards * tp} ranks of a stage are not a multiple of {strategy.expert_split} for experts"
        )
    return strategy


def _checkpointing(text: str) -> Checkpointing:
    if text in get_args(Checkpointing):
        return cast(Checkpointing, text)
    raise _Skip(f"act_ckpt is {text!r}" if text else "act_ckpt is not given")


def _zero_stage(row: _Row) -> int:
    """ZeRO's stage in the words of each stack: torch's FSDP shards all, or gradients and states, or nothing."""
    sharding = row["sharding"]
    if not sharding:
        raise _Skip("sharding is not given")
    if re.search(r"\(group \d+\)|hsdp", sharding):
        row.assumptions.append(f"sharding {sharding}: priced as over all ranks, so nothing is said of memory")
    first = re.split(r"[ (]", sharding)[0]
    word, _, strategy = first.partition("-")
    fsdp = {"": 3, "FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0}
    stages = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "hsdp": 3, "megatron-fsdp": 3}
    stage = fsdp.get(strategy) if word in ("fsdp", "fsdp2") else stages.get(first)
    if stage is None:
        raise _Skip(f"sharding is {sharding!r}")
    return stage


def _sequence_split(text: str, tp: int) -> tuple[int, str]:
    """Ranks that share a sequence, and how: cpN or ulyssesN. "tp-sp", "tpN" and "1" share none beyond the
    tensor-parallel ranks."""
    sizes = [int(size) for size in re.findall(r"(?:cp|ulysses)(\d+)", text)]
    rest = re.sub(rf"(?:cp|ulysses)\d+|tp-sp|\btp{tp}\b", "", text).strip(" +,")
    if rest not in ("", "1") or 0 in sizes:
        raise _Skip(f"sp_or_cp is {text!r}")
    return math.prod(sizes), "ulysses" if "ulysses" in text else "tp-sp" if text == f"tp{tp}" else "ring"


def _job(row: _Row, strategy: Strategy, stack: Stack) -> Job:
    notes = row["notes"]
    if not row["attention"]:
        raise _Skip("attention is not given")
    optimizers: tuple[tuple[str, Name], ...] = (
        ("8bit", "adamw8bit"), ("8-bit", "adamw8bit"), ("adafactor", "adafactor"), ("muon", "muon"), ("lamb", "lamb"),
        ("lars", "lars"), ("lans", "lans"), ("lion", "lion"), ("sgd", "sgd"), ("adam", "adamw"),
    )  # fmt: skip
    optimizer = next((name for word, name in optimizers if word in row["optimizer"].lower()), None)
    if optimizer is None:
        raise _Skip(f"optimizer is {row['optimizer']!r}" if row["optimizer"] else "optimizer is not given")
    if not row["precision"]:
        raise _Skip("precision is not given")
    shape = _shape(row, strategy, stack)
    attention: Attention = "eager" if row["attention"].startswith("eager") else "flash"
    return Job(
        shape=shape,
        seq_length=row.whole("seq_len"),
        precision="fp32" if row["precision"] in ("fp32", "tf32") else "bf16",
        matmul_precision=_matmul_precision(row),
        optimizer=optimizer,
        adapter=_adapter(row),
        dropout=0.0 if "hidden-dropout=0" in notes else stack.dropout,
        predicted_fraction=0.0 if "classification" in notes else stack.predicted_fraction,
        causal=shape.traits.kind == "decoder",
        attention=attention,
        fused_loss=_has_liger(notes),
        tiled_mlp="tiled mlp" in notes,
        step_in_backward="in bwd" in row["optimizer"] or "optimizer-in-backward" in notes,
    )


def _matmul_precision(row: _Row) -> MatmulPrecision | None:
    text = row["precision"].lower()
    if text == "tf32":
        return "tf32"
    if "fp4" in text:
        return "fp4"
    return "fp8" if re.search(r"float8|fp8", text) or "fp8-format" in row["notes"] else None


def _adapter(row: _Row) -> Adapter | None:
    """LoRA as the row or its code base's recipe has it."""
    if not re.search(r"\blora\b", row["notes"], re.IGNORECASE):
        return None
    rank = row.noted(r"q,v r")
    if rank:
        return Adapter(rank=rank, targets=frozenset({"query", "value"}), dropout=0.05)
    known = ADAPTERS.get(row["id"].split("-")[0], {})
    adapter = next((known[name] for name in known if row["model"].startswith(name)), None)
    if adapter is None:
        raise _Skip("the adapters' rank and targets are not given")
    row.assumptions.append(f"adapters of rank {adapter.rank} on {', '.join(sorted(adapter.targets))}: its recipe")
    return adapter


def _has_liger(notes: str) -> bool:
    """Whether Liger's kernels ran, its fused linear cross-entropy among them; "Liger-Kernel=no" says they did not."""
    return bool(re.search(r"liger", notes, re.IGNORECASE)) and "Liger-Kernel=no" not in notes


def _shape(row: _Row, strategy: Strategy, stack: Stack) -> Shape:
    notes, model = row["notes"], row["model"].lower()
    family = "llama"
    if "bert" in model:
        family = "bert"
    elif re.search(r"gpt|phi|pythia|falcon|stablelm|mpt|opt|nemotron", model):
        family = "gpt2"
    elif row["id"].startswith("mcore"):
        family = "llama" if "normalization=RMSNorm" in notes else "gpt2"
    if "8/3*hidden" in notes:
        row.assume("ffn", -(-row.whole("hidden") * 8 // 3 // 256) * 256, "8/3 of hidden, up to a multiple of 256")
    if stack.vocab_size:
        row.assume("vocab", stack.vocab_size, "its tests' tokenizer")
    multiple = stack.vocab_multiple * strategy.tensor_parallel_size
    vocab_size = -(-row.whole("vocab") // multiple) * multiple
    if vocab_size != row.whole("vocab"):
        row.assumptions.append(f"vocabulary padded to {vocab_size}, a multiple of {multiple}")
    shape = Shape(
        name=row["model"],
        family=family,
        num_layers=row.whole("layers"),
        hidden_size=row.whole("hidden"),
        num_attention_heads=row.whole("heads"),
        num_key_value_heads=row.whole("kv_heads", default=row.whole("heads")),
        explicit_head_dim=HEAD_DIMS.get(model),
        intermediate_size=row.whole("ffn"),
        num_experts=row.noted("num-experts") or 1,
        experts_per_token=row.noted("moe-router-topk") or 1,
        vocab_size=vocab_size,
        max_position_embeddings=1 if "position-embedding-type=rope" in notes else row.whole("seq_len"),
        gated_mlp=family == "llama" or "swiglu=True" in notes,
        tied_embeddings=family != "llama" and "untie" not in notes and not stack.unties,
    )
    if family == "llama" and row["params"] and not stack.unties:
        # Tied or not: whichever count is the published one.
        params = row.number("params")
        both = (shape, replace(shape, tied_embeddings=True))
        return min(both, key=lambda candidate: abs(candidate.num_params - params))
    return shape


def _peak_kind(notes: str, stack: Stack) -> PeakKind:
    """What "peak" means in a row, by its notes, or as its code base reports it."""
    if re.search(r"NVML|nvidia-smi", notes):
        return "process"
    if re.search(r"reserved", notes, re.IGNORECASE) and not re.search(
        r"reserved[^;]*not said|not said[^;]*reserved", notes
    ):
        return "reserved"
    return stack.peak_kind


def _cluster(row: _Row) -> Cluster:
    gpus, text = row.whole("gpus"), row["gpu_type"]
    accelerator = _accelerator(text)
    if accelerator is None:
        if not row["gpu_mem_gib"]:
            row.assumptions.append(f"gpu {text!r} is not known: no verdict on what fits")
        accelerator = replace(ACCELERATORS["a100-80gb"], name=UNKNOWN_GPU)
    if row["gpu_mem_gib"]:
        size = int(row.number("gpu_mem_gib") * GIB)
        accelerator = replace(accelerator, memory_bytes=size, reported_memory_bytes=None)
    per_node = gpus if gpus <= accelerator.gpus_per_node else math.gcd(gpus, accelerator.gpus_per_node)
    ports = re.search(r"(\d+)x(\d+)Gb RoCE", row["notes"])
    if ports:
        node_bytes_per_s = int(ports[1]) * int(ports[2]) * 1e9 / BITS_PER_BYTE
        accelerator = replace(accelerator, network_bytes_per_s=node_bytes_per_s / per_node)
    return Cluster(
        accelerator=accelerator,
        num_nodes=gpus // per_node,
        gpus_per_node=per_node,
        host_memory_bytes=ASSUMED_HOST_MEMORY_BYTES,
    )


UNKNOWN_GPU = "unknown"


def _accelerator(text: str) -> Accelerator | None:
    """ "H100-80GB" or "H100-96GB-HBM2e-500W" -> the h100 row: the longest name that the text starts with."""
    key = re.sub(r"-sxm\d?", "", text.lower().replace(" ", "-"))
    return next(
        (row for name, row in sorted(ACCELERATORS.items(), reverse=True) if f"{key}-".startswith(f"{name}-")), None
    )
