"""The exact command line that starts a plan under DeepSpeed's launcher."""

import shlex
from pathlib import Path

from scaling.hardware import Cluster


def command(cluster: Cluster, ds_config: str, run_dir: str, *, here: Path | None = None) -> str:
    """One shell line. `ds_config` and `run_dir` are paths; `here` is where it will be run (default: now's folder).

    From a checkout the program is scale/train.py; from an installed package it is the module scaling.train.
    """
    words = ["deepspeed"]
    if cluster.num_nodes > 1:
        words += ["--hostfile", cluster.hostfile or "hostfile", "--num_nodes", str(cluster.num_nodes)]
    words += ["--num_gpus", str(cluster.gpus_per_node)]
    script = "scale/train.py"
    words += [script] if ((here or Path.cwd()) / script).is_file() else ["--module", "scaling.train"]
    words += ["--ds_config", ds_config, "--run_dir", run_dir]
    line = shlex.join(words)
    # Without it DeepSpeed on a machine without GPUs logs a warning and guesses the same.
    return f"DS_ACCELERATOR=cpu {line}" if cluster.is_cpu else line
