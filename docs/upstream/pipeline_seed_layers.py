"""PipelineModule(seed_layers=True) with the default partition_method breaks off: the seed is a NumPy integer.

torchrun --nproc_per_node 2 pipeline_seed_layers.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
for method in ("uniform", "parameters"):
    layers = [LayerSpec(torch.nn.Linear, 4, 4) for _ in range(4)]
    try:
        PipelineModule(layers, num_stages=2, seed_layers=True, partition_method=method)
        outcome = "made"
    except TypeError as error:
        outcome = f"TypeError: {error}"
    if dist.get_rank() == 0:
        print(f"partition_method {method}: {outcome}")
dist.destroy_process_group()
