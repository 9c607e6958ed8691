"""The exact command line that starts a plan: under DeepSpeed's launcher, or accelerate's."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from scaling.hardware import Cluster


def command(cluster: Cluster, ds_config: str, run_dir: str, *, here: Path | None = None) -> str:
    """One shell line. `ds_config` and `run_dir` are paths; `here` is where it will be run (default: now's folder).

    From a checkout the program is scale/train.py; from an installed package it is the module scaling.train.
    """
    script = "scale/train.py"
    program = [script] if ((here or Path.cwd()) / script).is_file() else ["--module", "scaling.train"]
    return _line(cluster, [*_deepspeed(cluster), *program, "--ds_config", ds_config, "--run_dir", run_dir])


def script_command(cluster: Cluster, script: str) -> str:
    """The same for a script of the user's own."""
    return _line(cluster, [*_deepspeed(cluster), script])


def accelerate_command(cluster: Cluster, config: str, script: str) -> str:
    """Under `accelerate launch`, whose `config` says on how many ranks."""
    return _line(cluster, ["accelerate", "launch", "--config_file", config, script])


def _deepspeed(cluster: Cluster) -> list[str]:
    words = ["deepspeed"]
    if cluster.num_nodes > 1:
        words += ["--hostfile", cluster.hostfile or "hostfile", "--num_nodes", str(cluster.num_nodes)]
    return [*words, "--num_gpus", str(cluster.gpus_per_node)]


def _line(cluster: Cluster, words: Sequence[str]) -> str:
    # Without it DeepSpeed on a machine without GPUs logs a warning and guesses the same.
    return f"DS_ACCELERATOR=cpu {shlex.join(words)}" if cluster.is_cpu else shlex.join(words)
