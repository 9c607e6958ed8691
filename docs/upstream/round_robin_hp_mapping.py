"""ZeRO-1/2 with round_robin_gradients: fp32 values are looked up, and made universal, at another parameter's place.

torchrun --nproc_per_node 2 round_robin_hp_mapping.py
"""

import subprocess
import sys
import tempfile

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # optional: nothing is compiled on a CPU then
deepspeed.init_distributed("gloo")
folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
dist.broadcast_object_list(folder)
for tag in ("false", "true"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1, "round_robin_gradients": tag == "true"},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    engine.save_checkpoint(folder[0], tag=tag)
    # In fp32 a parameter and its fp32 value are the same numbers.
    looked_up = {name: safe_get_full_fp32_param(p) for name, p in model.named_parameters()}
    if dist.get_rank() == 0:
        path = f"{folder[0]}/{tag}"
        convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
                   "--num_merge_workers", "1", "--inject_missing_state", "--input_folder", path, "--output_folder",
                   f"{path}-universal"]  # fmt: skip
        subprocess.run(convert, check=True, capture_output=True)
        for what, values in (
            ("safe_get_full_fp32_param", looked_up),
            ("ds_to_universal", {n: torch.load(f"{path}-universal/zero/{n}/fp32.pt")["param"] for n in looked_up}),
        ):
            wrong = sum(not torch.equal(values[n], p.detach()) for n, p in model.named_parameters())
            print(f"round_robin_gradients {tag}: {what}: {wrong} of {len(values)} parameters are wrong")
    dist.barrier()
dist.destroy_process_group()
