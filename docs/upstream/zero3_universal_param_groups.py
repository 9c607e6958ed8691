"""ZeRO-3: loading a universal checkpoint gives every parameter group the hyper-parameters of the first.

torchrun --nproc_per_node 2 zero3_universal_param_groups.py
"""

import subprocess
import sys
import tempfile

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")


def engine_of(**config):
    model = torch.nn.Linear(4, 4)
    groups = [
        {"params": [model.weight], "weight_decay": 0.1, "lr": 1e-3},
        {"params": [model.bias], "weight_decay": 0.0, "lr": 5e-3},
    ]
    config |= {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=config)[0]


def said(engine):
    return [(group["weight_decay"], group["lr"]) for group in engine.optimizer.param_groups]


engine = engine_of()
engine.backward(engine(torch.ones(1, 4)).sum())
engine.step()
folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
dist.broadcast_object_list(folder)
engine.save_checkpoint(folder[0], tag="step")
if dist.get_rank() == 0:
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
               "--num_merge_workers", "1", "--input_folder", f"{folder[0]}/step", "--output_folder",
               f"{folder[0]}/universal"]  # fmt: skip
    subprocess.run(convert, check=True, capture_output=True)
dist.barrier()
loaded = engine_of(checkpoint={"load_universal": True})
loaded.load_checkpoint(folder[0], tag="universal")
if dist.get_rank() == 0:
    print("(weight_decay, lr) saved: ", said(engine))
    print("(weight_decay, lr) loaded:", said(loaded))
dist.destroy_process_group()
