"""The search: every legal strategy of this version priced, the best that fits chosen, the others explained.

Covers ZeRO 0 to 3, optimizer and parameters on the device, the CPU or NVMe, activation checkpointing none or full,
tensor, pipeline and sequence parallel sizes, and every split of the global batch into micro batch and accumulation.
What scale/train.py cannot run yet (scaling/plan/layouts.py) is priced and reported, never chosen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from math import ceil

from scaling import cost
from scaling.cost.memory import FP32_BYTES
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.errors import InputError
from scaling.hardware import Cluster
from scaling.plan.layouts import Layout, illegal, layouts, offload_ignored, offloads_on
from scaling.plan.plan import TIE_FRACTION, Candidate, Plan, Rejection
from scaling.plan.steering import FREE, Steering
from scaling.recipe import Recipe
from scaling.strategy import Strategy, bucket_size, family_name, smaller_bucket_sizes
from scaling.units import format_bytes, format_count, format_duration

_LARGEST_MICRO_BATCH = 512
_NVME_NEEDS = (
    "NVMe: DeepSpeed compiles its async_io as a run starts, which needs libaio's headers; and a run cannot resume from "
    "a checkpoint, since DeepSpeed 0.19.8 does not restore what is offloaded there"
)


def search(
    recipe: Recipe,
    cluster: Cluster,
    *,
    assumptions: Iterable[str] = (),
    top: int = 5,
    steering: Steering = FREE,
    profile: Profile = DEEPSPEED,
) -> Plan:
    """The plan for `recipe` on `cluster`; `fits` is False where nothing does, with remedies.

    Raises InputError where no strategy is legal: a batch that does not divide, a precision the GPU lacks, pins that
    exclude one another.
    """
    _require_batch(recipe, cluster)
    _require_precision(recipe, cluster)
    _require_offload(cluster, steering)
    job = cost.Job.of(recipe)
    rejected: list[Rejection] = []
    fitting: list[Candidate] = []  # the best of each layout
    possible: list[Candidate] = []  # all that fit
    num_priced = 0
    short: list[Candidate] = []
    beyond: list[Candidate] = []  # fits, and cannot be run yet
    for layout in layouts(recipe, cluster):
        reason = illegal(recipe, layout)
        if reason:
            if layout.runnable:
                rejected.append(Rejection(strategy=str(layout), reason=reason))
            continue
        strategies = [strategy for strategy in _strategies(recipe, cluster, layout) if steering.allows(strategy)]
        if not strategies:
            if layout.runnable:
                rejected.append(Rejection(strategy=str(layout), reason=f"excluded: {steering}"))
            continue
        candidates = [_priced_to_fit(job, strategy, cluster, profile, steering) for strategy in strategies]
        num_priced += len(candidates)
        if not layout.runnable:
            devices = [candidate for candidate in candidates if candidate.memory.fits_device]
            beyond += [_best(devices, steering)] if devices else []
            continue
        enough = [candidate for candidate in candidates if candidate.memory.fits]
        if enough:
            fitting.append(_best(enough, steering))
            possible += enough
        else:
            smallest = min(candidates, key=lambda candidate: candidate.memory.total_bytes)
            rejected.append(Rejection(strategy=str(layout), reason=_shortage(smallest)))
            short.append(smallest)
    if not fitting and not short:
        reasons = "; ".join(f"{rejection.strategy}: {rejection.reason}" for rejection in _merged(rejected))
        raise InputError("pin", str(steering), "leaves no legal strategy", hint=reasons)
    chosen = _best(fitting, steering) if fitting else min(short, key=_overshoot)
    others = sorted((other for other in fitting if other is not chosen), key=lambda other: other.time.step_s)
    said = [*assumptions, f"headroom: a process may fill {steering.safety:.0%} of a device (choose with --safety)"]
    if str(steering):
        said.append(f"steering: {steering}")
    if (size := chosen.strategy.reduce_bucket_size) < (usual := bucket_size(recipe.shape)):
        said.append(f"buckets: {format_count(size)} elements instead of {format_count(usual)}, or it would not fit")
    if chosen.strategy.uses_nvme:
        said.append(_NVME_NEEDS)
    return Plan(
        recipe=recipe,
        cluster=cluster,
        chosen=chosen,
        alternatives=tuple(others[:top]),
        pareto=_pareto(possible),
        rejected=(*_merged([*rejected, *(_slower(other, chosen) for other in others)]), *_beyond(beyond, chosen)),
        assumptions=tuple(said),
        num_priced=num_priced,
        remedies=() if fitting else _remedies(recipe, cluster, profile, steering),
    )


def _strategies(recipe: Recipe, cluster: Cluster, layout: Layout) -> Iterator[Strategy]:
    """One strategy for every micro batch that divides a data-parallel rank's share of the batch, smallest first."""
    W = cluster.world_size // layout.split
    share = recipe.global_batch_size // W
    bucket = bucket_size(recipe.shape)
    for micro in range(1, min(share, _LARGEST_MICRO_BATCH) + 1):
        # A pipeline with fewer micro-batches than ranks stands idle most of the time.
        if share % micro == 0 and share // micro >= layout.pipeline_parallel_size:
            yield Strategy(
                zero_stage=layout.zero_stage,
                offload_optimizer=layout.offload_optimizer,
                offload_param=layout.offload_param,
                data_parallel_size=W,
                tensor_parallel_size=layout.tensor_parallel_size,
                pipeline_parallel_size=layout.pipeline_parallel_size,
                sequence_parallel_size=layout.sequence_parallel_size,
                micro_batch_size=micro,
                gradient_accumulation_steps=share // micro,
                activation_checkpointing=layout.activation_checkpointing,
                reduce_bucket_size=bucket,
                allgather_bucket_size=bucket,
            )


