"""The files in ds_configs/: one strategy each, emitted by the planner for GPT-3 1.3B on eight A100-80GB.

They spell machinery only: no optimizer and no scheduler, so that any recipe of their precision and clipping can be
trained with any of them; scale/train.py takes those, and the accumulation for the recipe's batch, from the recipe. No
key can ask for a chunked loss, so their micro batch fits without.

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
from scaling.plan.steering import Pair, Steering

NVME_PATH = "/mnt/nvme"  # for the user to replace: a folder on each node's drive
_NVME_GIB, _NVME_GB_PER_S = 4000, 5

# What each file pins. Offload in bf16 only: the block fp16 makes the difference, as the others show.
_PINS: dict[str, tuple[str, tuple[Pair, ...]]] = {
    **{
        f"zero{stage}_{precision}.json": (precision, (("zero_stage", stage),))
        for stage in (1, 2, 3)
        for precision in ("bf16", "fp16")
    },
    **{
        name: ("bf16", (("zero_stage", stage), ("offload_optimizer", optimizer), ("offload_param", param)))
        for name, stage, optimizer, param in (
            ("zero2_cpu_optimizer_bf16.json", 2, "cpu", "none"),
            ("zero3_cpu_optimizer_params_bf16.json", 3, "cpu", "cpu"),
            ("zero3_nvme_optimizer_params_bf16.json", 3, "nvme", "nvme"),
        )
    },
}


def shipped() -> dict[str, dict[str, Any]]:
    """{file name: configuration}."""
    cluster, _ = hardware.cluster_of("a100-80gb", 8, 1, None, None)
    cluster, _ = hardware.with_nvme(cluster, NVME_PATH, _NVME_GIB, _NVME_GB_PER_S)
    configs = {}
    for name, (precision, pins) in _PINS.items():
        recipe, _ = request.recipe_for(cluster, params="1.3B", precision=precision)
        plan = search(recipe, cluster, steering=Steering(pins=(*pins, ("loss_kernel", "full"))))
        assert plan.fits, name
        configs[name] = machinery(emit(recipe, plan.strategy, NVME_PATH))
    return configs


def main() -> None:
    folder = Path(sys.argv[1])
    write_folder(folder, {name: json.dumps(config, indent=2) + "\n" for name, config in shipped().items()}, "DIR")


if __name__ == "__main__":
    main()
