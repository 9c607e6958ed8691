"""What our training loop costs beside others', each against the other in one process, so that ratios can be read.

    python benchmarks/training.py loop [MODEL] [PRECISION] [ROUNDS]        against the barest correct DeepSpeed loop
    python benchmarks/training.py trainer [MODEL] [PRECISION] [ROUNDS]     against transformers' Trainer
    python benchmarks/training.py heads [MODEL] [PRECISION] [ROUNDS]       losses that make fewer logits, against all
    python benchmarks/training.py checkpoint [MODEL] [PRECISION] [ROUNDS]  saving in the background, against at once

`loop`, `trainer` and `checkpoint` start scale/train.py with all that it does (metrics, TensorBoard, watchdog, hooks)
and take its steps from there; under torchrun on several ranks. ZeRO-2, two micro batches of 4 x 512 tokens. Contenders
take turns, so that a busy machine slows all alike: of each round the ratio counts, and of those the median, between
quartiles. On a CPU each rank computes with one thread, and user time stands beside the clock's: other work on the
machine changes it less.
"""

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scaling import ds_config, registry, train
from scaling import recipe as recipes
from scaling.recipe import Recipe
from scaling.strategy import Strategy, bucket_size

if TYPE_CHECKING:
    from scaling.training.loop import Training

SEQ_LENGTH, MICRO_BATCH, MICRO_STEPS = 512, 4, 2
NEVER = 1_000_000  # steps
WARM_UP = 2  # rounds that allocate


class Spent(NamedTuple):
    """Seconds by the clock, and of this process's computing."""

    clock_s: float
    user_s: float


Step = Callable[[], object]


class Rounds:
    """The time of each contender in each round."""

    def __init__(self) -> None:
        self.spent: dict[str, list[Spent]] = {}
        self._mark = self._now()

    def restart(self) -> None:
        self._mark = self._now()

    def note(self, name: str) -> None:
        """All since the last mark was `name`'s."""
        now = self._now()
        self.spent.setdefault(name, []).append(Spent(*(b - a for a, b in zip(self._mark, now, strict=True))))
        self._mark = self._now()

    def _now(self) -> Spent:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return Spent(time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime)

    def report(self, ours: str, theirs: str) -> Iterator[str]:
        for kind in Spent._fields:
            mine, other = ([getattr(each, kind) for each in self.spent[name][WARM_UP:]] for name in (ours, theirs))
            ratios = [a / b for a, b in zip(mine, other, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            yield (
                f"{ours} {statistics.median(mine):.3f}, {theirs} {statistics.median(other):.3f} {kind}: "
                f"ratio {middle:.4f}, quartiles {low:.4f} to {high:.4f}, of {len(ratios)} rounds"
            )


def take_turns(contenders: dict[str, Step], num_rounds: int) -> Rounds:
    rounds = Rounds()
    for number in range(num_rounds + WARM_UP):
        # Each goes first as often as last.
        for name, step in list(contenders.items())[:: 1 if number % 2 else -1]:
            rounds.restart()
            step()
            rounds.note(name)
    return rounds


def recipe_of(model: str, precision: str, world_size: int) -> Recipe:
    shape = registry.find(model).shape
    family, seq_length = shape.family, min(SEQ_LENGTH, shape.max_position_embeddings)
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": model,
            "task": "masked-lm" if family == "bert" else "causal-lm",
            "data": {"corpus": ["embedded:docstrings"], "seq_length": seq_length, "validation_fraction": 0.05},
            "global_batch_size": MICRO_BATCH * MICRO_STEPS * world_size,
            "num_steps": NEVER,
            "optimizer": {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup_steps": 100, "min_lr_fraction": 0.1},
            "precision": precision,
            "gradient_clipping": 1.0,
            "evaluate_every_steps": NEVER,
            "checkpoint_every_steps": NEVER,
            "keep_checkpoints": 1,
        }
    )  # fmt: skip


def strategy_of(recipe: Recipe, world_size: int) -> Strategy:
    bucket = bucket_size(recipe.shape)
    return Strategy(
        zero_stage=2, offload_optimizer="none", data_parallel_size=world_size, micro_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=MICRO_STEPS, activation_checkpointing="none",
        reduce_bucket_size=bucket, allgather_bucket_size=bucket,
    )  # fmt: skip


def in_a_run(recipe: Recipe, measure: Callable[["Training"], None], folder: Path) -> None:
    """Starts scale/train.py in `folder`, and has `measure` take the steps."""
    from scaling.training.loop import Training

    def run(training: Training) -> None:
        compute_with_one_thread()
        training.stop_step = NEVER
        with training.talk.start(done=0, total=NEVER):
            measure(training)
        raise SystemExit(0)  # without the run's own report

    Training.run = run  # type: ignore[method-assign]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = ds_config.emit(recipe, strategy_of(recipe, world_size))
    asked = folder / f"asked_{os.environ.get('RANK', '0')}"
    asked.mkdir(parents=True)
    (asked / "recipe.yaml").write_text(recipes.dump(recipe))
    (asked / "ds_config.json").write_text(json.dumps(config))
    train.main([
        "--ds_config", str(asked / "ds_config.json"), "--recipe", str(asked / "recipe.yaml"),
        "--run_dir", str(folder / "run"),
    ])  # fmt: skip


def compute_with_one_thread() -> None:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def bare_step(training: "Training") -> Step:
    """The least that is correct: DeepSpeed's engine with its own schedule, the mean of each micro batch's targets."""
    import deepspeed

    from scaling import models
    from scaling.training.optimizer import parameter_groups

    recipe, ranks, corpus = training.recipe, training.ranks, training.corpus
    model = models.WithLoss(models.build(recipe.shape, seed=recipe.seed))
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, recipe.optimizer.weight_decay),
        config=ds_config.emit(recipe, training.strategy),
    )
    num_targets = MICRO_BATCH * corpus.train.targets_per_sample
    number = 0

    def step() -> None:
        nonlocal number
        for _ in range(MICRO_STEPS):
            first = MICRO_BATCH * (number * ranks.world_size + ranks.rank)
            batch = corpus.train.batch(range(first, first + MICRO_BATCH))
            loss = engine(**{name: tensor.to(ranks.device) for name, tensor in batch.items()})
            engine.backward(loss / num_targets)  # DeepSpeed divides by the micro steps
            engine.step()
            number += 1

    return step


