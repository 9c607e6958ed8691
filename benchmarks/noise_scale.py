"""What measuring the gradient noise scale costs a step: steps with its hooks beside steps without, in one run.

    python benchmarks/noise_scale.py [MODEL] [PRECISION] [PAIRS]

One rank, ZeRO-2, two micro batches of 4 x 512 tokens. Steps alternate, so that a busy machine slows both alike. On a
CPU one thread computes and its user time counts: the kernel's, for pages, varies by more than what is measured. The
share is what is spent inside the hooks and in adding up, which leaves out what they do to caches.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from scaling import ds_config, registry
from scaling.recipe import Recipe
from scaling.strategy import Strategy, bucket_size
from scaling.training import noise_scale, ranks

SEQ_LENGTH, MICRO_BATCH, MICRO_STEPS = 512, 4, 2


def recipe_of(model: str, precision: str) -> Recipe:
    family = registry.find(model).shape.family
    return Recipe.model_validate(
        {
            "name": "noise_scale",
            "model": model,
            "task": "masked-lm" if family == "bert" else "causal-lm",
            "data": {"corpus": ["embedded:docstrings"], "seq_length": SEQ_LENGTH, "validation_fraction": 0.05},
            "global_batch_size": MICRO_BATCH * MICRO_STEPS,
            "num_steps": 1000,
            "optimizer": {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
            "schedule": {"name": "constant", "warmup_steps": 0},
            "precision": precision,
            "gradient_clipping": 1.0,
        }
    )


def main() -> None:
    model, precision, pairs = (*sys.argv[1:], *("gpt2", "bf16", "4")[len(sys.argv) - 1 :])
    import torch

    from scaling import data
    from scaling.training.checkpoint import Saver
    from scaling.training.engine import make_engine
    from scaling.training.guards import Judge
    from scaling.training.loop import Training
    from scaling.training.memory import MemoryGauge
    from scaling.training.progress import Talk
    from scaling.training.run import quiet
    from scaling.training.signals import StopRequest
    from scaling.training.watch import Watch
    from scaling.training.watchdog import Watchdog

    recipe = recipe_of(model, precision)
    bucket = bucket_size(recipe.shape)
    strategy = Strategy(
        zero_stage=2, offload_optimizer="none", data_parallel_size=1, micro_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=MICRO_STEPS, activation_checkpointing="none",
        reduce_bucket_size=bucket, allgather_bucket_size=bucket,
    )  # fmt: skip
    config, _ = ds_config.reconcile(ds_config.emit(recipe, strategy), recipe, strategy)
    on_cpu = not torch.cuda.is_available()
    inside_s = 0.0

    def now_s() -> float:
        return os.times().user if on_cpu else time.perf_counter()

    def timed(function: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal inside_s
            started_at = time.process_time()  # os.times() counts in hundredths
            result = function(*args)
            inside_s += time.process_time() - started_at
            return result

        return call

    noise_scale.row_norms = timed(noise_scale.row_norms)
    noise_scale.GradientNoise.of_micro_batch = timed(noise_scale.GradientNoise.of_micro_batch)
    with tempfile.TemporaryDirectory() as scratch, quiet(Path(scratch) / "log") as stream:
        folder = Path(scratch)
        ranks.complete_environment()
        here = ranks.join()
        if on_cpu:
            torch.set_num_threads(1)
        engine = make_engine(recipe, config, strategy)
        training = Training(
            recipe=recipe, strategy=strategy, ranks=here, engine=engine, folder=folder, metrics=None, step=0,
            corpus=data.prepare(recipe, base=folder, cache=folder), talk=Talk(stream, speaks=False),
            gauge=MemoryGauge(here.device), noise=noise_scale.GradientNoise(engine, strategy, here.device), stop_step=0,
            saver=Saver(engine, folder, recipe, strategy, here), judge=Judge(recipe.guards), request=StopRequest(),
            watchdog=Watchdog(folder, here, None, hint=""), hint="",
            watch=Watch(recipe, here, engine, MemoryGauge(here.device), {}),
        )  # fmt: skip
        hooks = {p: dict(p._backward_hooks) for p in engine.module.parameters() if p._backward_hooks}
        seconds: dict[bool, list[float]] = {True: [], False: []}
        shares = []
        for number in range(2 * int(pairs) + 2):
            measures = number % 2 == 0
            for parameter, own in hooks.items():
                parameter._backward_hooks.clear()
                parameter._backward_hooks.update(own if measures else {})
            inside_s, started_at = 0.0, now_s()
            training.optimizer_step()
            if not on_cpu:
                torch.cuda.synchronize()
            taken_s = now_s() - started_at
            if number >= 2:  # the first two allocate
                seconds[measures].append(taken_s)
                if measures:
                    shares.append(inside_s / taken_s)
        on, off = (median(seconds[measures]) for measures in (True, False))
        each = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
        size = f"{recipe.shape.num_params:,} parameters"
        print(f"{model}, {size} in {precision}, {here.device}, {pairs} pairs", file=stream)
        print(f"a step of {recipe.tokens_per_step:,} tokens {off:.3f} s without, {on:.3f} s with", file=stream)
        print(f"ratio of the medians {on / off:.4f}, median of the ratios {median(each):.4f}", file=stream)
        print(f"share of a step inside the hooks {100 * median(shares):.2f} %", file=stream)
        ranks.leave()


if __name__ == "__main__":
    main()
