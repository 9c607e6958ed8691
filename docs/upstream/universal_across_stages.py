"""A universal checkpoint of ZeRO-1 does not load at ZeRO-3, nor one of ZeRO-3 at ZeRO-1.

torchrun --nproc_per_node 2 universal_across_stages.py
"""

import subprocess
import sys
import tempfile
import traceback

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")


def engine_of(stage, **config):
    model = torch.nn.Linear(4, 4)
    config |= {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)[0]


folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
dist.broadcast_object_list(folder)
for stage in (1, 3):
    engine = engine_of(stage)
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    engine.save_checkpoint(folder[0], tag=f"zero{stage}")
    if dist.get_rank() == 0:
        convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
                   "--num_merge_workers", "1", "--inject_missing_state", "--input_folder", f"{folder[0]}/zero{stage}",
                   "--output_folder", f"{folder[0]}/universal{stage}"]  # fmt: skip
        subprocess.run(convert, check=True, capture_output=True)
    dist.barrier()
for then, now in ((1, 1), (1, 3), (3, 1), (3, 3)):
    try:
        engine_of(now, checkpoint={"load_universal": True}).load_checkpoint(folder[0], tag=f"universal{then}")
        outcome = "loads"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome = f"{type(error).__name__}: {last.line}"
    if dist.get_rank() == 0:
        print(f"ZeRO-{then} -> ZeRO-{now}: {outcome}")
dist.destroy_process_group()
