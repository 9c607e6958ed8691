"""The training loop. Set-up is elsewhere; this file is what happens at every step."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scaling.data import IGNORED, Corpus, micro_batch_indices
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import checkpoint
from scaling.training.engine import step_and_gradient_norm
from scaling.training.memory import MemoryGauge
from scaling.training.noise_scale import GradientNoise
from scaling.training.optimizer import set_learning_rate
from scaling.training.progress import Talk
from scaling.training.ranks import Ranks
from scaling.training.schedule import learning_rate
from scaling.training.tracking import Tracking
from scaling.training.watch import Watch

Batch = dict[str, torch.Tensor]


@dataclass(kw_only=True)
class Training:
    """A run in motion. `step` counts finished optimizer steps; `stop_step` is where this call ends."""

    recipe: Recipe
    strategy: Strategy
    ranks: Ranks
    engine: Any
    corpus: Corpus
    folder: Path
    talk: Talk
    metrics: Tracking | None
    gauge: MemoryGauge
    noise: GradientNoise
    watch: Watch
    step: int
    stop_step: int
    step_seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Trains from `step` to `stop_step`, evaluating and saving as the recipe says, and at the end."""
        recipe, first = self.recipe, self.step
        with self.talk.start(done=self.step, total=self.stop_step):
            while self.step < self.stop_step:
                started_at = time.perf_counter()
                # The second step is the first with everything allocated: moments are made during the first.
                values = self.optimizer_step(watch_memory=self.step == first + 1)
                elapsed_s = time.perf_counter() - started_at
                self.step_seconds.append(elapsed_s)
                last = self.step == self.stop_step
                if last or self.step % recipe.evaluate_every_steps == 0:
                    values["validation_loss"] = self.evaluate()
                self.report(values, elapsed_s)
                if last or self.step % recipe.checkpoint_every_steps == 0:
                    self.save()
        self.gauge.read()

    def save(self) -> None:
        checkpoint.save(self.engine, self.folder / "checkpoints", self.recipe, self.strategy, self.step, self.ranks)

    def optimizer_step(self, *, watch_memory: bool = False) -> dict[str, float]:
        """One optimizer step on the next global batch; its loss, learning rate, gradient norm and noise."""
        engine, ranks, clock = self.engine, self.ranks, self.watch.clock
        clock.start()
        lr = learning_rate(self.recipe, self.step + 1)
        set_learning_rate(engine, lr)
        micro_batches = list(self.micro_batches())
        clock.lap("data")
        # The loss is the sum over targets divided by their global number. DeepSpeed averages over ranks, which
        # multiplying by their number undoes; so no split of the batch changes the gradient.
        num_targets = ranks.summed(sum(count_targets(batch) for batch in micro_batches))
        scale = ranks.world_size / num_targets
        sums = torch.zeros(2, device=ranks.device)  # of the loss and of what the noise scale asks of a micro batch
        for number, batch in enumerate(micro_batches):
            self.seed_dropout(number)
            last = number == len(micro_batches) - 1
            with self.gauge.watching(engine.module, on=watch_memory and last):
                clock.lap("rest")
                micro_loss = engine(**batch)
                clock.lap("forward")
                engine.backward(micro_loss * scale, scale_wrt_gas=False)
                clock.lap("backward")
                sums += torch.stack([micro_loss.detach(), self.noise.of_micro_batch(count_targets(batch))])
                del micro_loss
                if last:
                    grad_norm = step_and_gradient_norm(engine)
                else:
                    engine.step()  # counts the micro step; the engine accumulates
                clock.lap("optimizer")
        self.step += 1
        loss_sum, squares = ranks.summed(sums)
        values = {"loss": float(loss_sum / num_targets), "lr": lr, "grad_norm": float(grad_norm)}
        return values | self.noise.of_step(squares, scale, grad_norm)

    def micro_batches(self) -> Iterator[Batch]:
        """This rank's share of the next global batch, on its device."""
        steps = self.strategy.gradient_accumulation_steps
        for micro_step in range(steps):
            indices = micro_batch_indices(
                step=self.step,
                global_batch_size=self.recipe.global_batch_size,
                rank=self.ranks.rank,
                data_parallel_size=self.ranks.world_size,
                micro_step=micro_step,
                gradient_accumulation_steps=steps,
            )
            yield self.moved(self.corpus.train.batch(indices))

    def seed_dropout(self, micro_step: int) -> None:
        """Makes dropout a function of the position in the data, so that a resumed run draws the same masks."""
        if self.recipe.dropout:
            position = (self.step * self.strategy.gradient_accumulation_steps + micro_step) * self.ranks.world_size
            torch.manual_seed(self.recipe.seed + 1_000_003 * (position + self.ranks.rank))

    @torch.no_grad()
    def evaluate(self) -> float:
        """The loss per target on the whole validation part."""
        validation, ranks = self.corpus.validation, self.ranks
        size, total = self.strategy.micro_batch_size, validation.num_samples
        sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        self.engine.eval()
        # Every rank runs as many batches as the others: at stage 3 a forward is a collective.
        for start in range(0, total, size * ranks.world_size):
            indices = [start + ranks.rank * size + i for i in range(size)]
            batch = validation.batch([min(index, total - 1) for index in indices])
            batch["labels"][[index >= total for index in indices]] = IGNORED
            batch = self.moved(batch)
            sums += torch.stack([self.engine(**batch).double(), count_targets(batch).double()])
        self.engine.train()
        loss_sum, num_targets = ranks.summed(sums).tolist()
        return loss_sum / num_targets

    def report(self, values: dict[str, float], elapsed_s: float) -> None:
        """One line of metrics and of progress."""
        tokens_per_second = self.recipe.tokens_per_step / elapsed_s
        line = {
            "step": self.step,
            **values,
            "tokens_per_second": tokens_per_second,
            "elapsed_s": elapsed_s,
            "global_batch_size": self.recipe.global_batch_size,
            "samples": self.step * self.recipe.global_batch_size,
        }
        if self.recipe.precision == "fp16":
            line |= {"loss_scale": float(self.engine.optimizer.loss_scale), "skipped_steps": self.engine.skipped_steps}
        if self.metrics:
            line |= self.watch.of_step(self.step, elapsed_s)
            self.metrics.write(line)
        left_s = (self.stop_step - self.step) * median(self.step_seconds[-20:])
        self.talk.step(line, self.stop_step, left_s)
        if "validation_loss" in values:
            self.talk.say(
                f"step {self.step}: validation loss {values['validation_loss']:.4f} nats per target, "
                f"unigram entropy {self.corpus.unigram_entropy_nats:.4f}"
            )
        if not math.isfinite(values["loss"]):
            self.talk.say(f"warning: the loss of step {self.step} is {values['loss']}")

    def moved(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.ranks.device, non_blocking=True) for name, tensor in batch.items()}

    def measured(self) -> dict[str, dict[str, Any]]:
        """What this run says about its plan: {quantity: {value, where the plan predicts it, how it was measured}}."""
        settled = self.step_seconds[2:] or self.step_seconds  # the first two carry allocation and measurement
        return {
            "peak_allocated_bytes": {
                "value": self.gauge.peak_allocated_bytes,
                "predicted_in": "memory",
                "how": self.gauge.how,
            },
            "tokens_per_second": {
                "value": self.recipe.tokens_per_step / median(settled),
                "predicted_in": "time",
                "how": "median over steps from the third on, all ranks",
            },
        }


def count_targets(batch: Batch) -> torch.Tensor:
    return (batch["labels"] != IGNORED).sum()
