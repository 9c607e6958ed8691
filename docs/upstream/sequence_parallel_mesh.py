"""data_parallel_size and sequence_parallel_size in a ds_config: gradients are never summed over a sequence's ranks.

torchrun --nproc_per_node 2 sequence_parallel_mesh.py
"""

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(4, 4, bias=False)
config = {
    "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 1}, "data_parallel_size": 1, "sequence_parallel_size": 2,
}  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
# The ranks have different slices of one sequence.
engine.backward(engine(torch.full((1, 4), 1.0 + dist.get_rank())).sum())
engine.step()
weights = [torch.empty_like(model.weight) for _ in range(2)]
dist.all_gather(weights, model.weight.detach())
if dist.get_rank() == 0:
    print(f"ZeRO's ranks: {engine.seq_dp_world_size}, expected 2")
    print(f"after one step the ranks' weights differ by {float((weights[0] - weights[1]).abs().max()):g}, expected 0")
dist.destroy_process_group()
