"""Optimizer states on NVMe: gradients whose shard is no whole number of blocks are put together wrongly.

torchrun --nproc_per_node 2 nvme_misaligned_gradients.py FOLDER       (needs libaio's headers)
"""

import sys

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
for width in (1024, 1022):  # a rank's half of each matrix: 524,288 elements, or 522,242 = 2,040 x 256 + 2
    weights = []
    for device in ("cpu", "nvme"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(width, width, bias=False), torch.nn.Linear(width, width, bias=False)
        )
        offload = {"device": device, "pin_memory": False, **({"nvme_path": sys.argv[1]} if device == "nvme" else {})}
        config = {
            "train_micro_batch_size_per_gpu": 1, "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": 3, "offload_optimizer": offload, "reduce_bucket_size": 2_000_000},
        }  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        for step in range(3):
            x = torch.randn(4, width, generator=torch.Generator().manual_seed(step))
            engine.backward(engine(x).square().mean())
            engine.step()
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            weights.append([p.detach().clone() for p in model.parameters()])
        engine.destroy()
    off = [float((a - b).norm() / a.norm()) for a, b in zip(*weights, strict=True)]
    if dist.get_rank() == 0:
        print(f"width {width}: weights from NVMe are off those from the CPU by {off[0]:.1e} and {off[1]:.1e}")
dist.destroy_process_group()
