"""The training loop. Set-up is elsewhere; this file is what happens at every step."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scaling import course
from scaling.data import IGNORED, Corpus, count_targets, micro_batch_indices
from scaling.errors import Stopped
from scaling.manifest import NoCheckpoint, step_of, steps
from scaling.recipe import Recipe
from scaling.strategy import Strategy
from scaling.training import checkpoint, sequence
from scaling.training.checkpoint import Reached, Saver
from scaling.training.engine import (
    DTYPES,
    LossScaleAtFloor,
    discard_gradients,
    gradient_divisor,
    step_and_gradient_norm,
)
from scaling.training.guards import Judge, Judgement, unhealthy
from scaling.training.memory import MemoryGauge
from scaling.training.noise_scale import GradientNoise
from scaling.training.optimizer import set_learning_rate
from scaling.training.pipeline import Pipelined, is_pipelined
from scaling.training.progress import Talk
from scaling.training.ranks import Ranks, place_of
from scaling.training.schedule import learning_rate
from scaling.training.signals import StopRequest
from scaling.training.tracking import Tracking
from scaling.training.watch import Watch
from scaling.training.watchdog import Watchdog

Batch = dict[str, torch.Tensor]
_SAMPLES_OF_A_STAGE = 1 << 28  # sixteen stages keep apart in 32 bits, for so many samples each


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
    saver: Saver
    judge: Judge
    watchdog: Watchdog
    request: StopRequest
    hint: str  # how a run that is stopped goes on
    step: int
    stop_step: int
    paces: list[float] = field(default_factory=list)  # tokens per second of each step
    # What the ranks told each other in the last collective: how many are asked to stop, how many have written.
    num_asked: int = 0
    num_written: int = 0
    last_save: dict[str, float] = field(default_factory=dict)  # goes into the next line of metrics
    peaks: list[int] = field(default_factory=list)  # bytes, by rank

    def __post_init__(self) -> None:
        if is_pipelined(self.engine):
            self.passes: Pipelined | Plain = Pipelined(
                self.engine, self.begin_micro_step, self.noise.of_micro_batch, self.watch.clock.lap
            )
        else:
            self.passes = Plain(engine=self.engine, micro_step=self.micro_step, laps=self.watch.clock.lap)

    def run(self) -> None:
        """Trains from `step` to `stop_step`, evaluating and saving as the recipe says, and at the end.

        Raises Stopped where it ends before: asked to, having saved, or by a guard.
        """
        # The second step is the first with everything allocated: moments are made during the first. Of steps that grow
        # those at the end are the largest.
        watched = max(self.step + 1, course.stretch(self.recipe, self.stop_step - 1).number)
        self.watchdog.doing("beginning")
        with self.talk.start(done=self.step, total=self.stop_step):
            try:
                while self.step < self.stop_step:
                    self.take_step(watch_memory=self.step == watched)
            except Stopped:  # on all ranks alike, so that what was begun can be written
                self.saver.finish()
                raise
            self.finish()
        self.gauge.read()
        self.peaks = self.ranks.gathered(self.gauge.peak_allocated_bytes)

    def take_step(self, *, watch_memory: bool) -> None:
        """One step with what belongs to it: its evaluation, its line of metrics, its checkpoint."""
        recipe, started_at = self.recipe, time.perf_counter()
        values = self.optimizer_step(watch_memory=watch_memory)
        elapsed_s = time.perf_counter() - started_at
        self.watchdog.step_took(elapsed_s)
        last = self.step == self.stop_step
        if last or self.step % recipe.evaluate_every_steps == 0:
            values |= self.evaluate()
        # Before its checkpoint, so that a run that goes on from there has the line of every step.
        self.report(values | self.last_save, elapsed_s)
        self.last_save = {}
        if last or self.num_asked or self.step % recipe.checkpoint_every_steps == 0:
            self.last_save = {"save_pause_s": self.save(values.get("validation_loss"))}
        elif self.saver.is_pending and self.num_written == self.ranks.world_size:
            self.watchdog.doing(f"making the checkpoint before step {self.step} visible")
            self.saver.finish()
        if self.num_asked and not last:
            self.leave()

    def save(self, validation_loss: float | None = None) -> float:
        """Begins a checkpoint; the seconds for which training waited."""
        self.watchdog.doing("saving")
        if self.metrics:
            self.metrics.sync()
        return self.saver.begin(
            Reached(
                step=self.step,
                samples_seen=course.at(self.recipe, self.step).first_sample,
                validation_loss=validation_loss,
                recent_losses=self.judge.recent_losses,
                rollbacks=self.judge.rollbacks,
                skipped_in_a_row=self.judge.skipped_in_a_row,
            )
        )

    def finish(self) -> None:
        """Waits for the last checkpoint. Raises ScaleError where it could not be written."""
        self.watchdog.doing("waiting for the last checkpoint")
        self.saver.finish()
        if self.saver.failed:
            raise NoCheckpoint(
                f"checkpoint: step {self.step} could not be saved: {self.saver.failed}",
                hint="make room and run it again: it goes on from the checkpoint before",
            )

    def leave(self) -> None:
        """Ends a run that was asked to stop."""
        self.finish()
        self.request.is_safe = True
        name = next(name for name in self.ranks.gathered(self.request.name) if name)
        raise Stopped(
            f"by {name} at step {self.step} of {self.stop_step}, saved",
            exit_code=75, hint=self.hint,
        )  # fmt: skip

    def optimizer_step(self, *, watch_memory: bool = False) -> dict[str, Any]:
        """One optimizer step on the next global batch; its loss, learning rate, gradient norm and noise."""
        engine, ranks, clock = self.engine, self.ranks, self.watch.clock
        clock.start()
        self.watchdog.doing(f"step {self.step + 1}, its batch")
        lr = learning_rate(self.recipe, self.step + 1)
        set_learning_rate(engine, lr)
        now = course.at(self.recipe, self.step)
        micro_batches = list(self.micro_batches(now))
        clock.lap("data")
        # The loss is the sum over targets divided by their global number. DeepSpeed averages over ranks, which
        # multiplying by their number undoes; so no split of the batch changes the gradient.
        counted = ranks.summed(sum(count_targets(batch) for _, batch in micro_batches))
        num_targets = counted / self.strategy.model_parallel_size  # whose ranks count the same ones
        scale = gradient_divisor(self.strategy) / num_targets
        # Of the loss, of what the noise scale asks of a micro batch, of ranks asked to stop, and of those that wrote.
        sums = torch.zeros(4, device=ranks.device)
        with ExitStack() as watched:
            watched.enter_context(self.gauge.seeing(on=watch_memory and is_pipelined(engine)))
            measure = partial(self.gauge.watching, engine.module, on=watch_memory)
            sums[:2] = self.passes.accumulate(micro_batches, scale, lambda: watched.enter_context(measure()))
            self.watchdog.doing(f"step {self.step + 1}, adding up over ranks")
            told = [bool(self.request.name), self.saver.is_written]
            sums[2:] = torch.tensor(told, dtype=sums.dtype, device=sums.device)
            loss_sum, squares, asked, written = ranks.summed(sums)
            self.num_asked, self.num_written = int(asked), int(written)
            loss = float(loss_sum / num_targets)
            clock.lap("rest")
            grad_norm = self.update(loss, is_finite=math.isfinite(loss + float(squares)))
            clock.lap("optimizer")
        self.step += 1
        values = {"loss": loss, "lr": lr, "grad_norm": float(grad_norm)}
        return values | self.noise.of_step(squares, scale, grad_norm, now.global_batch_size)

    def begin_micro_step(self, first_sample: int) -> None:
        self.watchdog.doing(f"step {self.step + 1}, a micro step")
        self.seed_dropout(first_sample)

    def micro_step(self, first_sample: int, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
        """Forward and backward of one micro batch: its summed loss, and what the noise scale asks of it."""
        self.begin_micro_step(first_sample)
        clock = self.watch.clock
        clock.lap("rest")
        loss = self.engine(**batch)
        clock.lap("forward")
        self.engine.backward(loss * scale, scale_wrt_gas=False)
        clock.lap("backward")
        own = 1 / self.strategy.tensor_parallel_size  # whose ranks have the same loss
        return torch.stack([loss.detach() * own, self.noise.of_micro_batch(count_targets(batch))])

    def update(self, loss: float, *, is_finite: bool) -> torch.Tensor | float:
        """The optimizer's step, or what a guard does instead; the gradient norm before clipping."""
        self.watchdog.doing(f"step {self.step + 1}, its update")
        # An overflow is how fp16 finds its loss scale: DeepSpeed skips those, and the loss alone is judged.
        in_fp16 = self.recipe.precision == "fp16"
        judgement = self.judge.judge(loss, is_finite=math.isfinite(loss) if in_fp16 else is_finite)
        if judgement.action in ("train", "warn"):
            if judgement.action == "warn":
                self.tell(judgement, "trained on")
            self.judge.trained(loss)
            try:
                return step_and_gradient_norm(self.engine)
            except LossScaleAtFloor as error:
                raise unhealthy(f"step {self.step + 1}: {error}{self.culprits()}") from None
            finally:
                self.noise.forget()
        what = self.tell(
            judgement, {"skip": "its update is left out", "rollback": "going back"}.get(judgement.action, "stopped")
        )
        discard_gradients(self.engine)
        self.noise.forget()
        match judgement.action:
            case "skip":
                self.judge.skipped(what)
            case "rollback":
                self.judge.rolled_back(what)
                self.roll_back(what)
            case _:
                raise unhealthy(what)
        return math.nan

    def roll_back(self, what: str) -> None:
        """Takes the weights of the newest checkpoint, and counts the batches since then as seen.

        Only of those that the recipe asks for, which a run that is stopped in between has too.
        """
        self.watchdog.unusual("going back to a checkpoint")
        self.saver.finish()
        every = self.recipe.checkpoint_every_steps
        due = [path for path in steps(self.folder / "checkpoints") if step_of(path) % every == 0]
        fits = partial(checkpoint.require_match, recipe=self.recipe, strategy=self.strategy)
        try:
            found = checkpoint.first_whole(due, self.ranks, fits, self.talk.say, self.watchdog.tick)
        except NoCheckpoint as error:
            raise unhealthy(f"{what}, and {error.message}") from None
        if found is None:
            raise unhealthy(f"{what}, and there is no checkpoint yet to go back to")
        reached, _ = checkpoint.load(self.engine, found, self.strategy)
        self.judge.recent_losses = reached.recent_losses
        self.talk.say(
            f"went back to {found.name}: the batches of steps {reached.step + 1} to {self.step + 1} are left out"
        )

    def tell(self, judgement: Judgement, action: str) -> str:
        """Says and records what a guard saw and does; the sentence."""
        what = f"step {self.step + 1}: {judgement.reason}{self.culprits()}"
        self.talk.say(f"warning: {what}: {action}")
        if self.metrics:
            self.metrics.event(
                {"step": self.step + 1, "kind": judgement.kind, "action": judgement.action, "message": what}
            )
        return what

    def culprits(self) -> str:
        """Whose gradients are not finite, and in which parameter that began; a collective."""
        found = enumerate(self.ranks.gathered(self.noise.not_finite()))
        said = [f"rank {rank}: {names[0]} first, {len(names)} in all" for rank, names in found if names]
        return f"; gradients not finite on {', '.join(said)}" if said else ""

    def micro_batches(self, now: course.Step) -> Iterator[tuple[int, Batch]]:
        """This rank's share of the global batch of step `now`, on its device; each with its first sample's number."""
        size = self.strategy.data_parallel_size
        steps = now.global_batch_size // (self.strategy.micro_batch_size * size)
        for micro_step in range(steps):
            indices = micro_batch_indices(
                first_sample=now.first_sample,
                global_batch_size=now.global_batch_size,
                rank=place_of(self.ranks.rank, self.strategy).data,
                data_parallel_size=size,
                micro_step=micro_step,
                gradient_accumulation_steps=steps,
            )
            yield indices.start, self.moved(self.corpus.train.batch(indices, now.seq_length))

    def seed_dropout(self, first_sample: int) -> None:
        """Makes dropout a function of the position in the data, so that a resumed run draws the same masks.

        No two micro batches of a run share their first sample, and no two slices of one their number. torch's CPU
        generator takes the low 32 bits of a seed, which an odd factor keeps apart. A stage of a pipeline draws as of
        samples far on.
        """
        if self.recipe.dropout:
            place, slices = place_of(self.ranks.rank, self.strategy), self.strategy.sequence_parallel_size
            number = slices * first_sample + place.sequence + place.pipeline * _SAMPLES_OF_A_STAGE
            torch.manual_seed(self.recipe.seed + 1_000_003 * number)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss per target on the whole validation part; nothing where the run is asked to stop meanwhile."""
        validation, ranks = self.corpus.validation, self.ranks
        size, total = self.strategy.micro_batch_size, validation.num_samples
        place, share = place_of(ranks.rank, self.strategy), size * self.strategy.data_parallel_size
        sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        self.engine.eval()
        # Every rank runs as many batches as the others: at stage 3 a forward is a collective.
        for start in range(0, total, share):
            self.watchdog.doing(f"evaluating after step {self.step}, sample {start}")
            indices = [start + place.data * size + i for i in range(size)]
            batch = validation.batch([min(index, total - 1) for index in indices])
            batch["labels"][[index >= total for index in indices]] = IGNORED
            batch = self.moved(batch)
            sums += self.passes.evaluate(batch)
            self.num_asked = int(ranks.summed(torch.tensor(float(bool(self.request.name)), device=ranks.device)))
            if self.num_asked:
                break
        self.engine.train()
        loss_sum, num_targets = ranks.summed(sums).tolist()
        return {} if self.num_asked else {"validation_loss": loss_sum / num_targets}

    def report(self, values: dict[str, float], elapsed_s: float) -> None:
        """One line of metrics and of progress."""
        done, reached = course.at(self.recipe, self.step - 1), course.at(self.recipe, self.step)
        tokens_per_second = done.num_tokens / elapsed_s
        self.paces.append(tokens_per_second)
        line = {
            "step": self.step,
            **values,
            "tokens_per_second": tokens_per_second,
            "elapsed_s": elapsed_s,
            "global_batch_size": done.global_batch_size,
            "samples": reached.first_sample,
            "tokens": reached.tokens_before,
        }
        if self.recipe.precision == "fp16":
            line |= {"loss_scale": float(self.engine.optimizer.loss_scale), "skipped_steps": self.engine.skipped_steps}
        if self.metrics:
            line |= self.watch.of_step(self.step, tokens_per_second, elapsed_s)
            self.metrics.write(line)
        left_tokens = course.at(self.recipe, self.stop_step).tokens_before - reached.tokens_before
        left_s = left_tokens / median(self.paces[-20:])
        self.talk.step(line, self.stop_step, left_s)
        if "validation_loss" in values:
            self.talk.say(
                f"step {self.step}: validation loss {values['validation_loss']:.4f} nats per target, "
                f"{self.corpus.baseline}"
            )

    def moved(self, batch: Batch) -> Batch:
        """This rank's part of a batch, on its device, and pixels in the model's own width."""
        if self.strategy.sequence_parallel_size > 1:
            batch = sequence.slice_of(batch, self.ranks.rank, self.strategy, self.recipe.shape.family)
        width = DTYPES[self.recipe.precision]
        dtypes = {name: width if tensor.is_floating_point() else tensor.dtype for name, tensor in batch.items()}
        return {name: batch[name].to(self.ranks.device, dtype, non_blocking=True) for name, dtype in dtypes.items()}

    def measured(self) -> dict[str, dict[str, Any]]:
        """What this run says about its plan: {quantity: {value, where the plan predicts it, how it was measured}}."""
        # Of the largest batch so far, and of the longest samples.
        alike = self.step - course.stretch(self.recipe, self.step - 1).number
        settled = self.paces[2:] or self.paces  # the first two carry allocation and measurement
        return {
            "peak_allocated_bytes": {
                "value": max(self.peaks),
                "predicted_in": "memory",
                "how": f"{self.gauge.how}, the fullest of {len(self.peaks)} ranks",
                "by_rank": self.peaks,
            },
            "tokens_per_second": {
                "value": median(settled[-alike:]),
                "predicted_in": "time",
                "how": "median over steps from the third on that are as large as the last, all ranks",
            },
        }


@dataclass(frozen=True, kw_only=True)
class Plain:
    """How a rank that runs the whole model makes the gradients of a global batch, and evaluates.

    Pipelined, in scaling/training/pipeline.py, does so by stages.
    """

    engine: Any
    micro_step: Callable[[int, Batch, torch.Tensor], torch.Tensor]
    laps: Callable[[str], None]

    def accumulate(
        self, micro_batches: list[tuple[int, Batch]], scale: torch.Tensor, before_last: Callable[[], Any]
    ) -> torch.Tensor:
        """Makes the gradient of the loss times `scale` over all ranks' micro batches: what micro_step returned, summed.

        `before_last` is called before the last micro batch's forward.
        """
        *others, last = micro_batches
        sums = torch.zeros(2, device=scale.device)
        # Left to itself DeepSpeed takes a step at each multiple of the configured accumulation, which a ramp varies
        # (0.19.8, runtime/engine.py:is_gradient_accumulation_boundary).
        self.engine.set_gradient_accumulation_boundary(False)
        for first_sample, batch in others:
            sums += self.micro_step(first_sample, batch, scale)
            self.engine.step()  # counts the micro step; the engine accumulates
            self.laps("optimizer")
        self.engine.set_gradient_accumulation_boundary(True)
        before_last()
        return sums + self.micro_step(*last, scale)

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """[summed loss, targets] of a batch."""
        return torch.stack([self.engine(**batch).double(), count_targets(batch).double()])
