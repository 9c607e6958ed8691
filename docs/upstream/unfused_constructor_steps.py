"""ZeRO-0 in bf16: deepspeed.initialize takes an optimizer step, which decays the weights and counts.

torchrun --nproc_per_node 2 unfused_constructor_steps.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
for stage in (0, 1):
    model = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    config = {
        "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    steps = [float(state["step"]) for state in optimizer.state.values()] or [0.0]
    weight = optimizer.param_groups[0]["params"][0].flatten()[0].item()
    if dist.get_rank() == 0:
        print(f"stage {stage}, {type(engine.optimizer).__name__}: fp32 weight 1 is {weight:.4f}, step {steps[0]:.0f}")
dist.destroy_process_group()
