"""What the tests of the planning half share: small factories with every field open to change."""

from dataclasses import replace

import pytest
from hypothesis import settings

from scaling.hardware import ACCELERATORS, Cluster
from scaling.recipe import EMBEDDED_CORPUS, Recipe, model_of
from scaling.registry import MODELS
from scaling.strategy import Strategy, bucket_size
from scaling.units import GIB

# The same examples in every run: a gate must not fail by chance. No deadline: CI's cores are shared.
settings.register_profile("scale", deadline=None, derandomize=True)
settings.load_profile("scale")


def _planned_recipe(model="gpt3-1.3b", *, seq_length=None, warmup_steps=10, schedule="cosine", low=0.1, **changes):
    shape = MODELS[model].shape if isinstance(model, str) else model
    fields = {
        "name": "test",
        "model": model if isinstance(model, str) else model_of(model),
        "task": shape.traits.task,
        "data": {
            "corpus": ["embedded:glyphs" if shape.traits.kind == "vision" else EMBEDDED_CORPUS],
            "seq_length": seq_length or shape.max_position_embeddings,
            "validation_fraction": 0.05,
        },
        "global_batch_size": 512,
        "num_steps": 100,
        "optimizer": {"name": "adamw", "lr": 2e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        "schedule": {"name": schedule, "warmup_steps": warmup_steps}
        | ({} if schedule == "constant" else {"min_lr_fraction": low}),
        "precision": "bf16",
        "gradient_clipping": 1.0,
    }
    return Recipe(**{**fields, **changes})


def _cluster_like(gpu="a100-80gb", *, nodes=1, gpus=8, host_memory_bytes=1024 * GIB, hostfile=None, **row_changes):
    return Cluster(
        accelerator=replace(ACCELERATORS[gpu], **row_changes),
        num_nodes=nodes,
        gpus_per_node=gpus,
        host_memory_bytes=host_memory_bytes,
        hostfile=hostfile,
    )


def _strategy_like(recipe, **changes):
    bucket = bucket_size(recipe.shape)
    fields = {
        "zero_stage": 2,
        "offload_optimizer": "none",
        "data_parallel_size": 8,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 16,
        "activation_checkpointing": "none",
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    return Strategy(**{**fields, **changes})


@pytest.fixture(scope="session")
def planned_recipe():
    """A function from what a test varies to a recipe; by default GPT-3 1.3B, batch 512, bf16."""
    return _planned_recipe


@pytest.fixture(scope="session")
def cluster_like():
    """A function from what a test varies to a cluster; by default one node of 8 A100-80GB."""
    return _cluster_like


@pytest.fixture(scope="session")
def strategy_like():
    """A function from a recipe and what a test varies to a strategy; by default ZeRO-2 on 8 ranks, 4 x 16."""
    return _strategy_like


@pytest.fixture
def without_gpus(monkeypatch, tmp_path_factory):
    """A PATH on which there is no nvidia-smi, so that a test means the same on a machine with GPUs."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty_path")))
