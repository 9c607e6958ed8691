"""The search: every legal strategy of this version priced, the best that fits chosen, the others explained.

Covers ZeRO 0 to 3, optimizer and parameters on the device, the CPU or NVMe, activation checkpointing none or full,
tensor, pipeline and sequence parallel sizes, and every split of the global batch into micro batch and accumulation.
What scale/train.py does not run (scaling/parallelism.py) is priced and reported, never chosen.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from scaling import course
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.errors import Indivisible, InputError
from scaling.hardware import Cluster
from scaling.optimizers import OPTIMIZERS, unsound
from scaling.parallelism import altered, divisors, unsplittable
from scaling.plan.explain import Family, rejections
from scaling.plan.layouts import Layout, illegal, layouts, offload_ignored, offloads_on
from scaling.plan.plan import TIE_FRACTION, Candidate, Plan
from scaling.plan.question import Question, shortfall
from scaling.plan.remedies import remedies
from scaling.plan.steering import FREE, Steering
from scaling.recipe import Recipe
from scaling.strategy import Strategy, bucket_size
from scaling.units import format_count

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
    _require_batch(recipe, cluster, steering)
    _require_precision(recipe, cluster)
    _require_optimizer(recipe, cluster, steering)
    _require_offload(cluster, steering)
    question = Question(recipe=recipe, cluster=cluster, profile=profile, steering=steering)
    families: dict[tuple[str, tuple[str, ...]], Family] = {}
    fitting: list[Candidate] = []  # the best of each layout that can be run
    possible: list[Candidate] = []  # all that fit and can be run
    for layout in layouts(recipe, cluster):
        family = families.setdefault((str(layout), layout.kinds), Family(layout=layout))
        family.illegal = illegal(recipe, layout)
        if family.illegal:
            continue
        priced = [question.made_to_fit(strategy) for strategy in question.strategies(layout)]
        family.num_priced += len(priced)
        enough = [
            question.candidate(strategy, memory)
            for strategy, memory in priced
            if (memory.fits if layout.runnable else memory.fits_device)
        ]
        if enough:
            family.fitting.append(_best(enough, steering))
        elif priced:
            family.short.append(min(priced, key=lambda each: shortfall(each[1])))
        if enough and layout.runnable:
            fitting.append(family.fitting[-1])
            possible += enough
    lost = [each for family in families.values() if family.layout.runnable for each in family.short]
    if not fitting and not lost:
        why = "; ".join(f"{each.strategy}: {each.reason}" for each in rejections(families.values(), None, steering))
        raise InputError("pin", str(steering), "leaves no legal strategy", hint=why)
    chosen = (
        _best(fitting, steering) if fitting else question.candidate(*min(lost, key=lambda each: shortfall(each[1])))
    )
    others = sorted((other for other in fitting if other is not chosen), key=lambda other: other.time.step_s)
    return Plan(
        recipe=recipe,
        cluster=cluster,
        chosen=chosen,
        alternatives=tuple(others[:top]),
        pareto=_pareto(possible),
        rejected=rejections(families.values(), chosen, steering),
        assumptions=(*assumptions, *_said(question, chosen.strategy)),
        num_priced=sum(family.num_priced for family in families.values()),
        remedies=() if fitting else remedies(question),
    )


def _said(question: Question, chosen: Strategy) -> list[str]:
    """What a reader of the plan must know beside the numbers."""
    said = [f"headroom: a process may fill {question.steering.safety:.0%} of a device (choose with --safety)"]
    if str(question.steering):
        said.append(f"steering: {question.steering}")
    usual = bucket_size(question.recipe.shape)
    if chosen.reduce_bucket_size < usual:
        size = format_count(chosen.reduce_bucket_size)
        said.append(f"buckets: {size} elements instead of {format_count(usual)}, or it would not fit")
    if chosen.uses_nvme:
        said.append(_NVME_NEEDS)
    said += _of_the_course(question.recipe, chosen)
    if question.recipe.optimizer.name == "muon":
        said.append("time: Muon's matmuls, and the matrices that ranks gather for it, are not priced")
    return said


def _of_the_course(recipe: Recipe, chosen: Strategy) -> Iterator[str]:
    """What of a plan speaks of the largest step alone."""
    ramp, curriculum = recipe.batch_ramp, recipe.data.curriculum
    samples = course.num_samples(recipe)
    if ramp:
        fewest = ramp.start // (chosen.micro_batch_size * chosen.data_parallel_size)
        yield (
            f"batch ramp: accumulation {fewest} at {ramp.start} samples to {chosen.gradient_accumulation_steps} at "
            f"{recipe.global_batch_size}; micro batch x data parallel divides {recipe.batch_divisor}, as each of them "
            "does; memory and step are of the largest, the training time is of all"
        )
    if curriculum:
        yield (
            f"curriculum: memory, step and training time are of samples of {recipe.data.seq_length} tokens; those of "
            f"{curriculum.start} and more before are shorter, and take less"
        )
    for field, growth in (("batch_ramp", ramp), ("data.curriculum", curriculum)):
        if growth and growth.samples >= samples:
            yield f"{field}: the run ends at {samples:,} samples, before its {growth.samples:,}"


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


def _require_batch(recipe: Recipe, cluster: Cluster, steering: Steering) -> None:
    """Every rank takes an equal share of the batch, unless pins have ranks share their samples."""
    ramp, world = recipe.batch_ramp, cluster.world_size
    _require_split(recipe, steering)
    if not steering.divides(world):
        hint = f"sizes that do: {', '.join(map(str, divisors(world)))}"
        raise Indivisible("pin", steering.pinned, f"does not divide the {world} ranks of {cluster}", hint=hint)
    W = world // steering.split
    if not recipe.batch_divisor % W:
        return
    problem = f"is not a multiple of the {W} data-parallel ranks of {cluster}"
    sizes = {"global_batch_size": recipe.global_batch_size}
    if ramp:
        sizes |= {"batch_ramp.start": ramp.start, "batch_ramp.increment": ramp.increment}
    field, size = next((field, size) for field, size in sizes.items() if size % W)
    below, above = size // W * W, (size // W + 1) * W
    within = recipe.global_batch_size if field == "batch_ramp.start" else above + 1
    near = [str(near) for near in (below, above) if 0 < near < within]
    hint = f"nearest: {' and '.join(near)}" if near else "leave batch_ramp out"
    shared = sorted(
        (layout.split, kind)
        for layout in layouts(recipe, cluster)
        if layout.runnable and steering.allows(layout) and not illegal(recipe, layout)
        for kind in layout.kinds if kind != "expert"
    )  # fmt: skip
    if shared:
        ranks, kind = shared[0]
        hint += f"; or have {ranks} ranks share their samples: --pin {kind}_parallel_size={ranks}"
    raise Indivisible(field, size, problem, hint=hint)


def _require_split(recipe: Recipe, steering: Steering) -> None:
    """Pinned parallel sizes by which the model cannot be split, or would not train as the recipe says."""
    sizes: dict[str, Any] = {f"{kind}_parallel_size": size for kind, size in steering.sizes.items()}
    stage = int(dict(steering.pins).get("zero_stage", OPTIMIZERS[recipe.optimizer.name].stages[0]))
    asked = Layout(
        zero_stage=stage, offload_optimizer="none", offload_param="none", activation_checkpointing="none", **sizes
    )
    problem, hint = unsplittable(recipe.shape, asked, recipe.seq_divisor)
    if problem:
        raise Indivisible("pin", steering.pinned, f"cannot be: {problem}", hint=hint)
    if problem := altered(recipe.optimizer.name, asked.kinds):
        raise InputError("pin", steering.pinned, f"cannot be: {problem}", hint="another size, or another recipe")


def _require_precision(recipe: Recipe, cluster: Cluster) -> None:
    if recipe.precision == "bf16" and not cluster.accelerator.supports_bf16:
        raise InputError("precision", "bf16", f"is not supported by {cluster.accelerator.name}", hint="use fp16")
    if recipe.precision == "fp16" and cluster.is_cpu:
        raise InputError("precision", "fp16", "is refused by DeepSpeed on a CPU", hint="use bf16 or fp32")


def _require_optimizer(recipe: Recipe, cluster: Cluster, steering: Steering) -> None:
    """What rules out every strategy at once."""
    name = recipe.optimizer.name
    if OPTIMIZERS[name].stages == (0,) and recipe.precision != "fp32":
        problem = f"does not go with {name}, which needs stage 0, where DeepSpeed 0.19.8 takes a step too many in it"
        raise InputError("precision", recipe.precision, problem, hint="fp32")
    if cluster.is_cpu and OPTIMIZERS[name].needs_gpu:
        problem = f"has no kernel that runs on {cluster.accelerator.name}: {OPTIMIZERS[name].implementation}"
        raise InputError("optimizer", name, problem, hint="GPUs, or another optimizer")
    pinned = dict(steering.pins)
    stage, place = pinned.get("zero_stage", OPTIMIZERS[name].stages[0]), pinned.get("offload_optimizer", "none")
    if reason := unsound(name, int(stage), place):  # type: ignore[arg-type]  # pins are checked as they are read
        raise InputError("pin", steering.pinned, "cannot be", hint=reason)


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
        raise InputError("pin", steering.pinned, "cannot be", hint=ignored)
