"""A plan as files: ds_config.json for DeepSpeed, plan.json for us, recipe.yaml for whoever trains it.

For a script of the user's own there is one more (scaling/launch/scripts.py).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaling import __version__, course, recipe
from scaling.files import write_folder
from scaling.hardware import Cluster
from scaling.launch import scripts
from scaling.launch.scripts import Runner
from scaling.plan import Candidate, Plan

DS_CONFIG, PLAN, RECIPE = "ds_config.json", "plan.json", "recipe.yaml"


def document(plan: Plan, folder: Path, runner: Runner = "scale") -> dict[str, Any]:
    """The plan as plain data, as `scale plan --json` prints it and plan.json holds it."""
    shape = plan.recipe.shape
    return {
        "scale_version": __version__,
        "recipe": RECIPE,
        "model": {
            **asdict(shape),
            "settings": dict(shape.settings),
            "num_params": shape.num_params,
            "seq_length": plan.recipe.data.seq_length,
        },
        "cluster": _cluster(plan.cluster),
        "batch": {
            "global_batch_size": plan.recipe.global_batch_size,
            "tokens_per_step": plan.recipe.tokens_per_step,
            "num_steps": plan.recipe.num_steps,
            "num_samples": course.num_samples(plan.recipe),
            "num_tokens": course.num_tokens(plan.recipe),
        },
        **_candidate(plan.chosen),
        "cost": plan.cost,
        "fits": plan.fits,
        "alternatives": [{**_candidate(other), "fits": other.memory.fits} for other in plan.alternatives],
        "pareto": [_candidate(candidate) for candidate in plan.pareto],
        "rejected": [{"strategy": each.strategy, "reason": each.reason} for each in plan.rejected],
        "assumptions": list(plan.assumptions),
        "remedies": list(plan.remedies),
        "num_priced": plan.num_priced,
        "ds_config": scripts.config_for(plan, runner),
        "runner": runner,
        "notes": scripts.notes(plan, runner, folder),
        "launch": launch_command(plan, folder, runner),
    }


def summary(plan: Plan) -> dict[str, Any]:
    """A plan among others of other sizes, as plain data."""
    return {"cluster": _cluster(plan.cluster), **_candidate(plan.chosen), "cost": plan.cost, "fits": plan.fits}


def names(runner: Runner = "scale") -> tuple[str, ...]:
    """The files of a plan that `runner` trains."""
    return DS_CONFIG, *scripts.NAMES[runner], PLAN, RECIPE


def write(plan: Plan, folder: Path, runner: Runner = "scale") -> None:
    """Writes them into `folder`, all or none. Raises InputError naming --out where it cannot."""
    texts = {
        DS_CONFIG: json.dumps(scripts.config_for(plan, runner), indent=2) + "\n",
        **scripts.files(plan, runner, folder, folder / DS_CONFIG),
        PLAN: json.dumps(document(plan, folder, runner), indent=2) + "\n",
        RECIPE: recipe.dump(plan.recipe),
    }
    write_folder(folder, texts, "out")


def launch_command(plan: Plan, folder: Path, runner: Runner = "scale") -> str:
    return scripts.launch_command(plan, runner, folder, folder / DS_CONFIG)


def _cluster(cluster: Cluster) -> dict[str, Any]:
    return {
        "gpu": cluster.accelerator.name,
        "num_nodes": cluster.num_nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "world_size": cluster.world_size,
        "memory_bytes": cluster.accelerator.memory_bytes,
        "nvme_bytes": cluster.nvme_bytes,
        "price_per_hour": cluster.accelerator.price_per_hour,
        "source": cluster.accelerator.source,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "strategy": asdict(candidate.strategy),
        "memory": asdict(candidate.memory),
        "time": asdict(candidate.time),
        "gpu_hours": candidate.gpu_hours,
    }
