"""Peak bytes of each rank under every layout, against `scale memory`: real engines, real ranks, a small model a family.

    python benchmarks/parallel.py [FAMILY ...] [--precision bf16] [--dropout 0.1] [--layouts "tp2 z1,pp2 z1,..."]

Each layout is one start of scale/train.py under torchrun for a few steps. "states" is what lives between two steps
(parameters, master copies, moments, standing gradients), to be had to the byte but for the padding of shards; "peak" is
torch's MemTracker over the last micro step and the update. The worst rank is held against the estimate, which is of the
worst; tensor, pipeline, sequence and expert ranks are all measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import cost, ds_config, hardware
from scaling import recipe as recipes
from scaling.parallelism import PARALLELISMS
from scaling.recipe import EMBEDDED_CORPUS, EMBEDDED_IMAGES, Recipe
from scaling.shape import Shape
from scaling.strategy import Strategy, bucket_size

_SEQ_LENGTH, _MICRO_BATCH = 128, 8
_MORE: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_experts": 4, "experts_per_token": 2},
    "vit": {
        "image_size": 64, "patch_size": 8, "num_channels": 3, "max_position_embeddings": 65, "vocab_size": 10,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks along each kind of parallelism, and the ZeRO stage."""

    stage: int
    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    sequence: int = 1
    expert: int = 1

    @property
    def kinds(self) -> set[str]:
        return {kind for kind in ("tensor", "pipeline", "sequence", "expert") if getattr(self, kind) > 1}


LAYOUTS = {
    "dp2 z1": Layout(data=2, stage=1),
    "dp2 z2": Layout(data=2, stage=2),
    "dp2 z3": Layout(data=2, stage=3),
    "tp2 z0": Layout(tensor=2, stage=0),
    "tp2 z1": Layout(tensor=2, stage=1),
    "tp2 dp2 z1": Layout(tensor=2, data=2, stage=1),
    "tp2 dp2 z2": Layout(tensor=2, data=2, stage=2),
    "tp2 dp2 z3": Layout(tensor=2, data=2, stage=3),
    "pp2 z1": Layout(pipeline=2, stage=1),
    "pp2 dp2 z1": Layout(pipeline=2, data=2, stage=1),
    "sp2 z1": Layout(sequence=2, stage=1),
    "sp2 z3": Layout(sequence=2, stage=3),
    "sp2 dp2 z3": Layout(sequence=2, data=2, stage=3),
    "ep2 dp2 z1": Layout(expert=2, data=2, stage=1),
    "ep2 dp4 z2": Layout(expert=2, data=4, stage=2),
    "ep2 dp2 z3": Layout(expert=2, data=2, stage=3),
}


def shape_of(family: str) -> Shape:
    sizes = {
        "num_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 2048,
        "max_position_embeddings": _SEQ_LENGTH,
    }  # fmt: skip
    return Shape(name=f"{family}-small", family=family, **{**sizes, **_MORE.get(family, {})})


def recipe_of(shape: Shape, precision: str, batch: int, dropout: float) -> Recipe:
    corpus = EMBEDDED_IMAGES if shape.traits.kind == "vision" else EMBEDDED_CORPUS
    return recipes.validated({
        "name": shape.name, "model": recipes.model_of(shape), "task": shape.traits.task,
        "data": {"corpus": [corpus], "seq_length": shape.max_position_embeddings, "validation_fraction": 0.01},
        "global_batch_size": batch, "num_steps": 3, "precision": precision, "dropout": dropout,
        "gradient_clipping": 1.0,
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "schedule": {"name": "constant", "warmup_steps": 0},
    })  # fmt: skip


def strategy_of(shape: Shape, layout: Layout, micro_steps: int) -> Strategy:
    bucket = bucket_size(shape)
    return Strategy(
        zero_stage=layout.stage, offload_optimizer="none", data_parallel_size=layout.data,
        tensor_parallel_size=layout.tensor, pipeline_parallel_size=layout.pipeline,
        sequence_parallel_size=layout.sequence, expert_parallel_size=layout.expert, micro_batch_size=_MICRO_BATCH,
        gradient_accumulation_steps=micro_steps, activation_checkpointing="none", reduce_bucket_size=bucket,
        allgather_bucket_size=bucket,
    )  # fmt: skip


