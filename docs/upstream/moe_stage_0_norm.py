"""ZeRO-0 with experts on different ranks: gradients are clipped by the mean of the ranks' norms.

torchrun --nproc_per_node 2 moe_stage_0_norm.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import clip_grad_norm_

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
# What DeepSpeedEngine.clip_fp32_gradients calls with one expert on each rank, whose gradients are 3 and 4.
expert = torch.nn.Parameter(torch.zeros(1))
expert.allreduce, expert.group_name = False, "ep_size_2"
expert.grad = torch.tensor([3.0 + dist.get_rank()])
norm = clip_grad_norm_([expert], max_norm=1.0)
if dist.get_rank() == 0:
    print(f"the norm of gradients 3 and 4: {float(norm):g}, expected 5")
dist.destroy_process_group()
