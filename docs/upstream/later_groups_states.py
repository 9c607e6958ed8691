"""ZeRO-1/2 with two parameter groups: only the first one's optimizer states can be asked for.

torchrun --nproc_per_node 2 later_groups_states.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(4, 4)
groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=config)
for _ in range(2):
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
for name, parameter in model.named_parameters():
    try:
        outcome = list(safe_get_full_optimizer_state(parameter, "exp_avg").shape)
    except ValueError as error:
        outcome = f"ValueError: {error}"
    if dist.get_rank() == 0:
        print(f"exp_avg of {name}: {outcome}")
dist.destroy_process_group()
