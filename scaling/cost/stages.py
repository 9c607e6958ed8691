"""Which layers each stage of a pipeline has: what scale/train.py does, and what other stacks do."""

from scaling.cost.job import Job
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.strategy import Rank, Strategy, layers_per_rank


def layers_of_rank(job: Job, strategy: Strategy, profile: Profile = DEEPSPEED, rank: Rank = "any") -> int:
    """Layers of a pipeline rank; of any, those of the one that has most. Other stacks part them evenly."""
    if strategy.pipeline_parallel_size == 1 or not profile.buckets:
        return layers_per_rank(job.shape, strategy)
    counts = [len(share) for share in layers_of_stages(job, strategy.pipeline_parallel_size)]
    return {"first": counts[0], "last": counts[-1], "any": max(counts)}[rank]


def layers_of_stages(job: Job, num_stages: int) -> list[range]:
    """The layers of each stage: as even in FLOPs as whole layers are, the head's counted."""
    matrices, scores, head = job.flops_by_part
    return shares_of_layers(job.shape.num_layers, num_stages, head * job.shape.num_layers / (matrices + scores))


def shares_of_layers(num_layers: int, num_stages: int, head_in_layers: float) -> list[range]:
    """The layers of each stage, so that the slowest is as fast as may be: at least one each, fewer beside the head.

    `head_in_layers` is the head's work in layers. As few as need be are on the last stage, and the rest as even as
    they go, the first having what is over: it waits for its gradients longest, but has no loss.
    """
    if num_stages == 1:
        return [range(num_layers)]
    others = num_stages - 1

    def slowest(last: int) -> float:
        return max(-(-(num_layers - last) // others), last + head_in_layers)

    last = min(range(1, num_layers - others + 1), key=lambda count: (slowest(count), -count))
    each, over = divmod(num_layers - last, others)
    counts = [each + (number < over) for number in range(others)] + [last]
    begins = [sum(counts[:number]) for number in range(num_stages)]
    return [range(begin, begin + count) for begin, count in zip(begins, counts, strict=True)]
