"""sequence_parallel_size alone in a ds_config, without an mpu, changes train_batch_size and nothing else.

torchrun --nproc_per_node 2 sequence_parallel_batch.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
for sizes in ({}, {"sequence_parallel_size": 2}):
    model = torch.nn.Linear(4, 4)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, **sizes}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if dist.get_rank() == 0:
        said = f"train_batch_size {engine.train_batch_size()!r}, data parallel ranks {engine.dp_world_size}"
        print(f"{sizes or 'neither'}: {said}, sequence parallel ranks {engine.sequence_parallel_size}")
dist.destroy_process_group()