def measured(folder: Path, recipe: Recipe, strategy: Strategy) -> list[dict[str, int]]:
    """{"states", "peak"} in bytes by rank."""
    (folder / "recipe.yaml").write_text(recipes.dump(recipe))
    (folder / "ds_config.json").write_text(json.dumps(ds_config.emit(recipe, strategy)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={strategy.world_size}",
        __file__, "--worker", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = sorted(folder.glob("measured_*.json"))
    if done.returncode or len(found) != strategy.world_size:
        raise SystemExit(f"{strategy}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return [json.loads(path.read_text()) for path in found]


def work(folder: Path) -> None:
    """One rank: a run, with what lives at its end written down."""
    from scaling import train
    from scaling.training.loop import Training

    original = Training.report

    def report(self: Training, values: dict[str, float], elapsed_s: float) -> None:
        original(self, values, elapsed_s)
        if self.step == self.stop_step:
            if self.strategy.zero_stage == 3:
                self.engine.empty_partition_cache()  # what the evaluation left gathered
            buckets = (
                getattr(self.engine.optimizer, "ipg_buckets", {}).values() if self.strategy.zero_stage == 3 else ()
            )
            standing = sum(bucket.buffer.untyped_storage().nbytes() for bucket in buckets)  # buffers, not states
            found = {"states": live_bytes(self.recipe) - standing, "peak": self.gauge.peak_allocated_bytes}
            (folder / f"measured_{self.ranks.rank}.json").write_text(json.dumps(found))

    Training.report = report  # type: ignore[method-assign]
    train.main([
        "--ds_config", str(folder / "ds_config.json"), "--recipe", str(folder / "recipe.yaml"),
        "--run_dir", str(folder / "run"), "--track", "none",
    ])  # fmt: skip


def live_bytes(recipe: Recipe) -> int:
    """Bytes of every tensor alive, once a storage, but for batches and what a pipeline's buffers hold of them."""
    import gc

    import torch

    gc.collect()
    shape, storages = recipe.shape, {}
    passing = (
        (_MICRO_BATCH, recipe.data.seq_length, shape.hidden_size),
        (_MICRO_BATCH, shape.num_channels, shape.image_size, shape.image_size),
    )
    for candidate in gc.get_objects():
        if type(candidate) not in (torch.Tensor, torch.nn.Parameter) or candidate.is_meta:
            continue
        if candidate.dtype != torch.int64 and candidate.shape not in passing:
            storage = candidate.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", default=["gpt2"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--layouts", help="names, with commas between them; default: all that run")
    parser.add_argument("--worker", type=Path)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    print(f"{'':24}{'states, MB':>24}{'peak, MB':>24}")
    print(f"{'':24}{'estimate':>10}{'measured':>9}{'':>5}{'estimate':>10}{'measured':>9}")
    for family in args.families:
        shape = shape_of(family)
        for name, layout in LAYOUTS.items():
            runs = layout.kinds <= PARALLELISMS[family].runnable and (layout.stage or args.precision == "fp32")
            if not runs or (args.layouts and name not in args.layouts.split(",")):
                continue
            micro_steps = 2 * layout.pipeline if layout.pipeline > 1 else 1  # so that its steady state is reached
            strategy = strategy_of(shape, layout, micro_steps)
            recipe = recipe_of(shape, args.precision, strategy.global_batch_size, args.dropout)
            cluster, _ = hardware.cluster_of("cpu", strategy.world_size, 1, None, None)
            job, ends = cost.Job.of(recipe), ("first", "last")
            states = max(cost.memory(job, strategy, cluster, rank=end).moments["save"] for end in ends)
            peak = cost.memory(job, strategy, cluster).peak_allocated_bytes
            with tempfile.TemporaryDirectory() as scratch:
                by_rank = measured(Path(scratch), recipe, strategy)
            figures = []
            for predicted, key in ((states, "states"), (peak, "peak")):
                worst = max(rank[key] for rank in by_rank)
                figures += [
                    f"{predicted / 1e6:10.2f}",
                    f"{worst / 1e6:9.2f}",
                    f"{100 * (predicted / worst - 1):+5.1f}%",
                ]
            print(f"{family + ' ' + name:24}" + "".join(figures), flush=True)


if __name__ == "__main__":
    main()