def ours(training: "Training") -> Step:
    return partial(training.take_step, watch_memory=False)


def against_bare(training: "Training", num_rounds: int) -> None:
    rounds = take_turns({"ours": ours(training), "bare": bare_step(training)}, num_rounds)
    say(training, rounds.report("ours", "bare"))


def against_trainer(training: "Training", num_rounds: int) -> None:
    """The Trainer goes on by itself; each time that it has taken a step, we take one."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from scaling import models

    recipe, corpus, step, rounds = training.recipe, training.corpus, ours(training), Rounds()

    class Turns(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            compute_with_one_thread()  # accelerate has taken them all

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            rounds.note("Trainer")
            step()
            rounds.note("ours")

    class Samples(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return corpus.train.num_samples

        def __getitem__(self, index: int) -> dict[str, Any]:
            batch = corpus.train.batch([index])
            # GPT2LMHeadModel shifts labels, unless it is given shifted ones.
            shifted = {"shift_labels": batch["labels"][0]} if recipe.task == "causal-lm" else {}
            return {name: tensor[0] for name, tensor in batch.items()} | shifted

    arguments = TrainingArguments(
        output_dir=str(training.folder / "trainer"),
        deepspeed=ds_config.machinery(ds_config.emit(recipe, training.strategy)),
        per_device_train_batch_size=MICRO_BATCH, gradient_accumulation_steps=MICRO_STEPS,
        max_steps=num_rounds + WARM_UP, optim="adamw_torch_fused", learning_rate=recipe.optimizer.lr,
        weight_decay=recipe.optimizer.weight_decay, lr_scheduler_type="cosine", warmup_steps=100,
        max_grad_norm=recipe.gradient_clipping, bf16=recipe.precision == "bf16", fp16=recipe.precision == "fp16",
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        use_cpu=training.ranks.on_cpu,
    )  # fmt: skip
    trainer = Trainer(
        model=models.build(recipe.shape, seed=recipe.seed), args=arguments, train_dataset=Samples(), callbacks=[Turns()]
    )
    rounds.restart()
    trainer.train()
    say(training, rounds.report("ours", "Trainer"))


def saving(training: "Training", num_rounds: int) -> None:
    """Seconds for which training waits: all of a save at once; of one in the background its copy and its end."""
    saver = training.saver
    waited: dict[bool, list[float]] = {False: [], True: []}
    steps: dict[bool, list[float]] = {False: [], True: []}  # before a save, and from its start until it is written
    training.take_step(watch_memory=False)
    for number in range(2 * num_rounds + 2):
        in_background = number % 2 == 1
        saver._writer.in_background = in_background
        before_s = timed(ours(training))
        stall_s = training.save()
        during_s = []
        while not saver.is_written:
            during_s.append(timed(ours(training)))
        stall_s += timed(saver.finish)
        if number >= 2:  # the first one in the background makes its buffers
            waited[in_background].append(stall_s)
            steps[False].append(before_s)
            steps[True] += during_s if in_background else []
    middle = {key: statistics.median(values) for key, values in waited.items()}
    say(training, (
        f"{saver._num_bytes / 1e9:.2f} GB: at once {_spread(waited[False])}, "
        f"in the background {_spread(waited[True])}: "
        f"{100 * middle[True] / middle[False]:.1f} %",
        f"a step {_spread(steps[False])}, beside the writing {_spread(steps[True])}",
    ))  # fmt: skip


def timed(function: Step) -> float:
    started_at = time.perf_counter()
    function()
    return time.perf_counter() - started_at


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}, {len(seconds)})"


def say(training: "Training", lines: Any) -> None:
    recipe = training.recipe
    training.talk.say(
        f"\n{recipe.shape.name}, {recipe.shape.num_params:,} parameters, {recipe.precision}, "
        f"{training.ranks.world_size} x {training.ranks.device.type}, {recipe.tokens_per_step:,} tokens a step"
    )
    for line in lines:
        training.talk.say(line)


def heads(model: str, precision: str, num_rounds: int) -> None:
    """Forward and backward of one micro batch: BERT's head on masked positions alone, GPT-2's loss in chunks."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from scaling import models
    from scaling.models.loss import IGNORED
    from scaling.training.memory import MemoryGauge

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    compute_with_one_thread()

    class AllPositions(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            logits = self.model(input_ids=input_ids).logits
            return F.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )

    def passes(wrap: Callable[[Any], nn.Module], name: str, batch: dict[str, torch.Tensor]) -> tuple[nn.Module, Step]:
        module = wrap(models.build(registry.find(name).shape)).to(device, dtype)

        def step() -> None:
            (module(**batch) / batch["labels"].numel()).backward()
            module.zero_grad()

        return module, step

    chunked = partial(models.WithLoss, loss_kernel="chunked")
    cases = (
        ("bert-base", 8, 512, "masked positions", models.WithLoss),
        ("gpt2", 4, 1024, "chunked", chunked),
    )
    for name, size, length, what, wrap in cases:
        if model not in ("", name):
            continue
        shape = registry.find(name).shape
        ids = torch.randint(shape.vocab_size, (size, length), generator=torch.Generator().manual_seed(0))
        targets = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < (0.15 if "bert" in name else 1.0)
        batch = {"input_ids": ids.to(device), "labels": torch.where(targets, ids, IGNORED).to(device)}
        peaks = {}
        for label, wrapper in ((what, wrap), ("all logits", AllPositions)):
            module, step = passes(wrapper, name, batch)
            gauge = MemoryGauge(device)
            with gauge.watching(module, on=True):
                step()
            gauge.read()
            peaks[label] = gauge.peak_allocated_bytes
            del module, step
        rounds = take_turns(
            {label: passes(wrapper, name, batch)[1] for label, wrapper in ((what, wrap), ("all logits", AllPositions))},
            num_rounds,
        )
        print(f"\n{name}, {size} x {length} tokens, {precision}, {device}: peak live bytes, weights among them, "
              f"{what} {peaks[what] / 1e9:.2f} GB, all logits {peaks['all logits'] / 1e9:.2f} GB: "
              f"{peaks[what] / peaks['all logits']:.3f}")  # fmt: skip
        for line in rounds.report(what, "all logits"):
            print(line)


def main() -> None:
    what, *rest = sys.argv[1:] or [""]
    if what == "heads":
        model, precision, num_rounds = (*rest, *("", "bf16", "5")[len(rest) :])
        heads(model, precision, int(num_rounds))
        return
    measures = {"loop": against_bare, "trainer": against_trainer, "checkpoint": saving}
    if what not in measures:
        sys.exit(__doc__)
    model, precision, num_rounds = (*rest, *("gpt2", "bf16", "8")[len(rest) :])
    recipe = recipe_of(model, precision, int(os.environ.get("WORLD_SIZE", "1")))
    # One folder for all ranks of a launch.
    folder = Path(tempfile.gettempdir()) / f"benchmark-{os.environ.get('MASTER_PORT', '')}-{os.getppid()}"
    try:
        in_a_run(recipe, partial(measures[what], num_rounds=int(num_rounds)), folder)
    finally:
        if os.environ.get("RANK", "0") == "0":
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
