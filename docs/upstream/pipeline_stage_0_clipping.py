"""ZeRO-0 in fp32: a pipeline clips every stage by the norm of the first stage's gradients alone.

torchrun --nproc_per_node 2 pipeline_stage_0_clipping.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
config = {
    "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 0}, "steps_per_print": 1000,
}  # fmt: skip
layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
for layer, weight in zip(layers, (1000.0, 0.001), strict=True):
    torch.nn.init.constant_(layer.weight, weight)
# x = 1: the first weight's gradient is the second weight, 0.001; the second's is the first, 1000. So the norm is 1000.
model = PipelineModule(layers, num_stages=2, loss_fn=lambda output, label: output.sum(), partition_method="uniform")
(weight,) = model.parameters()
before = weight.item()
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD([weight], lr=1.0), config=config)
engine.train_batch(iter([(torch.ones(1, 1), torch.ones(1, 1))]))
moved = torch.tensor([(before - weight.item()) ** 2])
dist.all_reduce(moved)
if dist.get_rank() == 0:
    print(f"clipped at 1, SGD at rate 1 moved the two weights by {moved.sqrt().item():.4f}; 1.0000 expected")
dist.destroy_process_group()