def _priced_to_fit(
    job: cost.Job, strategy: Strategy, cluster: Cluster, profile: Profile, steering: Steering
) -> Candidate:
    """`strategy` with its price; with smaller buckets where only those make it fit the device."""
    candidate = _priced(job, strategy, cluster, profile, steering)
    excess = candidate.memory.total_bytes - candidate.memory.usable_bytes
    # Of the bucket's bytes at most this much could go: two to reduce in, one to prefetch, two to gather in.
    if excess <= 0 or excess > 5 * strategy.reduce_bucket_size * FP32_BYTES * profile.reserved_over_allocated:
        return candidate
    for size in smaller_bucket_sizes(job.shape):
        smaller = replace(strategy, reduce_bucket_size=size, allgather_bucket_size=size)
        candidate = _priced(job, smaller, cluster, profile, steering)
        if candidate.memory.fits_device:
            break
    return candidate


def _priced(job: cost.Job, strategy: Strategy, cluster: Cluster, profile: Profile, steering: Steering) -> Candidate:
    return Candidate(
        strategy=strategy,
        memory=cost.memory(job, strategy, cluster, profile, usable_fraction=steering.safety),
        time=cost.step_time(job, strategy, cluster, profile),
    )


def _best(candidates: list[Candidate], steering: Steering) -> Candidate:
    """The least memory, or the simplest of those within the tie band of the fastest: lowest stage, no offload, least
    memory."""
    if steering.objective == "memory":
        return min(candidates, key=lambda candidate: (candidate.memory.total_bytes, candidate.time.step_s))
    fastest = min(candidate.time.step_s for candidate in candidates)
    tied = [candidate for candidate in candidates if candidate.time.step_s <= fastest * (1 + TIE_FRACTION)]
    return min(
        tied,
        key=lambda candidate: (
            candidate.strategy.zero_stage,
            candidate.strategy.offload_optimizer != "none",
            candidate.strategy.offload_param != "none",
            candidate.memory.total_bytes,
        ),
    )


def _pareto(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: (candidate.memory.total_bytes, candidate.time.step_s)):
        if not front or candidate.time.step_s < front[-1].time.step_s:
            front.append(candidate)
    return tuple(front)


def _overshoot(candidate: Candidate) -> float:
    """How many times over the device's capacity a candidate is."""
    return candidate.memory.total_bytes / candidate.memory.capacity_bytes


def _shortage(candidate: Candidate) -> str:
    memory = candidate.memory
    if not memory.fits_device:
        return (
            f"{format_bytes(memory.total_bytes)} at micro batch {candidate.strategy.micro_batch_size} > "
            f"{format_bytes(memory.usable_bytes)} usable of {format_bytes(memory.capacity_bytes)} "
            f"(model states alone {format_bytes(memory.model_states_bytes)})"
        )
    return f"{_host_need(candidate)} > {format_bytes(memory.host_capacity_bytes)}"


def _host_need(candidate: Candidate) -> str:
    need = format_bytes(candidate.memory.host_bytes_per_node)
    return f"{need} of host memory per node, since every rank builds the model whole before DeepSpeed shards it,"


def _slower(other: Candidate, chosen: Candidate) -> Rejection:
    factor = other.time.step_s / chosen.time.step_s
    strategy = other.strategy
    name = family_name(
        strategy.zero_stage, strategy.offload_optimizer, strategy.offload_param, strategy.activation_checkpointing
    )
    step = format_duration(other.time.step_s)
    if factor < 1 - TIE_FRACTION:
        return Rejection(strategy=name, reason=f"fits and is faster, {step} a step, but needs more memory")
    if factor < 1 + TIE_FRACTION:
        return Rejection(strategy=name, reason="fits and is as fast; the chosen one is simpler or smaller")
    return Rejection(strategy=name, reason=f"fits, but a step takes {step}, {factor:.2f} x the chosen one")


