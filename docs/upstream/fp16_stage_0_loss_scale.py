"""ZeRO-0 in fp16: gradients are divided by a loss scale that the loss was never multiplied by.

torchrun --nproc_per_node 2 fp16_stage_0_loss_scale.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

CPU_Accelerator.is_fp16_supported = lambda self: True  # a CPU computes in it, slowly
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
for stage in (0, 1):
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    config = {
        "train_micro_batch_size_per_gpu": 1, "fp16": {"enabled": True, "loss_scale": 1024}, "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(torch.ones(1, 2, dtype=torch.float16)).sum())  # a gradient of 1
    engine.step()
    if dist.get_rank() == 0:
        moved = -model.weight[0, 0].item()
        print(f"stage {stage}, {type(engine.optimizer).__name__}: SGD at rate 1 moved the weight by {moved:.6f}")
dist.destroy_process_group()
