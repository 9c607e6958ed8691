"""Ulysses: ZeRO 0 to 2 give gradients sequence_parallel_size times those of stage 3.

torchrun --nproc_per_node 2 ulysses_gradient_scale.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel import parallel_state_sp as mpu
from deepspeed.utils import safe_get_full_grad

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
mpu.initialize_sequence_parallel(sequence_parallel_size=2)
for stage in range(4):
    model = torch.nn.Linear(4, 4, bias=False)
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, mpu=mpu)
    # Each rank's slice of the one sequence has a loss with gradient 1: their sum is 2, their mean 1.
    engine.backward(engine(torch.ones(1, 4)).sum())
    gradient = safe_get_full_grad(model.weight) if stage else model.weight.grad
    if dist.get_rank() == 0:
        print(f"stage {stage}: a gradient of 1 on both ranks became {float(gradient.flatten()[0]):g}")
dist.destroy_process_group()