def _merged(rejections: list[Rejection]) -> tuple[Rejection, ...]:
    """Neighbours with the same reason as one: the four forms of ZeRO-0 lose for one cause."""
    merged = []
    for reason, group in groupby(rejections, key=lambda rejection: rejection.reason):
        names = [rejection.strategy for rejection in group]
        stages = {name.split(",")[0] for name in names}
        label = f"{names[0].split(',')[0]} in every form" if len(stages) == 1 and len(names) == 4 else "; ".join(names)
        merged.append(Rejection(strategy=label, reason=reason))
    return tuple(merged)


def _beyond(candidates: list[Candidate], chosen: Candidate) -> list[Rejection]:
    """The best of each kind of parallelism that cannot be run yet, with what it would bring."""
    kinds: dict[tuple[str, ...], Candidate] = {}
    for candidate in candidates:
        kind = tuple(candidate.strategy.parallelism)
        if kind not in kinds or candidate.time.step_s < kinds[kind].time.step_s:
            kinds[kind] = candidate
    rejections = []
    for kind, candidate in kinds.items():
        step, each = format_duration(candidate.time.step_s), format_bytes(candidate.memory.total_bytes)
        against = f", {candidate.time.step_s / chosen.time.step_s:.2f} x the chosen one" if chosen.memory.fits else ""
        missing = f"scale/train.py cannot run {' and '.join(kind)} parallelism yet"
        reason = f"would take {step} a step{against} and {each}; {missing}"
        rejections.append(Rejection(strategy=str(candidate.strategy), reason=reason))
    return rejections


def _remedies(recipe: Recipe, cluster: Cluster, profile: Profile, steering: Steering) -> tuple[str, ...]:
    """What would make it fit: the fewest nodes, doubling, on which some strategy fits the device."""
    nodes = cluster.num_nodes
    while nodes <= 4096:
        larger = replace(cluster, num_nodes=nodes)
        W = larger.world_size
        batch = ceil(recipe.global_batch_size / W) * W
        adapted = recipe.model_copy(update={"global_batch_size": batch})
        for layout in layouts(adapted, larger):
            if not layout.runnable or illegal(adapted, layout):
                continue
            allowed = (strategy for strategy in _strategies(adapted, larger, layout) if steering.allows(strategy))
            smallest = next(allowed, None)
            job = cost.Job.of(adapted)
            candidate = _priced_to_fit(job, smallest, larger, profile, steering) if smallest else None
            if candidate and candidate.memory.fits_device:
                said = "" if batch == recipe.global_batch_size else f" and a global batch of {batch}"
                each = format_bytes(candidate.memory.total_bytes)
                need = f"{W} GPUs ({larger}){said}: {candidate.strategy}, {each} each"
                return (need,) if candidate.memory.fits_host else (need, f"and {_host_need(candidate)} there")
        nodes *= 2
    return ("nothing in reach of more nodes: choose a smaller model or GPUs with more memory",)


def _require_batch(recipe: Recipe, cluster: Cluster) -> None:
    W, batch = cluster.world_size, recipe.global_batch_size
    if batch % W:
        below, above = batch // W * W, (batch // W + 1) * W
        nearest = f"{below} and {above}" if below else f"{above}"
        problem = f"is not a multiple of the {W} data-parallel ranks of {cluster}"
        raise InputError("global_batch_size", batch, problem, hint=f"nearest: {nearest}")


def _require_precision(recipe: Recipe, cluster: Cluster) -> None:
    if recipe.precision == "bf16" and not cluster.accelerator.supports_bf16:
        raise InputError("precision", "bf16", f"is not supported by {cluster.accelerator.name}", hint="use fp16")
    if recipe.precision == "fp16" and cluster.is_cpu:
        raise InputError("precision", "fp16", "is refused by DeepSpeed on a CPU", hint="use bf16 or fp32")


def _require_offload(cluster: Cluster, steering: Steering) -> None:
    """Pins that DeepSpeed would not obey, or for which the cluster has no place."""
    pinned = dict(steering.pins)
    places = {name: str(pinned[name]) for name in ("offload_optimizer", "offload_param") if name in pinned}
    for name, place in places.items():
        if place not in offloads_on(cluster):
            hint = (
                "--nvme-path and --nvme-gib say where and how much"
                if place == "nvme"
                else ", ".join(offloads_on(cluster))
            )
            raise InputError("pin", f"{name}={place}", f"names a place that {cluster} does not have", hint=hint)
    stage, none = pinned.get("zero_stage", 3), "none"
    ignored = offload_ignored(
        int(stage), places.get("offload_optimizer", none), places.get("offload_param", none)  # type: ignore[arg-type]
    )  # fmt: skip
    if ignored:
        raise InputError("pin", str(steering), "cannot be", hint=ignored)
