"""The gradient noise scale's two norms, measured at every step: of micro batches by hooks, of the batch by the engine.

The hooks also tell the guards of a gradient that is not finite, on whichever rank, before it reaches the weights.

A tensor's hook sees the gradient of one backward before DeepSpeed reduces, accumulates or shards it: whole at stage 3,
once where weights are tied, and once under non-reentrant checkpointing. So it costs a read of each gradient and holds
none, and there is no transfer to the host before the step's own.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from scaling.batch.noise_scale import of_run, signal_and_noise
from scaling.strategy import Strategy
from scaling.training.engine import loss_scale, row_norms
from scaling.training.parts import counted_here
from scaling.training.pipeline import is_pipelined, named_parameters


class GradientNoise:
    """Measures while `engine` trains, or says `why_not`.

    A step of one micro batch has nothing to compare, and there are layouts in which no rank has a micro batch's whole
    gradient: it is that of a slice of the sequences, or its experts see other ranks' samples.
    """

    def __init__(self, engine: Any, strategy: Strategy, device: torch.device) -> None:
        self.engine, self.device = engine, device
        self.world_size = strategy.data_parallel_size
        self.small_batch = strategy.micro_batch_size
        self.why_not = ""
        if self.small_batch == strategy.global_batch_size:
            self.why_not = "a step being one micro batch on one rank; two would do"
        elif is_pipelined(engine) and engine.module.has_shared_weights:
            # Each end sees its part of that weight's gradient, and the parts' norms do not say that of their sum.
            self.why_not = "the head's weight being the embedding's, on another stage of the pipeline"
        elif found := {"sequence", "expert"} & set(strategy.parallelism):
            self.why_not = f"no rank having a micro batch's whole gradient under {found.pop()} parallelism"
        self._norms: list[tuple[str, torch.Tensor]] = []  # of this backward so far
        self._of_step: list[tuple[list[tuple[str, int]], torch.Tensor]] = []  # ([(name, norms)], all of them in fp32)
        for name, parameter in named_parameters(engine).items():
            parameter.register_hook(partial(self._note, name, counted_here(parameter)))

    def _note(self, name: str, is_counted: bool, gradient: torch.Tensor) -> None:
        norms = row_norms(gradient)
        # What another tensor parallel rank counts is zero here, or not finite.
        self._norms.append((name, norms if is_counted else norms * 0))

    def of_micro_batch(self, num_targets: torch.Tensor) -> torch.Tensor:
        """|g|^2 / targets of the backward that has just ended, g being its gradient as the loop scales it."""
        if not self._norms:
            return torch.zeros((), device=self.device)
        norms = torch.cat([rows for _, rows in self._norms]).float() / loss_scale(self.engine)
        self._of_step.append(([(name, len(rows)) for name, rows in self._norms], norms))
        self._norms = []
        return norms.square().sum() / num_targets.clamp(min=1)

    def not_finite(self) -> list[str]:
        """The parameters whose gradients of this step are not finite on this rank, in the order they were met."""
        return list(dict.fromkeys(
            name for parts, norms in self._of_step
            for (name, _), of_one in zip(parts, norms.cpu().split([size for _, size in parts]), strict=True)
            if not of_one.isfinite().all()
        ))  # fmt: skip

    def forget(self) -> None:
        """The step is over."""
        self._of_step.clear()

    def of_step(
        self, summed: torch.Tensor, scale: torch.Tensor, big_norm: torch.Tensor | float, big_batch: int
    ) -> dict[str, float]:
        """|G|^2 and tr(S) per sample, from `of_micro_batch` summed over all micro batches of a batch of `big_batch`.

        Nothing after an overflow, nor of a batch that is one micro batch, as a ramp's first may be.

        A micro batch m of n_m targets has g_m = scale n_m x its mean gradient, with scale = world size / N targets.
        Averaging the squared means with weights n_m / N, as the batch's gradient averages them, makes N targets over M
        micro batches the small batch also where masking or padding makes the n_m differ.
        """
        small_squared, big_squared = float(summed / (scale * self.world_size)), float(big_norm) ** 2
        compares = not self.why_not and self.small_batch < big_batch
        if not compares or not math.isfinite(small_squared + big_squared):
            return {}
        signal, noise = signal_and_noise(
            small_squared_norm=small_squared,
            big_squared_norm=big_squared,
            small_batch=self.small_batch,
            big_batch=big_batch,
        )
        return {"gradient_signal": signal, "gradient_noise": noise}

    def report(self, lines: Iterable[Mapping[str, Any]], seq_length: int) -> str:
        """What the run's metrics say of its noise scale, or why they say nothing."""
        if self.why_not:
            return f"gradient noise scale: not measured, {self.why_not}"
        found = of_run(lines)
        return found.sentence(seq_length) if found else "gradient noise scale: 40 steps are needed for an interval"
