"""Where nothing fits: what would, each with its numbers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil

from scaling import hardware
from scaling.cost import MemoryEstimate
from scaling.plan.explain import built_whole
from scaling.plan.question import Question
from scaling.plan.steering import Steering
from scaling.strategy import Strategy
from scaling.units import GIB, format_bytes

_MOST_NODES = 4096
_SEQ_LENGTH_STEP = 64
_UNLIMITED = 2**60  # bytes
_WORTHWHILE = 0.95  # of the host memory that is needed without NVMe

_Priced = tuple[Strategy, MemoryEstimate]


def remedies(question: Question) -> tuple[str, ...]:
    """Sentences, the smallest change first. Where the device holds it and the host does not, only what mends that."""
    on_device = [priced for priced in question.least() if priced[1].fits_device and priced[1].fits_nvme]
    if on_device:
        found = [
            *_freed(question),
            _host_memory(question, on_device),
            *_shorter(question, strict=True),
            *_nvme(question, on_device),
            *_larger_memory(question, strict=True),
            *(_more_gpus(question, strict=True) or _gpus_without_offload(question, on_device)),
        ]
    else:
        found = [
            *_freed(question),
            *_shorter(question, strict=False),
            *_nvme(question, on_device),
            *_larger_memory(question, strict=False),
            *_more_gpus(question, strict=False),
        ]
    return tuple(found) or ("nothing in reach of more nodes: choose a smaller model or GPUs with more memory",)


def _answer(question: Question, strict: bool, only: Callable[[Strategy], bool] = lambda strategy: True) -> str | None:
    """What fits, in words: a strategy and its bytes, and the host memory that it lacks unless `strict`."""
    least = [priced for priced in question.least() if only(priced[0])]
    fitting = [priced for priced in least if priced[1].fits]
    if fitting:
        strategy, memory = min(fitting, key=lambda priced: priced[1].total_bytes)
        return _words(strategy, memory)
    on_device = [priced for priced in least if priced[1].fits_device and priced[1].fits_nvme]
    if strict or not on_device:
        return None
    strategy, memory = min(on_device, key=lambda priced: priced[1].host_bytes_per_node)
    return _words(strategy, memory) + _host_words(memory)


def _words(strategy: Strategy, memory: MemoryEstimate) -> str:
    nvme = f", {format_bytes(memory.nvme_bytes_per_node)} of NVMe per node" if strategy.uses_nvme else ""
    return f"{strategy}, {format_bytes(memory.total_bytes)} each{nvme}"


def _host_words(memory: MemoryEstimate) -> str:
    return "" if memory.fits_host else f", and {format_bytes(memory.host_bytes_per_node)} of host memory per node"


def _freed(question: Question) -> Iterator[str]:
    steering = question.steering
    if str(steering):
        free = Steering(objective=steering.objective, safety=steering.safety)
        if answer := _answer(replace(question, steering=free), strict=True):
            yield f"without {steering}: {answer}"


def _host_memory(question: Question, on_device: list[_Priced]) -> str:
    strategy, memory = min(on_device, key=lambda priced: priced[1].host_bytes_per_node)
    need, there = format_bytes(memory.host_bytes_per_node), format_bytes(question.cluster.host_memory_bytes)
    why, words = built_whole(strategy), _words(strategy, memory)
    return f"{need} of host memory per node (--host-gib) instead of {there}, {why}: {words}"


def _shorter(question: Question, strict: bool) -> Iterator[str]:
    """The longest sequence that fits, by bisection: memory grows with it."""
    recipe, best = question.recipe, None
    low, high = 0, ceil(recipe.data.seq_length / _SEQ_LENGTH_STEP)  # steps: fits, does not
    while high - low > 1:
        middle = (low + high) // 2
        data = recipe.data.model_copy(update={"seq_length": middle * _SEQ_LENGTH_STEP})
        answer = _answer(replace(question, recipe=recipe.model_copy(update={"data": data})), strict)
        if answer:
            low, best = middle, answer
        else:
            high = middle
    if best:
        yield f"seq_length {low * _SEQ_LENGTH_STEP} instead of {recipe.data.seq_length}: {best}"


def _nvme(question: Question, on_device: list[_Priced]) -> Iterator[str]:
    """How much NVMe would do, or would do with less host memory than without it."""
    cluster = question.cluster
    if cluster.is_cpu:
        return
    unlimited = replace(question, cluster=replace(cluster, nvme_bytes=_UNLIMITED))
    priced = [each for each in unlimited.least() if each[0].uses_nvme and each[1].fits_device]
    if not priced:
        return
    strategy, memory = min(priced, key=lambda each: (each[1].host_bytes_per_node, each[1].nvme_bytes_per_node))
    without = min((each[1].host_bytes_per_node for each in on_device), default=_UNLIMITED)
    if memory.fits_host or memory.host_bytes_per_node < _WORTHWHILE * without:
        there = f"instead of {format_bytes(cluster.nvme_bytes)} " if cluster.nvme_bytes else ""
        yield f"NVMe {there}(--nvme-path, --nvme-gib): {_words(strategy, memory)}{_host_words(memory)}"


def _larger_memory(question: Question, strict: bool) -> Iterator[str]:
    """The accelerator of the least memory that does, in as many devices."""
    cluster, precision = question.cluster, question.recipe.precision
    if cluster.is_cpu:
        return
    rows = [
        row
        for row in hardware.known_accelerators().values()
        if row.usable_memory_bytes > cluster.accelerator.usable_memory_bytes
        and (row.supports_bf16 or precision != "bf16")
        and (row.peak_flops_fp32 or precision != "fp32")
    ]
    for row in sorted(rows, key=lambda row: row.usable_memory_bytes):
        if answer := _answer(replace(question, cluster=replace(cluster, accelerator=row)), strict):
            yield f"{cluster.world_size} {row.name} of {row.usable_memory_bytes / GIB:.0f} GiB: {answer}"
            return


def _more_gpus(question: Question, strict: bool) -> list[str]:
    """The fewest nodes, doubling, on which something fits."""
    return _fewest_nodes(question, lambda larger: _answer(larger, strict))


def _gpus_without_offload(question: Question, on_device: list[_Priced]) -> list[str]:
    """Where no number of nodes does for want of host memory: the fewest on which nothing is offloaded to it."""
    if not all(strategy.offloads for strategy, _ in on_device):
        return []
    return _fewest_nodes(question, lambda larger: _answer(larger, False, lambda strategy: not strategy.offloads))


def _fewest_nodes(question: Question, answer_of: Callable[[Question], str | None]) -> list[str]:
    """The batch is rounded up to what they divide."""
    nodes = 2 * question.cluster.num_nodes
    while nodes <= _MOST_NODES:
        larger = replace(question.cluster, num_nodes=nodes)
        batch = ceil(question.recipe.global_batch_size / larger.world_size) * larger.world_size
        adapted = question.recipe.model_copy(update={"global_batch_size": batch})
        if adapted.batch_ramp and adapted.batch_divisor % larger.world_size:
            return []  # a ramp has more sizes than one to round
        if answer := answer_of(replace(question, recipe=adapted, cluster=larger)):
            said = "" if batch == question.recipe.global_batch_size else f" and a global batch of {batch}"
            return [f"{larger.world_size} GPUs ({larger}){said}: {answer}"]
        nodes *= 2
    return []
