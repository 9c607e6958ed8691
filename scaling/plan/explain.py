"""Why each family of strategies lost, in numbers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from scaling.cost import MemoryEstimate
from scaling.plan.layouts import Layout
from scaling.plan.plan import TIE_FRACTION, Candidate, Rejection
from scaling.plan.question import shortfall
from scaling.plan.steering import Steering
from scaling.strategy import Strategy
from scaling.units import format_bytes, format_duration


@dataclass(kw_only=True)
class Family:
    """What a search found of one stage, offload, checkpointing and kinds of parallelism, whatever the sizes.

    `layout` is any one of it; `fitting` and `short` hold the best of each layout.
    """

    layout: Layout
    illegal: str = ""
    num_priced: int = 0
    fitting: list[Candidate] = field(default_factory=list)
    short: list[tuple[Strategy, MemoryEstimate]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """Why one family lost. `rank` orders: the rules first, then what does not fit, then the slower ones by time."""

    layout: Layout
    name: str
    reason: str
    rank: tuple[bool, int, float]


def rejections(families: Iterable[Family], chosen: Candidate | None, steering: Steering) -> tuple[Rejection, ...]:
    """All families but that of `chosen`; those that lost for the same reason together."""
    families = list(families)
    losses = [_loss(family, chosen, steering) for family in families if not _holds(family, chosen)]
    forms = Counter((family.layout.zero_stage, family.layout.kinds) for family in families)
    grouped: dict[tuple[bool, str], list[_Loss]] = {}
    for loss in sorted(losses, key=lambda loss: loss.rank):
        grouped.setdefault((loss.layout.runnable, loss.reason), []).append(loss)
    return tuple(
        Rejection(strategy=_label(group, forms), reason=reason, can_run=can_run)
        for (can_run, reason), group in grouped.items()
    )


def _holds(family: Family, chosen: Candidate | None) -> bool:
    return chosen is not None and any(chosen is candidate for candidate in family.fitting)


def _loss(family: Family, chosen: Candidate | None, steering: Steering) -> _Loss:
    layout = family.layout
    name, beyond = ", ".join([str(layout), *(f"{kind} parallel" for kind in layout.kinds)]), not layout.runnable
    if family.fitting:
        best = min(family.fitting, key=lambda candidate: candidate.time.step_s)
        reason = _beyond(best, chosen, layout.not_run) if beyond else _slower(best, chosen)
        return _Loss(
            layout=layout,
            name=str(best.strategy) if beyond else name,
            reason=reason,
            rank=(beyond, 2, best.time.step_s),
        )
    if family.short:
        reason = shortage(*min(family.short, key=lambda each: shortfall(each[1])))
        return _Loss(layout=layout, name=name, reason=reason, rank=(beyond, 1, 0.0))
    # A family whose sizes leave too few micro-batches for a pipeline has neither price nor rule against it.
    excluded = f"excluded: {steering}" if str(steering) else "the batch is too small for its micro-batches"
    return _Loss(layout=layout, name=name, reason=family.illegal or excluded, rank=(beyond, 0, 0.0))


def shortage(strategy: Strategy, memory: MemoryEstimate) -> str:
    """What is too large: the model states alone, or the sum at the smallest micro batch, or what the host must hold."""
    usable = f"{format_bytes(memory.usable_bytes)} usable of {format_bytes(memory.capacity_bytes)}"
    if memory.model_states_bytes > memory.usable_bytes:
        return f"{format_bytes(memory.model_states_bytes)} of model states > {usable}"
    if not memory.fits_device:
        parts = {
            "model states": memory.model_states_bytes,
            "activations and logits": memory.activations_bytes + memory.logits_bytes,
            "buffers": memory.buffers_bytes,
            "reserve and context": memory.total_bytes - memory.peak_allocated_bytes,
        }
        said = " + ".join(f"{format_bytes(size)} of {name}" for name, size in parts.items() if size)
        total = format_bytes(memory.total_bytes)
        return f"{total} at micro batch {strategy.micro_batch_size} > {usable}: {said}"
    if not memory.fits_host:
        need, there = format_bytes(memory.host_bytes_per_node), format_bytes(memory.host_capacity_bytes)
        return f"{need} of host memory per node > {there}, {built_whole(strategy)}"
    need, there = format_bytes(memory.nvme_bytes_per_node), format_bytes(memory.nvme_capacity_bytes)
    return f"{need} of NVMe per node > {there}"


def built_whole(strategy: Strategy) -> str:
    """What a host needs memory for, beside offloading."""
    who = "the first rank" if strategy.zero_stage == 3 else "every rank"
    return f"since {who} builds the model whole before DeepSpeed shards it"


def _slower(other: Candidate, chosen: Candidate | None) -> str:
    assert chosen is not None  # the best of what fits is chosen where anything fits
    factor, step = other.time.step_s / chosen.time.step_s, format_duration(other.time.step_s)
    if factor < 1 - TIE_FRACTION:
        return f"fits and is faster, {step} a step, but needs more memory"
    if factor < 1 + TIE_FRACTION:
        return "fits and is as fast; the chosen one is simpler or smaller"
    return f"fits, but a step takes {step}, {factor:.2f} x the chosen one"


def _beyond(candidate: Candidate, chosen: Candidate | None, not_run: str) -> str:
    """What is not run, with what it would bring."""
    step, each = format_duration(candidate.time.step_s), format_bytes(candidate.memory.total_bytes)
    against = ""
    if chosen is not None and chosen.memory.fits:
        against = f", {candidate.time.step_s / chosen.time.step_s:.2f} x the chosen one"
    return f"would take {step} a step{against} and {each}; scale/train.py does not run it: {not_run}"


def _label(group: list[_Loss], forms: Counter[tuple[int, tuple[str, ...]]]) -> str:
    """The names of a group; a stage that is there in all its forms by its number."""
    there = Counter((loss.layout.zero_stage, loss.layout.kinds) for loss in group)
    names = []
    for loss in group:
        stage, kinds = key = loss.layout.zero_stage, loss.layout.kinds
        whole = there[key] == forms[key] > 1
        name = ", ".join([f"ZeRO-{stage} in every form", *(f"{kind} parallel" for kind in kinds)])
        names.append(name if whole else loss.name)
    return "; ".join(dict.fromkeys(names))
