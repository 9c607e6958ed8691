"""The estimate against the tensors of real engine steps on real ranks.

The gauge counts every live tensor of the second optimizer step (torch's MemTracker); docs/log.md has the wider grid.
"""

import json
from dataclasses import replace

import pytest

from scaling import cost, hardware, registry
from scaling.recipe import EMBEDDED_CORPUS, model_of
from scaling.shape import Shape
from tests.ranks import SOAK
from tests.training.runs import layout, run, tiny_recipe

# At stage 3 the experts that are gathered wait for the backward; alone nothing is gathered.
_DEEP = replace(registry.find("mixtral-demo").shape, name="deep", num_layers=8)

RUNS = {
    "fp32, 1 rank, stage 0": ("gpt-demo", "fp32", layout(1, 0, micro=8)),
    "bf16, stage 1, accumulation": ("gpt-demo", "bf16", layout(2, 1, micro=4, batch=16)),
    "bf16, stage 1": ("gpt-demo", "bf16", layout(2, 1, micro=8, batch=16)),
    "bf16, stage 2, accumulation": ("gpt-demo", "bf16", layout(2, 2, micro=4, batch=16)),
    "bf16, stage 2, checkpointing": ("gpt-demo", "bf16", layout(2, 2, micro=16, batch=32, checkpointing="full")),
    "bf16, stage 3": ("gpt-demo", "bf16", layout(2, 3, micro=8, batch=16)),
    "bf16, stage 3, accumulation, checkpointing": (
        "gpt-demo", "bf16", layout(2, 3, micro=16, batch=64, checkpointing="full"),
    ),
    "bf16, stage 2, chunked loss, checkpointing": (
        "gpt-demo", "bf16", layout(2, 2, micro=64, batch=128, checkpointing="full", loss="chunked"),
    ),
    "bf16, stage 1, chunked loss": ("gpt-demo", "bf16", layout(2, 1, micro=32, batch=64, loss="chunked")),
    "bf16, stage 2, selective": ("gpt-demo", "bf16", layout(2, 2, micro=16, batch=32, checkpointing="selective")),
    "BERT, bf16, stage 2, selective": (
        "bert-demo", "bf16", layout(2, 2, micro=16, batch=32, checkpointing="selective"),
    ),
    "BERT, bf16, stage 3, selective": (
        "bert-demo", "bf16", layout(2, 3, micro=16, batch=32, checkpointing="selective"),
    ),
    "Llama, bf16, stage 1": ("llama-demo", "bf16", layout(1, 1, micro=16, batch=16)),
    "Mixtral, fp32, stage 0": ("mixtral-demo", "fp32", layout(1, 0, micro=16, batch=16)),
    "Mixtral of eight layers, bf16, stage 3": (_DEEP, "bf16", layout(2, 3, micro=4)),
    "BERT, bf16, stage 2": ("bert-demo", "bf16", layout(2, 2, micro=16, batch=32)),
    "Mixtral of eight layers, bf16, stage 3, alone": (_DEEP, "bf16", layout(1, 3, micro=8)),
    "dropout, fp32, stage 0": ("gpt-demo", "fp32", layout(1, 0, micro=8), {"dropout": 0.1}),
    "two stages, dropout, bf16": ("gpt-demo", "bf16", layout(2, 1, micro=4, batch=16, pipeline=2), {"dropout": 0.1}),
    "BERT, dropout, bf16, stage 2": ("bert-demo", "bf16", layout(2, 2, micro=16, batch=32), {"dropout": 0.1}),
    "Llama, dropout, bf16, stage 3, selective": (
        "llama-demo", "bf16", layout(2, 3, micro=16, batch=32, checkpointing="selective"), {"dropout": 0.1},
    ),
    "dropout, bf16, stage 1, checkpointing": (
        "gpt-demo", "bf16", layout(2, 1, micro=16, batch=32, checkpointing="full"), {"dropout": 0.1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS if SOAK else list(RUNS)[::2])
def test_predicted_peak_is_within_5_percent_of_the_measured_one(name, tmp_path):
    model, precision, strategy, *changes = RUNS[name]
    shape = model if isinstance(model, Shape) else registry.find(model).shape
    recipe = tiny_recipe(
        tmp_path,
        model=model_of(shape),
        task=shape.traits.task,
        data={"corpus": [EMBEDDED_CORPUS], "seq_length": 128, "validation_fraction": 0.05},
        global_batch_size=strategy.global_batch_size,
        precision=precision,
        **dict(*changes),
    )
    run(tmp_path / "run", recipe, strategy, "--max_steps", "2")
    measured = json.loads((tmp_path / "run" / "measured.json").read_text())["peak_allocated_bytes"]["value"]
    cluster, _ = hardware.cluster_of("cpu", strategy.world_size, 1, None, None)
    predicted = cost.memory(cost.Job.of(recipe), strategy, cluster).peak_allocated_bytes
    print(f"{name}: predicted {predicted / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB, {predicted / measured:.3f}")  # noqa: T201
    assert predicted == pytest.approx(measured, rel=0.05)
