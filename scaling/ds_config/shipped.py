"""The files in ds_configs/: one strategy each, emitted by the planner for GPT-3 1.3B on eight A100-80GB.

They spell machinery only: no optimizer and no scheduler, so that any recipe can be trained with any of them;
scale/train.py takes those, and the accumulation for the recipe's batch, from the recipe.

`python -m scaling.ds_config.shipped DIR` writes them; a test compares what stands in ds_configs/.
"""

import json
import sys
from pathlib import Path
from typing import Any

from scaling import hardware
from scaling.ds_config.write import emit, machinery
from scaling.files import write_folder
from scaling.plan import request, search
from scaling.plan.steering import Steering

_STAGES = {"zero1_bf16.json": 1, "zero2_bf16.json": 2, "zero3_bf16.json": 3}


def shipped() -> dict[str, dict[str, Any]]:
    """{file name: configuration}."""
    cluster, _ = hardware.cluster_of("a100-80gb", 8, 1, None, None)
    recipe, _ = request.recipe_for(cluster, params="1.3B", precision="bf16")
    configs = {}
    for name, stage in _STAGES.items():
        config = emit(recipe, search(recipe, cluster, steering=Steering(pins=(("zero_stage", stage),))).strategy)
        configs[name] = machinery(config)
    return configs


def main() -> None:
    folder = Path(sys.argv[1])
    write_folder(folder, {name: json.dumps(config, indent=2) + "\n" for name, config in shipped().items()}, "DIR")


if __name__ == "__main__":
    main()
