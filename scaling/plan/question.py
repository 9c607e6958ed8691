"""What a search is asked, and the prices of the strategies that could answer it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from scaling import cost, course
from scaling.cost.model_states import FP32_BYTES
from scaling.cost.profile import Profile
from scaling.hardware import Cluster
from scaling.plan.layouts import Layout, illegal, layouts
from scaling.plan.plan import Candidate
from scaling.plan.steering import Steering
from scaling.recipe import Recipe
from scaling.strategy import LossKernel, Strategy, bucket_size, smaller_bucket_sizes
from scaling.units import SECONDS_PER_DAY

_LARGEST_MICRO_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class Question:
    """How to train `recipe` on `cluster`, as `steering` allows; `profile` prices memory."""

    recipe: Recipe
    cluster: Cluster
    profile: Profile
    steering: Steering

    @cached_property
    def job(self) -> cost.Job:
        return cost.Job.of(self.recipe)

    def strategies(self, layout: Layout) -> Iterator[Strategy]:
        """One per loss kernel for every micro batch that divides a data-parallel rank's share of every batch, smallest
        first. The accumulation is that of the global batch, the largest."""
        ranks = self.cluster.world_size // layout.split
        share, divisor = self.recipe.global_batch_size // ranks, self.recipe.batch_divisor // ranks
        for micro in range(1, min(divisor, _LARGEST_MICRO_BATCH) + 1):
            # A pipeline with fewer micro-batches than ranks stands idle most of the time.
            if divisor % micro == 0 and share // micro >= layout.pipeline_parallel_size:
                for kernel in self._loss_kernels():
                    strategy = self._strategy(layout, micro, share // micro, kernel)
                    if self.steering.allows(strategy):
                        yield strategy

    def _loss_kernels(self) -> tuple[LossKernel, ...]:
        """A masked-LM head has few logits, and is never chunked."""
        return ("full", "chunked") if self.recipe.task == "causal-lm" else ("full",)

    def _strategy(self, layout: Layout, micro_batch_size: int, steps: int, loss_kernel: LossKernel) -> Strategy:
        bucket = bucket_size(self.recipe.shape)
        return Strategy(
            zero_stage=layout.zero_stage,
            offload_optimizer=layout.offload_optimizer,
            offload_param=layout.offload_param,
            data_parallel_size=self.cluster.world_size // layout.split,
            tensor_parallel_size=layout.tensor_parallel_size,
            pipeline_parallel_size=layout.pipeline_parallel_size,
            sequence_parallel_size=layout.sequence_parallel_size,
            expert_parallel_size=layout.expert_parallel_size,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=steps,
            activation_checkpointing=layout.activation_checkpointing,
            loss_kernel=loss_kernel,
            reduce_bucket_size=bucket,
            allgather_bucket_size=bucket,
        )

    def memory(self, strategy: Strategy) -> cost.MemoryEstimate:
        safety = self.steering.safety
        return cost.memory(self.job, strategy, self.cluster, self.profile, usable_fraction=safety)

    def made_to_fit(self, strategy: Strategy) -> tuple[Strategy, cost.MemoryEstimate]:
        """`strategy` and its memory; with smaller buckets where only those make it fit the device."""
        memory = self.memory(strategy)
        excess = memory.total_bytes - memory.usable_bytes
        # Of the buckets' bytes at most this much could go: two to reduce in, one to prefetch, two to gather in.
        if excess <= 0 or excess > 5 * strategy.reduce_bucket_size * FP32_BYTES * self.profile.reserved_over_allocated:
            return strategy, memory
        for size in smaller_bucket_sizes(self.recipe.shape):
            strategy = replace(strategy, reduce_bucket_size=size, allgather_bucket_size=size)
            memory = self.memory(strategy)
            if memory.fits_device:
                break
        return strategy, memory

    def candidate(self, strategy: Strategy, memory: cost.MemoryEstimate) -> Candidate:
        """The time is priced last, and only for strategies that are worth it: half of a search's work."""
        time = cost.step_time(self.job, strategy, self.cluster, self.profile)
        if self.recipe.batch_ramp:
            time = replace(time, train_days=self._train_days(strategy, time.step_s, self.recipe.batch_ramp.start))
        return Candidate(strategy=strategy, memory=memory, time=time)

    def _train_days(self, strategy: Strategy, step_s: float, start: int) -> float:
        """The steps of a ramp from `start` samples, whose time is what one takes at any batch and so much for each
        sample."""
        largest = self.recipe.global_batch_size
        steps = strategy.gradient_accumulation_steps * start // largest
        smallest = replace(strategy, gradient_accumulation_steps=steps)
        smallest_s = cost.step_time(self.job, smallest, self.cluster, self.profile).step_s
        sample_s = (step_s - smallest_s) / (largest - start)
        num_steps = self.recipe.num_steps
        missing = num_steps * largest - course.num_samples(self.recipe)
        return (num_steps * step_s - missing * sample_s) / SECONDS_PER_DAY

    def least(self) -> list[tuple[Strategy, cost.MemoryEstimate]]:
        """The strategy of each layout that can be run, at the micro batches that take least memory.

        Memory grows with the micro batch, but a single micro step needs no sums: the least is at one of the two ends,
        by one of the loss kernels.
        """
        found = []
        for layout in layouts(self.recipe, self.cluster):
            if layout.runnable and not illegal(self.recipe, layout):
                allowed = list(self.strategies(layout))
                ends = {strategy.micro_batch_size for strategy in (allowed[:1] + allowed[-1:])}
                found += [self.made_to_fit(each) for each in allowed if each.micro_batch_size in ends]
        return found


def shortfall(memory: cost.MemoryEstimate) -> tuple[bool, float]:
    """Orders what does not fit: first what the device holds, since hosts grow more easily; then by how many times
    over what there is, on the device, the host or NVMe, whichever is worst."""
    return not memory.fits_device, max(
        memory.total_bytes / memory.usable_bytes,
        memory.host_bytes_per_node / memory.host_capacity_bytes,
        memory.nvme_bytes_per_node / max(memory.nvme_capacity_bytes, 1),
    )
